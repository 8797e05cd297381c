"""Start of a supervisor: read the configuration, drop privileges, listen, go to the background.

The process that the manager started ends with code 0 when the supervisor listens; the supervisor is its
child, in a session of its own, and outlives the manager.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

from cloudclaw_supervisor import egress, linux, protocol
from cloudclaw_supervisor.config import Config
from cloudclaw_supervisor.spool import make_spools
from cloudclaw_supervisor.staging import stage
from cloudclaw_supervisor.supervisor import Supervisor


def drop_privileges(uid: int) -> None:
    """Become `uid` for good, with the gid of the same number and no other group."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def main() -> None:
    """Entry point."""
    config = Config(json.load(sys.stdin))
    os.umask(0o077)
    os.chdir(f"{config.directory}/ctl")
    root = f"{config.directory}/box"
    for procs in config.enter:
        with open(procs, "w") as file:
            file.write("0")
    if config.uid is not None:
        if config.stage:
            root = stage(config)
        drop_privileges(config.uid)
    listener = listen()
    if os.fork():
        os._exit(0)
    os.setsid()
    if config.lock_fd >= 0:
        os.set_inheritable(config.lock_fd, False)
    serve(config, root, listener)


def listen() -> socket.socket:
    """Make the spool and the socket in the present directory, the slot's control directory."""
    make_spools(protocol.SPOOL)
    # Bound by a name relative to the present directory: a socket's path is limited to 107 bytes.
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(f"{protocol.SOCKET}.new")
    listener.listen(8)
    # Named only now: a socket under the final name that refuses is a dead supervisor's.
    os.rename(f"{protocol.SOCKET}.new", protocol.SOCKET)
    return listener


def serve(config: Config, root: str, listener: socket.socket) -> None:
    """Be the supervisor until it is told to shut down.

    Args:
        root: where the skeleton of the sandbox's `/` is.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    if linux.AVAILABLE:
        linux.set_child_subreaper()
        linux.set_no_new_privs()
    Supervisor(config, root, listener, egress.bound() if config.egress else None).run()


if __name__ == "__main__":
    main()
