"""An object store whose calls are made again when they fail, for work that takes many of them.

A snapshot of a large tree is a hundred calls. When the store fails each with a small probability, all of them hardly
ever succeed in a row; but each does after a try or two.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

import structlog

from cloudclaw.clock import Clock
from cloudclaw.errors import UnavailableError
from cloudclaw.objects.port import ObjectInfo, ObjectStore

PAUSES: Final = (0.1, 0.3, 0.9)
"""Seconds before each further try. A store that is away for longer is its callers' business."""

HELD: Final = 4 << 20
"""Bytes of a stream that are kept to be sent again; a longer one is sent once."""

_log = structlog.get_logger()

T = TypeVar("T")


class InsistingObjects:
    """An `ObjectStore` over another. Makes reads of whole objects or ranges, plain puts, short streams and deletes
    again; conditional puts (whose first try may have succeeded), long streams and lists are made once."""

    def __init__(self, store: ObjectStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        for pause in PAUSES:
            try:
                return await call()
            except UnavailableError as error:
                _log.info("a call of the object store is made again", error=error.message, pause=pause)
                await self._clock.sleep(pause)
        return await call()

    async def put(self, name: str, data: bytes, *, if_absent: bool = False) -> bool:
        if if_absent:
            return await self._store.put(name, data, if_absent=True)
        return await self._insist(lambda: self._store.put(name, data))

    async def put_stream(self, name: str, chunks: AsyncIterator[bytes]) -> int:
        held: list[bytes] = []
        size = 0
        async for chunk in chunks:
            held.append(chunk)
            size += len(chunk)
            if size >= HELD:
                return await self._store.put_stream(name, _rest(held, chunks))
        await self.put(name, b"".join(held))
        return size

    async def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        return await self._insist(lambda: self._store.get(name, offset=offset, length=length))

    def stream(self, name: str) -> AsyncIterator[bytes]:
        return self._store.stream(name)

    async def head(self, name: str) -> ObjectInfo:
        return await self._insist(lambda: self._store.head(name))

    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        return self._store.list(prefix, start_after=start_after)

    async def delete(self, name: str) -> None:
        await self._insist(lambda: self._store.delete(name))

    async def check(self) -> None:
        await self._store.check()

    async def close(self) -> None:
        await self._store.close()


async def _rest(held: list[bytes], chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while held:
        yield held.pop(0)
    async for chunk in chunks:
        yield chunk
