"""Path operations beneath a directory that somebody hostile fills (design §7).

Two rules hold everywhere: a path is resolved by the kernel in one call that may neither leave the directory nor
pass a symlink, and what was opened is judged by `fstat` of the descriptor, never by a look at the name before.
Names are bytes. Descriptors are the caller's to close.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

from cloudclaw.errors import InvalidArgumentError

# openat2(2) by ctypes: the `pathrs` binding needs a C library that is not to be had from a Python index.
_SYS_OPENAT2: Final = 437
_RESOLVE: Final = 0x08 | 0x04 | 0x02  # RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_HOP: Final = 3072
"""Longer paths are resolved in several calls: one takes at most 4095 bytes."""

MAX_STEP: Final = 255
DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY
READ: Final = os.O_RDONLY
CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_ALWAYS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY

_KINDS: Final = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFDIR: "a directory",
    stat.S_IFREG: "a regular file",
    stat.S_IFLNK: "a symlink",
}


_PERCENT: Final = {0xDC00 + byte: f"%{byte:02X}" for byte in range(128, 256)}


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)


def show(path: bytes) -> str:
    """A path for people and for the API: bytes that are not UTF-8 as `%XX`."""
    try:
        return path.decode("utf-8")
    except UnicodeDecodeError:
        return path.decode("utf-8", "surrogateescape").translate(_PERCENT)


def brief(path: bytes) -> str:
    """`show`, quoted and cut for a message; control characters are escaped."""
    text = show(path)
    return repr(text if len(text) <= 200 else text[:120] + "…" + text[-60:])


def refuse(path: bytes, why: str) -> NoReturn:
    """Raise `InvalidArgumentError(field="path")` that names the path."""
    raise InvalidArgumentError(f"{brief(path)}: {why}", field="path")


def kind(mode: int) -> str:
    """`a FIFO` and the like, of a `st_mode`."""
    return _KINDS.get(stat.S_IFMT(mode), "of an unknown type")


def check_path(path: bytes, *, limit: int = 4096) -> bytes:
    """`path` when it is relative, has no empty, `.` or `..` step, no NUL, and is not over-long; else refused."""
    if not path:
        refuse(path, "a path must not be empty")
    if len(path) > limit:
        refuse(path, f"the path has {len(path)} bytes; at most {limit} are allowed")
    if b"\0" in path:
        refuse(path, "a path must not hold a NUL byte")
    if path.startswith(b"/"):
        refuse(path, "a path must be relative")
    for step in path.split(b"/"):
        if step in (b"", b".", b".."):
            refuse(path, "a path must not have empty, '.' or '..' steps")
        if len(step) > MAX_STEP:
            refuse(path, f"a name has {len(step)} bytes; at most {MAX_STEP} are allowed")
    return path


def open_beneath(root: int, path: bytes, flags: int, mode: int = 0o600, *, named: bytes = b"") -> int:
    """Open `path` beneath the directory `root`, through directories only. Errors name `named`, when it is given.

    Raises `InvalidArgumentError(field="path")` for a path that is malformed, over-long, leads through or to a symlink
    or through a file; `OSError` for the rest (`FileNotFoundError`, `FileExistsError`, …). Never blocks on a FIFO.
    """
    steps = path
    at = root
    path = named or path
    try:
        while len(steps) > _HOP:
            cut = steps.rfind(b"/", 0, _HOP)
            if cut <= 0:
                refuse(path, "over-long")
            hop = _openat2(at, path, steps[:cut], os.O_PATH | os.O_DIRECTORY, 0)
            if at != root:
                os.close(at)
            at, steps = hop, steps[cut + 1 :]
        return _openat2(at, path, steps, flags, mode)
    finally:
        if at != root:
            os.close(at)


def _openat2(at: int, whole: bytes, path: bytes, flags: int, mode: int) -> int:
    if b"\0" in path:
        refuse(whole, "a path must not hold a NUL byte")
    # openat2 refuses flags that mean nothing, as O_NONBLOCK does with O_PATH.
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW if flags & os.O_PATH else _ALWAYS
    how = _OpenHow(flags, mode if flags & os.O_CREAT else 0, _RESOLVE)
    while True:
        fd: int = _libc.syscall(_SYS_OPENAT2, at, path, ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)))
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number not in (errno.EINTR, errno.EAGAIN):
            _raise(number, whole)


def _raise(number: int, path: bytes) -> NoReturn:
    if number == errno.ELOOP:
        refuse(path, "leads through a symlink, and those are not followed")
    if number == errno.EXDEV:
        refuse(path, "leads out of the tree")
    if number == errno.ENOTDIR:
        refuse(path, "leads through a symlink or a file, where a directory must be")
    if number == errno.ENAMETOOLONG:
        refuse(path, "is over-long")
    if number == errno.ENOSYS:
        raise OSError(number, "openat2 is missing: Linux 5.6 or newer is needed")
    raise OSError(number, os.strerror(number), os.fsdecode(path))


def open_child(directory: int, name: bytes, flags: int, mode: int = 0o600, *, path: bytes = b"") -> int:
    """Open one name of an open directory, never through a symlink. Errors as `open_beneath`, naming `path`."""
    if b"/" in name or b"\0" in name or name in (b"", b".", b".."):
        refuse(path or name, "is not one name")
    try:
        return os.open(name, flags | _ALWAYS, mode, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG):
            _raise(error.errno, path or name)
        raise


def open_regular(directory: int, name: bytes, *, path: bytes = b"") -> int:
    """Open one regular file of an open directory for reading; refuses all else, by `fstat` of what was opened.

    Also when the owner has taken the permission to read from itself: a mode of 000 must not keep a tree from being
    saved. The file gets its mode back at once.
    """
    try:
        fd = open_child(directory, name, READ, path=path)
    except PermissionError:
        with closing(open_child(directory, name, os.O_PATH, path=path)) as handle:
            mode = os.fstat(handle).st_mode
            if not stat.S_ISREG(mode):
                refuse(path or name, f"is {kind(mode)}, and only files, directories and symlinks can be kept")
            # The only way to chmod and reopen an O_PATH descriptor; the magic link is ours, not the tree's.
            link = f"/proc/self/fd/{handle}"
            os.chmod(link, stat.S_IMODE(mode) | stat.S_IRUSR)
            try:
                fd = os.open(link, READ | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            finally:
                os.chmod(link, stat.S_IMODE(mode))
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        refuse(path or name, f"is {kind(mode)}, and only files, directories and symlinks can be kept")
    return fd


def open_directory(directory: int, name: bytes, *, path: bytes = b"") -> tuple[int, int]:
    """Open one directory of an open directory to walk it; answers the descriptor and the permission bits it had.

    Its owner is given rwx where it had less: the caller puts the bits back when the directory is to be kept.
    """
    try:
        fd = open_child(directory, name, DIRECTORY, path=path)
    except PermissionError:
        with closing(open_child(directory, name, os.O_PATH | os.O_DIRECTORY, path=path)) as handle:
            bits = stat.S_IMODE(os.fstat(handle).st_mode)
            os.chmod(f"/proc/self/fd/{handle}", bits | stat.S_IRWXU)
            return os.open(f"/proc/self/fd/{handle}", DIRECTORY | os.O_CLOEXEC), bits
    bits = stat.S_IMODE(os.fstat(fd).st_mode)
    if bits & stat.S_IRWXU != stat.S_IRWXU:
        os.fchmod(fd, bits | stat.S_IRWXU)
    return fd, bits


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close `fd` at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def parent_of(root: int, path: bytes) -> Iterator[tuple[int, bytes]]:
    """The open parent directory of `path` beneath `root`, and the last step. Errors as `open_beneath`."""
    head, _, name = path.rpartition(b"/")
    if not head:
        yield root, name
        return
    fd = open_beneath(root, head, DIRECTORY, named=path)
    try:
        yield fd, name
    finally:
        os.close(fd)


def names(directory: int) -> Iterator[os.DirEntry[str]]:
    """The entries of an open directory, unsorted, one by one: a directory may hold more than memory does.

    `os.fsencode(entry.name)` gives the exact bytes; stat calls of the entry are relative to the descriptor.
    """
    with os.scandir(directory) as entries:
        yield from entries
