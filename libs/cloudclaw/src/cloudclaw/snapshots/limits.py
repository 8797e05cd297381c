"""Counting what a tree holds against `TreeLimits`, while it grows."""

from __future__ import annotations

from typing import Final

from cloudclaw.errors import QuotaExceededError
from cloudclaw.snapshots.port import TreeLimits
from cloudclaw.snapshots.safe import brief

NAMES: Final = 320
"""Bytes of paths and symlink targets for each file that a tree may hold: 32 MB by default. A snapshot keeps all of them
in memory, several times over, and in its manifest; at 4 KB each they would be many times the memory of a service."""
_FEWEST: Final = 100_000


class Budget:
    """Entries and bytes of one tree. Directories and symlinks count as files: each costs an inode.

    Attributes:
        files: entries so far.
        bytes: sum of the sizes of regular files so far.
        names: bytes of paths and symlink targets so far.
    """

    def __init__(self, limits: TreeLimits, *, files: int = 0, size: int = 0, names: int = 0) -> None:
        self.limits = limits
        self.files = files
        self.bytes = size
        self.names = names
        self._most_names = NAMES * max(limits.files, _FEWEST)

    def entry(self, path: bytes) -> None:
        """Count one more path. Raises `QuotaExceededError` naming it."""
        self.files += 1
        if self.files > self.limits.files:
            raise _exceeded(path, f"more than {self.limits.files} files and directories", "files")
        self.name(path, len(path))

    def name(self, path: bytes, size: int) -> None:
        """Count `size` more bytes of paths or targets. Raises `QuotaExceededError` naming `path`."""
        self.names += size
        if self.names > self._most_names:
            raise _exceeded(path, f"the tree's paths have more than {self._most_names} bytes in all", "path_bytes")

    def grow(self, path: bytes, size: int, total: int) -> None:
        """Count `size` more bytes of a file that now has `total`. Raises `QuotaExceededError` naming it."""
        self.bytes += size
        if total > self.limits.file_bytes:
            raise _exceeded(path, f"the file is larger than {self.limits.file_bytes} bytes", "file_bytes")
        if self.bytes > self.limits.total_bytes:
            raise _exceeded(path, f"the tree is larger than {self.limits.total_bytes} bytes", "total_bytes")

    def give_back(self, files: int, size: int, names: int = 0) -> None:
        """Something was removed."""
        self.files -= files
        self.bytes -= size
        self.names -= names


def _exceeded(path: bytes, why: str, subject: str) -> QuotaExceededError:
    return QuotaExceededError(f"{brief(path)}: {why}", subject=f"workspace/{subject}", reason="WORKSPACE_LIMIT")
