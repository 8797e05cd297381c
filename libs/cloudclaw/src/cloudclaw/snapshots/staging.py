"""Where a checkpoint puts what it copies while a tree's processes stand still.

One file, beneath `staging/` of the trees' directory, with the copies one after another. It has no name while it is in
use, so nothing of it outlives the checkpoint, whatever ends that.
"""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloudclaw.errors import QuotaExceededError, UnavailableError
from cloudclaw.snapshots.pipeline import Contents, Pipeline
from cloudclaw.snapshots.safe import brief

_libc = ctypes.CDLL(None, use_errno=True)
_WRITE_OUT: Final = 1 | 2 | 4  # SYNC_FILE_RANGE_WAIT_BEFORE | _WRITE | _WAIT_AFTER
_NO_KERNEL_COPY: Final = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
_PIECE: Final = 1 << 20
_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True)
class Staged:
    """A copy in the staging file."""

    offset: int
    size: int
    sparse: bool


class Staging:
    """The staging file at `path`, which may hold `limit` bytes; used by one thread at a time. A context manager."""

    def __init__(self, path: Path, limit: int) -> None:
        self._limit = limit
        self._end = 0
        self._kernel = True
        path.parent.mkdir(mode=0o700, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.unlink(path)

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def take(self, fd: int, path: bytes, size: int, *, sparse: bool = False) -> Staged:
        """Copy the first `size` bytes of `fd`, fewer when it has fewer. Raises `QuotaExceededError`,
        `UnavailableError` when the disk is full, `OSError`."""
        start = self._end
        if start + size > self._limit:
            raise QuotaExceededError(
                f"{brief(path)}: more than {self._limit} bytes changed in all",
                subject="workspace/total_bytes",
                reason="WORKSPACE_LIMIT",
            )
        try:
            copied = self._around_holes(fd, start, size) if sparse else self._copy(fd, 0, start, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UnavailableError(f"this host's disk: {error.strerror}", reason="DISK_FULL") from error
            raise
        self._end = start + copied + -copied % _BLOCK
        return Staged(start, copied, sparse)

    def store(self, staged: Staged, path: bytes, pipeline: Pipeline) -> Contents:
        """Store a copy, as the content of `path`. Raises as `Pipeline.take`."""
        return pipeline.take(self._fd, path, staged.size, sparse=staged.sparse, offset=staged.offset)

    def _around_holes(self, fd: int, start: int, size: int) -> int:
        size = min(size, os.fstat(fd).st_size)
        os.ftruncate(self._fd, start + size)
        at = 0
        while at < size:
            try:
                data = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break  # nothing but a hole from here on
                raise
            if data >= size:
                break
            at = min(os.lseek(fd, data, os.SEEK_HOLE), size)
            self._copy(fd, data, start + data, at - data)
        return size

    def _copy(self, fd: int, source: int, target: int, size: int) -> int:
        """Copy up to `size` bytes; how many there were."""
        done = 0
        while done < size:
            count = self._piece(fd, source + done, target + done, size - done)
            if count == 0:
                break
            done += count
        return done

    def _piece(self, fd: int, source: int, target: int, size: int) -> int:
        if self._kernel:
            try:
                return os.copy_file_range(fd, self._fd, size, source, target)
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
                self._kernel = False
        return os.pwrite(self._fd, os.pread(fd, min(size, _PIECE), source), target)


def settle(fd: int) -> None:
    """Make sure that what is written to `fd` from now on shows in its ctime. Needed before reading a file while
    processes run that may be writing to it. Raises `OSError`.

    Two kinds of writes change a file's times at their begin only. A store through a shared mapping does when the page
    is clean: so dirty pages are written out, for whoever maps the file now may be gone when somebody asks. And a long
    `write` does before it copies: looking for a hole waits for the inode's lock, which it holds (ext4; where reading
    takes that lock itself, as on XFS, this does nothing).
    """
    if _libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), ctypes.c_uint(_WRITE_OUT)) != 0:
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL):
            raise OSError(number, os.strerror(number))
        os.fdatasync(fd)
    try:
        os.lseek(fd, 0, os.SEEK_HOLE)
    except OSError as error:
        if error.errno != errno.ENXIO:  # an empty file has none
            raise
