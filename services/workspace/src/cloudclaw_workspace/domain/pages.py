"""Long rows of names in little memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import zstandard

_PAGE: Final = 4096


class Pages:
    """Lines of text that are written once and read in order, compressed in pages of 4096: names of objects share most
    of their characters, so a million of them take about 50 MB instead of 200."""

    def __init__(self) -> None:
        self._pages: list[bytes] = []
        self._open: list[str] = []
        self._compressor = zstandard.ZstdCompressor(level=1)

    def append(self, line: str) -> None:
        """Add a line; it must not hold a line feed."""
        self._open.append(line)
        if len(self._open) == _PAGE:
            self._pages.append(self._compressor.compress("\n".join(self._open).encode()))
            self._open.clear()

    def __iter__(self) -> Iterator[str]:
        for page in self._pages:
            yield from zstandard.ZstdDecompressor().decompress(page).decode().split("\n")
        yield from self._open

    def __len__(self) -> int:
        return len(self._pages) * _PAGE + len(self._open)
