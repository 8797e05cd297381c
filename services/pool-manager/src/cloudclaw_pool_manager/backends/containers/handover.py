"""The manager's end of a container's boot (`cloudclaw_supervisor.boot`). Blocking; called in a thread."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import cloudclaw_supervisor
from cloudclaw_pool_manager.backends.layout import SlotFiles
from cloudclaw_pool_manager.ports.backend import SlotFailedError
from cloudclaw_supervisor import boot, protocol

_WITHIN: Final = 30.0
_MOST: Final = 4 << 20
_PEERCRED: Final = struct.Struct("3i")


class Handover:
    """A socket in the slot's control directory, on which the container's first process reports.

    Args:
        files: the slot's, with its control directory made.
        uid: of that process.
    """

    def __init__(self, files: SlotFiles, uid: int):
        self._name = files.name
        self._uid = uid
        self._peer: socket.socket | None = None
        self._received = bytearray()
        self._until = time.monotonic() + _WITHIN
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        directory = os.open(files.control, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            # By descriptor: a socket's path is limited to 107 bytes.
            path = f"/proc/self/fd/{directory}/{boot.SOCKET}"
            self._listener.bind(path)
            os.chown(path, uid, uid, follow_symlinks=False)  # the directory is the slot's, whatever is in it by now
            self._listener.listen(1)
        finally:
            os.close(directory)
        self._path = files.control / boot.SOCKET

    def close(self) -> None:
        """Remove the socket."""
        self._listener.close()
        if self._peer is not None:
            self._peer.close()
        self._path.unlink(missing_ok=True)

    def meet(self, pidfd: int) -> Mapping[str, Any]:
        """Wait for the process behind `pidfd`, and return what it says of its image.

        Raises:
            SlotFailedError: it ended, did not come in time, or says what is wrong.
        """
        self._wait(self._listener, pidfd)
        self._peer, _ = self._listener.accept()
        _, uid, _ = _PEERCRED.unpack(self._peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
        if uid != self._uid:
            raise SlotFailedError(f"{self._name}: uid {uid} reports where {self._uid} was due")
        return self._message(pidfd)

    def give(self, config: Mapping[str, Any], lock: int, files: Mapping[str, int], pidfd: int) -> None:
        """Hand over the configuration, the lock, and files of the groups; returns when the supervisor listens.

        Args:
            files: descriptors by the path under which `config` names them.

        Raises:
            SlotFailedError: as `meet`.
        """
        assert self._peer is not None
        data = protocol.encode({"config": dict(config), "files": list(files)})
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its last words follow
            # Descriptors go with the first part; the rest follows.
            sent = socket.send_fds(self._peer, [data], [lock, *files.values()])
            if sent < len(data):
                self._peer.sendall(data[sent:])
        self._message(pidfd)

    def _message(self, pidfd: int) -> Mapping[str, Any]:
        assert self._peer is not None
        while b"\n" not in self._received:
            self._wait(self._peer, pidfd)
            part = self._peer.recv(1 << 16)
            if not part or len(self._received) > _MOST:
                raise SlotFailedError(f"the supervisor of {self._name} did not start: it hung up")
            self._received += part
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received = bytearray(rest)
        try:
            (message,) = protocol.Lines().feed(line + b"\n")
        except ValueError as error:
            raise SlotFailedError(f"the supervisor of {self._name} sent nonsense: {error}") from error
        if "error" in message:
            raise SlotFailedError(f"the supervisor of {self._name} did not start: {message['error']}")
        return message

    def _wait(self, sock: socket.socket, pidfd: int) -> None:
        left = max(self._until - time.monotonic(), 0.0)
        ready, _, _ = select.select([sock.fileno(), pidfd], [], [], left)
        if sock.fileno() in ready:
            return
        if not ready:
            raise SlotFailedError(f"the supervisor of {self._name} did not report within {_WITHIN:g} s")
        raise SlotFailedError(f"the supervisor of {self._name} ended before it reported")


def open_files(groups: Mapping[str, Any]) -> dict[str, int]:
    """Descriptors of the files that a supervisor's groups name, by path."""
    opened: dict[str, int] = {}
    try:
        for value in groups.values():
            for path in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
                if path and path not in opened:
                    opened[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        close_all(opened)
        raise
    return opened


def close_all(files: Mapping[str, int]) -> None:
    """Close the descriptors."""
    for fd in files.values():
        os.close(fd)


def library(directory: Path) -> Path:
    """A copy of the supervisor's package below `directory`, for any uid to read; returns what to bind.

    A copy, because the engine must find it where the slots' files are, and the manager's own may lie where no other
    uid gets. One for each content: a running container keeps the one that it began with.
    """
    package = Path(cloudclaw_supervisor.__file__).parent
    sources = {path.name: path.read_bytes() for path in sorted(package.glob("*.py"))}
    digest = hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()[:16]
    made = directory / digest
    if made.is_dir():
        return made
    directory.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{digest}.", dir=directory))  # others may make the same just now
    (new / package.name).mkdir()
    for name, content in sources.items():
        (new / package.name / name).write_bytes(content)
    for path in [new, *new.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    with contextlib.suppress(FileExistsError, OSError):
        new.rename(made)
    shutil.rmtree(new, ignore_errors=True)
    return made
