"""Mounts of this process, and the system calls that attach a tree to a slot (root only)."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

# The same on every architecture (see asm-generic/unistd.h).
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_MOUNT_SETATTR = 442

_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_MOUNT_ATTR_NOSUID = 0x2
_MOUNT_ATTR_NODEV = 0x4
_MOUNT_ATTR_IDMAP = 0x00100000
_MOUNT_ATTR = struct.Struct("=QQQQ")

_MS_BIND = 4096
_MS_SHARED = 1 << 20
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8

_ESCAPE = re.compile(r"\\([0-7]{3})")

# A process in a user namespace of its own, until its standard input ends.
_NAMESPACE_HOLDER = """
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):
    sys.exit(os.strerror(ctypes.get_errno()))
os.write(1, b"r")
sys.stdin.read()
"""


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what: str, number: int, *arguments: object) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *arguments), what)


def mounted(path: Path) -> dict[str, bool]:
    """Mount points at or below `path` as this process sees them, each with whether it is shared."""
    prefix = os.path.realpath(path)
    found: dict[str, bool] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4])
        if point == prefix or point.startswith(prefix + "/"):
            optional = fields[6 : fields.index("-")]
            found[point] = any(word.startswith("shared:") for word in optional)
    return found


def share(path: Path) -> None:
    """Make `path` a shared mount, so that what is mounted below it arrives in sandboxes that run already."""
    name = os.path.realpath(path)
    shared = mounted(path).get(name)
    if shared is None:
        _check(_libc.mount(os.fsencode(name), os.fsencode(name), None, ctypes.c_ulong(_MS_BIND), None), "bind")
    if not shared:
        _check(_libc.mount(None, os.fsencode(name), None, ctypes.c_ulong(_MS_SHARED), None), "make shared")


def detach(path: str | Path) -> None:
    """Take away the mount at `path`, here and wherever it had propagated to."""
    _check(_libc.umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW), f"umount({str(path)!r})")


def detach_all(path: str | Path) -> None:
    """Take away every mount at `path`, one on the other; harmless without one. Unlike `detach_below` it asks the kernel
    for this place alone, and not for the list of all mounts."""
    while True:
        try:
            detach(path)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return  # it is no mount point


def detach_below(path: Path) -> None:
    """Take away every mount strictly below `path`, the innermost first."""
    top = os.path.realpath(path)
    for point in sorted(mounted(path), key=len, reverse=True):
        if point != top:
            detach(point)


def owner_mapping(on_disk: int, inside: int) -> int:
    """A descriptor of a user namespace for `attach`: files of uid and gid `on_disk` appear as `inside`."""
    with subprocess.Popen(
        [os.path.realpath(sys.executable), "-I", "-S", "-c", _NAMESPACE_HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.read(1) != b"r":
            raise OSError(f"no user namespace for the mapping of files: {holder.stderr.read().decode().strip()}")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{holder.pid}/{name}").write_text(f"{on_disk} {inside} 1")
        return os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def clone_mapped(source: int, mapping: int) -> int:
    """A detached mount of the directory `source` (an O_PATH descriptor) with its owner mapped, no
    device and no setuid file in effect. Raises OSError when the file system cannot map owners."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH
    tree = _syscall("open_tree", _NR_OPEN_TREE, ctypes.c_int(source), b"", ctypes.c_uint(flags))
    try:
        attributes = _MOUNT_ATTR.pack(_MOUNT_ATTR_IDMAP | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV, 0, 0, mapping)
        _syscall(
            "mount_setattr(IDMAP)",
            _NR_MOUNT_SETATTR,
            ctypes.c_int(tree),
            b"",
            ctypes.c_uint(_AT_EMPTY_PATH),
            attributes,
            ctypes.c_size_t(_MOUNT_ATTR.size),
        )
    except OSError:
        os.close(tree)
        raise
    return tree


def move(tree: int, target: int) -> None:
    """Mount the detached `tree` on the directory `target` (an O_PATH descriptor)."""
    flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH)
    _syscall("move_mount", _NR_MOVE_MOUNT, ctypes.c_int(tree), b"", ctypes.c_int(target), b"", flags)
