"""Bytes that a tree takes on disk, counted in small steps between other work of the loop."""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Scan:
    """One pass over `roots`. Symlinks are counted, never followed; hard links count once.

    Attributes:
        total: bytes found so far.
        hidden: directories that could not be read: their owner took the permission away.
    """

    def __init__(self, roots: Sequence[str]):
        self.total = 0
        self.hidden = 0
        self._linked: set[int] = set()
        self._entries = self._walk(roots)

    def step(self, entries: int) -> bool:
        """Look at about `entries` more; True when the pass is complete."""
        return any(next(self._entries, None) is None for _ in range(entries))

    def _walk(self, roots: Sequence[str]) -> Iterator[bool]:
        # A directory is opened relative to its parent's descriptor, so no depth of nesting and no
        # swapped symlink leads anywhere else; one descriptor a level is open at a time.
        for root in roots:
            try:
                fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except OSError:
                self.hidden += 1
                continue
            yield from self._directory(fd, 0)

    def _directory(self, fd: int, depth: int) -> Iterator[bool]:
        try:
            if depth > 200:  # deeper than any sane tree and near the descriptor limit
                self.hidden += 1
                return
            with os.scandir(fd) as entries:
                for entry in entries:
                    yield True
                    try:
                        status = entry.stat(follow_symlinks=False)
                        if not self._count(status):
                            continue
                        child = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                    except FileNotFoundError:
                        continue  # removed while we look
                    except OSError:
                        self.hidden += 1
                        continue
                    yield from self._directory(child, depth + 1)
        finally:
            os.close(fd)

    def _count(self, status: os.stat_result) -> bool:
        """Add one entry; True when it is a directory to descend into."""
        if stat.S_ISDIR(status.st_mode):
            self.total += status.st_blocks * 512
            return True
        if status.st_nlink > 1:
            if status.st_ino in self._linked:
                return False
            self._linked.add(status.st_ino)
        self.total += status.st_blocks * 512
        return False


def free_bytes(path: str) -> int:
    """Free bytes of the file system that holds `path`."""
    status = os.statvfs(path)
    return status.f_bfree * status.f_frsize
