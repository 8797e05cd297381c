"""Trees to measure with: made from a seed, half of each file random and half of it text."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_POOL: Final = 1 << 20
_PER_DIRECTORY: Final = 50


@dataclass(frozen=True)
class Shape:
    """A tree of `files` files of `smallest` to `largest` bytes, evenly."""

    files: int
    smallest: int
    largest: int


ONE_GB: Final = Shape(20_000, 1_000, 100_000)
SMALL_FILES: Final = Shape(100_000, 50, 2_000)


class TreeMaker:
    """Fills and changes a tree of `shape`; two makers of one seed make the same."""

    def __init__(self, root: Path, shape: Shape, seed: int = 1) -> None:
        self._root = root
        self._shape = shape
        self._random = random.Random(seed)
        self._noise = self._random.randbytes(_POOL)
        self._text = b"".join(b"the quick brown fox jumps over the lazy dog %d\n" % n for n in range(_POOL // 46))

    def fill(self) -> None:
        """Write all files."""
        for number in range(self._shape.files):
            path = self._path(number)
            if number < self._shape.files // _PER_DIRECTORY + 1:
                path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._content(number))

    def change(self, count: int) -> None:
        """Write `count` files anew, each with other content."""
        for number in self._random.sample(range(self._shape.files), count):
            self._path(number).write_bytes(self._content(number))

    def _path(self, number: int) -> Path:
        directory = number % (self._shape.files // _PER_DIRECTORY + 1)
        return self._root / f"d{directory // 20}" / f"e{directory}" / f"f{number}"

    def _content(self, number: int) -> bytes:
        size = self._random.randint(self._shape.smallest, self._shape.largest)
        at = self._random.randrange(_POOL - self._shape.largest)
        half = size // 2
        mark = b"%d %d" % (number, self._random.getrandbits(64))
        return self._noise[at : at + half] + self._text[at : at + size - half - len(mark)] + mark


def stored(directory: Path) -> int:
    """Bytes of all files below `directory`."""
    return sum(os.lstat(os.path.join(at, name)).st_size for at, _, names in os.walk(directory) for name in names)
