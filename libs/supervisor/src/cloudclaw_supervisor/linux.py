"""System calls that the standard library has no name for, through ctypes.

Without ctypes (Debian's python3-minimal) `AVAILABLE` is False and the callers degrade as the README of
this package says; nothing here is needed for the sandbox to hold.
"""

from __future__ import annotations

import errno
import os
import struct

try:
    import ctypes

    _libc = ctypes.CDLL(None, use_errno=True)
    AVAILABLE = True
except (ImportError, OSError):  # no ctypes, or no dynamic libc
    AVAILABLE = False

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19

_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_NR_MOUNT_SETATTR = 442  # the same on every architecture
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_READ_ONLY = 0x1 | 0x2 | 0x4  # and nosuid, nodev

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_KEYCTL_JOIN_SESSION_KEYRING = 1
_NR_KEYCTL = {"x86_64": 250, "aarch64": 219}


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def private_mounts() -> None:
    """Give this process mounts of its own that still follow the host's (slave propagation). Needs root."""
    _check(_libc.unshare(CLONE_NEWNS), "unshare(CLONE_NEWNS)")
    mount("", "/", MS_REC | MS_SLAVE)


def setns(fd: int, kind: int) -> None:
    """Enter the namespace behind `fd`, which is one of `kind` (CLONE_NEW…).

    Raises:
        OSError: the kernel or a filter refuses, or there is no ctypes.
    """
    if not AVAILABLE:
        raise OSError(errno.ENOSYS, "setns: this Python has no ctypes")
    _check(_libc.setns(fd, kind), "setns")


def mount(source: str, target: str, flags: int) -> None:
    """mount(2) without a file system type: binds, remounts and propagation."""
    result = _libc.mount(os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(flags), None)
    _check(result, f"mount({target!r})")


def set_read_only(path: str) -> None:
    """The mount at `path` and all in it: read-only, without setuid programs and devices."""
    attributes = struct.pack("=QQQQ", _READ_ONLY, 0, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(_NR_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        os.fsencode(path),
        ctypes.c_uint(_AT_RECURSIVE),
        attributes,
        ctypes.c_size_t(len(attributes)),
    )
    _check(result, f"mount_setattr({path!r})")


def detach(path: str) -> None:
    """Take away the mount at `path` from this process's own; who uses something in it may go on."""
    _check(_libc.umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW), f"umount({path!r})")


def set_child_subreaper() -> None:
    """Orphans below this process become its children, so their end is seen by wait(2)."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")


def set_no_new_privs() -> None:
    """No exec below this process gains privileges: a setuid bubblewrap runs as the slot's uid too."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


def new_session_keyring() -> None:
    """Start a fresh, empty session keyring; the one inherited would be readable by every attempt."""
    number = _NR_KEYCTL.get(os.uname().machine)
    if number is None:
        return
    result = _libc.syscall(ctypes.c_long(number), ctypes.c_long(_KEYCTL_JOIN_SESSION_KEYRING), None)
    if result < 0 and ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM):
        _check(result, "keyctl(JOIN_SESSION_KEYRING)")  # ENOSYS: no keyrings; EPERM: a container's filter
