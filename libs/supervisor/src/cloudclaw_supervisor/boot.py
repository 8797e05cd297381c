"""Start of a supervisor as the first process of a container.

It connects to the manager's socket in the slot's control directory, describes the image, and is given its
configuration with descriptors: of the slot's lock, which the manager holds until then, and of files of the
container's control groups, which are not to be seen from inside. It never forks: when it ends, the
container does, and everything in it.
"""

from __future__ import annotations

import array
import json
import os
import socket
import sys

from cloudclaw_supervisor import protocol, system
from cloudclaw_supervisor.__main__ import listen, serve
from cloudclaw_supervisor.config import Config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SOCKET = "boot"
"""The manager's socket, in the control directory."""
DIRECTORY = "/slot"
"""Where a container has its slot's files."""
_MAX_FDS = 64


def main() -> None:
    """Entry point. What goes wrong is told to the manager."""
    os.umask(0o077)
    os.chdir(f"{DIRECTORY}/ctl")
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    manager.connect(SOCKET)
    try:
        bwrap, shell = system.program("bwrap"), system.program("dash")
        manager.sendall(protocol.encode({**system.describe(shell), "bwrap": bwrap, "python": sys.version.split()[0]}))
        config = _receive(manager)
        listener = listen()
    except Exception as error:
        manager.sendall(protocol.encode({"error": f"{type(error).__name__}: {error}"}))
        raise
    manager.sendall(protocol.encode({"ready": True}))
    manager.close()
    serve(config, f"{DIRECTORY}/box", listener)


def _receive(manager: socket.socket) -> Config:
    """The configuration, with descriptors in place of the names that stand for them."""
    data, fds = b"", array.array("i")
    while not data.endswith(b"\n"):
        part, ancillary, _, _ = manager.recvmsg(1 << 16, socket.CMSG_SPACE(_MAX_FDS * fds.itemsize))
        if not part:
            raise EOFError("the manager went away")
        data += part
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    for fd in fds:
        os.set_inheritable(fd, False)
    given: dict[str, Any] = json.loads(data)
    given["config"]["lock_fd"] = fds[0]
    # A file that was passed is opened anew by each use, with the rights of this process.
    opened = {path: f"/proc/self/fd/{fd}" for path, fd in zip(given["files"], fds[1:])}  # noqa: B905 - 3.9 has no strict
    groups = given["config"]["groups"]
    for name, value in groups.items():
        if isinstance(value, str):
            groups[name] = opened.get(value, value)
        elif isinstance(value, list):
            groups[name] = [opened.get(path, path) for path in value]
    return Config(given["config"])
