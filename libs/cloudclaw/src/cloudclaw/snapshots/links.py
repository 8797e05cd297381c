"""Hard links inside a tree: which paths are names of one file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Names:
    """The paths found of one inode, its number of names on the file system, and its size."""

    ino: int
    nlink: int
    size: int
    paths: set[bytes] = field(default_factory=set)


class Links:
    """Files with more than one name. A file's bytes count once, whatever the number of its names."""

    def __init__(self) -> None:
        self._files: dict[int, Names] = {}
        self._inodes: dict[bytes, int] = {}

    def add(self, path: bytes, status: os.stat_result) -> bool:
        """Note a name; whether it is the first of its file."""
        names = self._files.get(status.st_ino)
        first = names is None
        if names is None:
            names = self._files[status.st_ino] = Names(status.st_ino, status.st_nlink, status.st_size)
        names.nlink = status.st_nlink
        names.paths.add(path)
        self._inodes[path] = status.st_ino
        return first

    def remove(self, path: bytes) -> int | None:
        """Forget a name. None when it was none of these, else the bytes that went with it: 0 but for the last one."""
        ino = self._inodes.pop(path, None)
        if ino is None:
            return None
        names = self._files[ino]
        names.paths.discard(path)
        if names.paths:
            return 0
        del self._files[ino]
        return names.size

    def has(self, path: bytes) -> bool:
        """Whether `path` is one of several names of a file."""
        return path in self._inodes

    def __iter__(self) -> Iterator[Names]:
        return iter(self._files.values())
