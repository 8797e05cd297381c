"""Requests' bodies on their way to an upstream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

from cloudclaw_gateway.ports.upstreams import Body

_PIECE: Final = 128 << 10


class Counted:
    """A body, and how much of it has passed."""

    def __init__(self, body: Body) -> None:
        self.length = body.length
        self.bytes = 0
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._body:
            self.bytes += len(piece)
            yield piece


class Whole:
    """A body that is here already; `sent` is called when it is needed no more."""

    def __init__(self, data: bytearray, sent: Callable[[], None]) -> None:
        self.length: int | None = len(data)
        self._data = data
        self._sent = sent

    async def __aiter__(self) -> AsyncIterator[bytes]:
        # In pieces: who sends them would hold a second copy of the whole.
        for start in range(0, len(self._data), _PIECE):
            yield bytes(self._data[start : start + _PIECE])
        self._data.clear()
        self._sent()


async def whole(body: Body | None) -> bytearray:
    """All of it; none for no body."""
    data = bytearray()
    if body is not None:
        async for piece in body:
            data += piece
    return data
