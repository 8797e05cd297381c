"""A client's stream, taken from the event loop by a thread that writes files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError, Future
from typing import Final, Generic, TypeVar

from cloudclaw.errors import AbortedError
from cloudclaw.snapshots.threads import Stopped

T = TypeVar("T")


class _End:
    pass


_END: Final = _End()


class Feed(Generic[T]):
    """Iterates `source`, which lives on the running loop, in another thread: one item at a time, so a slow disk slows
    the client down instead of filling memory.

    Raises what `source` raises, `AbortedError(reason="CLIENT_IDLE")` after `patience` seconds without an item, and
    `Stopped` once it was closed.
    """

    def __init__(self, source: AsyncIterator[T], *, patience: float) -> None:
        self._source = source
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._pending: Future[T | _End] | None = None

    def close(self) -> None:
        """End the iteration, also one that waits. To be called on the loop."""
        self._closed = True
        if self._pending is not None:
            self._pending.cancel()

    def __iter__(self) -> Feed[T]:
        return self

    def __next__(self) -> T:
        pending = asyncio.run_coroutine_threadsafe(self._pull(), self._loop)
        self._pending = pending
        if self._closed:
            pending.cancel()
        try:
            item = pending.result()
        except CancelledError:
            raise Stopped from None
        if isinstance(item, _End):
            raise StopIteration
        return item

    async def _pull(self) -> T | _End:
        try:
            async with asyncio.timeout(self._patience):
                return await anext(self._source, _END)
        except TimeoutError:
            raise AbortedError(
                f"nothing came for {self._patience:g} seconds; nothing was written", reason="CLIENT_IDLE"
            ) from None


class FeedReader:
    """The bytes of a feed as a file: what decompressors read from."""

    def __init__(self, feed: Feed[bytes], *, limit: int) -> None:
        """At most `limit` bytes are given out, as a bound for what comes after the end of an archive."""
        self._feed = feed
        self._buffer = b""
        self._at = 0
        self._left = limit

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end; they stay."""
        while len(self._buffer) - self._at < size and (chunk := next(self._feed, b"")):
            self._buffer, self._at = self._buffer[self._at :] + chunk, 0
        return self._buffer[self._at : self._at + size]

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes (any number for -1), none only at the end."""
        while self._at >= len(self._buffer):
            chunk = next(self._feed, None)
            if chunk is None:
                return b""
            self._buffer, self._at = chunk, 0
        end = len(self._buffer) if size < 0 else min(self._at + size, len(self._buffer))
        data, self._at = self._buffer[self._at : end], end
        self._left -= len(data)
        if self._left < 0:
            raise AbortedError("the stream is larger than any archive may be", reason="TOO_LARGE")
        return data
