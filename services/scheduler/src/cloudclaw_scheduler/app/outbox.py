"""What a stream still has to send to its node."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, Generic, TypeVar

from cloudclaw.errors import CloudClawError, UnavailableError

T = TypeVar("T")

LIMIT: Final = 16_384


class Outbox(Generic[T]):
    """A queue that never blocks its writers; a node that reads too little loses its stream instead."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._signal = asyncio.Event()
        self._error: CloudClawError | None = None
        self.closed = False

    def put(self, item: T) -> None:
        """Send `item` after all that was put before; after `close` it is dropped."""
        if self.closed:
            return
        if len(self._items) >= LIMIT:
            self.close(UnavailableError("the node does not read its stream; connect again", reason="SLOW_NODE"))
            return
        self._items.append(item)
        self._signal.set()

    def close(self, error: CloudClawError | None = None) -> None:
        """End the stream: with `error` at once, otherwise after what is in it."""
        if not self.closed:
            self.closed = True
            self._error = error
            self._signal.set()

    async def __aiter__(self) -> AsyncIterator[T]:
        while True:
            if self._error is not None:
                raise self._error
            while self._items:
                yield self._items.popleft()
            if self.closed:
                if self._error is not None:
                    raise self._error
                return
            self._signal.clear()
            await self._signal.wait()
