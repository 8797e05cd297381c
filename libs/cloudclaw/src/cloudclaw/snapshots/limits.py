"""Counting what a tree holds against `TreeLimits`, while it grows."""

from __future__ import annotations

from cloudclaw.errors import QuotaExceededError
from cloudclaw.snapshots.port import TreeLimits
from cloudclaw.snapshots.safe import brief


class Budget:
    """Entries and bytes of one tree. Directories and symlinks count as files: each costs an inode.

    Attributes:
        files: entries so far.
        bytes: sum of the sizes of regular files so far.
    """

    def __init__(self, limits: TreeLimits, *, files: int = 0, size: int = 0) -> None:
        self.limits = limits
        self.files = files
        self.bytes = size

    def entry(self, path: bytes) -> None:
        """Count one more path. Raises `QuotaExceededError` naming it."""
        self.files += 1
        if self.files > self.limits.files:
            raise _exceeded(path, f"more than {self.limits.files} files and directories", "files")

    def grow(self, path: bytes, size: int, total: int) -> None:
        """Count `size` more bytes of a file that now has `total`. Raises `QuotaExceededError` naming it."""
        self.bytes += size
        if total > self.limits.file_bytes:
            raise _exceeded(path, f"the file is larger than {self.limits.file_bytes} bytes", "file_bytes")
        if self.bytes > self.limits.total_bytes:
            raise _exceeded(path, f"the tree is larger than {self.limits.total_bytes} bytes", "total_bytes")

    def give_back(self, files: int, size: int) -> None:
        """Something was removed."""
        self.files -= files
        self.bytes -= size


def _exceeded(path: bytes, why: str, subject: str) -> QuotaExceededError:
    return QuotaExceededError(f"{brief(path)}: {why}", subject=f"workspace/{subject}", reason="WORKSPACE_LIMIT")
