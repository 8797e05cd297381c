"""Requests' bodies on their way to an upstream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from cloudclaw_gateway.ports.upstreams import Body


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

    def __init__(self, data: bytes, sent: Callable[[], None]) -> None:
        self.length: int | None = len(data)
        self._data = data
        self._sent = sent

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._data
        self._data = b""
        self._sent()
