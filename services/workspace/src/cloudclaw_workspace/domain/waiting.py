"""The candidates of garbage collection: what nothing referred to, and since when.

Stored as one zstd frame of lines, UTF-8: a first line `cloudclaw.candidates 1`, then for each object, by name, the
milliseconds since the epoch at which it was first seen unreferenced, a space, and its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import zstandard

from cloudclaw.errors import DataLossError
from cloudclaw_workspace.domain.pages import Pages

_HEAD: Final = "cloudclaw.candidates 1"
_PIECE: Final = 1 << 20


class Candidates:
    """Objects by name, with the time in seconds at which each was first seen unreferenced."""

    def __init__(self) -> None:
        self._lines = Pages()

    def append(self, name: str, since: float) -> None:
        """Add one; names must rise."""
        self._lines.append(f"{round(since * 1000)} {name}")

    def __iter__(self) -> Iterator[tuple[str, float]]:
        for line in self._lines:
            millis, _, name = line.partition(" ")
            yield name, int(millis) / 1000

    def __len__(self) -> int:
        return len(self._lines)

    def encode(self) -> bytes:
        """The object's bytes."""
        compressor = zstandard.ZstdCompressor(level=3).compressobj()
        parts = [compressor.compress(f"{_HEAD}\n".encode())]
        parts += [compressor.compress(f"{line}\n".encode()) for line in self._lines]
        return b"".join([*parts, compressor.flush()])


def decode(data: bytes, name: str) -> Candidates:
    """The candidates in object `name`. Raises `DataLossError` naming it."""
    found = Candidates()
    try:
        lines = _lines(data)
        if next(lines, None) != _HEAD:
            raise ValueError("its first line is another")
        previous = ""
        for line in lines:
            millis, _, candidate = line.partition(" ")
            if candidate <= previous:
                raise ValueError(f"{candidate!r} is not in order")
            found.append(candidate, int(millis) / 1000)
            previous = candidate
    except (zstandard.ZstdError, ValueError) as error:
        raise DataLossError(f"the candidates in {name} cannot be read: {error}") from error
    return found


def _lines(data: bytes) -> Iterator[str]:
    rest = b""
    with zstandard.ZstdDecompressor().stream_reader(data) as reader:
        while piece := reader.read(_PIECE):
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line.decode()
    if rest:
        raise ValueError("it is cut short")


class Cursor:
    """Looks names up in candidates, in rising order, by going through them once."""

    def __init__(self, candidates: Candidates) -> None:
        self._rest = iter(candidates)
        self._at = next(self._rest, None)

    def since(self, name: str) -> float | None:
        """When `name` was first seen unreferenced; None when it was not seen before."""
        while self._at is not None and self._at[0] < name:
            self._at = next(self._rest, None)
        return self._at[1] if self._at is not None and self._at[0] == name else None
