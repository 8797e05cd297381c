"""Bubblewrap's options for one sandbox."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ARGS_FD = 6
SECCOMP_FD = 7
INFO_FD = 8
BLOCK_FD = 9
INIT = "/run/init"
"""Where the skeleton holds its copy of dash. Nobody may read the file, so the kernel makes the process
non-dumpable at exec: its memory and environment are closed to the task."""

UID = 1000
"""The uid and gid that a task sees; outside it is the slot's own."""


def options(
    root: str,
    hostname: str,
    tmp_bytes: int,
    read_only: Sequence[tuple[str, str]],
    writable: Sequence[tuple[str, str]] = (),
    wait: bool = False,
) -> bytes:
    """The options as `bwrap --args` reads them: each ended by a NUL.

    Args:
        root: directory that becomes `/`, with every mount point in it.
        hostname: name of the machine inside; empty to keep it.
        tmp_bytes: size of each of `/tmp` and `/dev/shm`.
        read_only: (source, destination) of directories and files bound read-only.
        writable: the same, writable; used where mounts cannot arrive later.
        wait: tell the first process's pid and let it wait before its exec, see `listener`.
    """
    size = str(tmp_bytes)
    words = ["--unshare-user", "--disable-userns", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    words += ["--unshare-net", "--unshare-cgroup-try", "--uid", str(UID), "--gid", str(UID)]
    words += ["--hostname", hostname] if hostname else []
    words += ["--bind", root, "/"]
    for source, destination in read_only:
        words += ["--ro-bind", source, destination]
    for source, destination in writable:
        words += ["--bind", source, destination]
    words += ["--proc", "/proc", "--dev", "/dev"]
    words += ["--perms", "1777", "--size", size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    words += ["--perms", "1777", "--size", size, "--tmpfs", "/tmp", "--remount-ro", "/"]
    words += ["--chdir", "/", "--seccomp", str(SECCOMP_FD), "--cap-drop", "ALL"]
    words += ["--as-pid-1", "--new-session", "--die-with-parent"]
    if wait:
        words += ["--info-fd", str(INFO_FD), "--block-fd", str(BLOCK_FD)]
    return b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in words)
