"""Objects in memory: for unit tests, and for a `claw dev` that should leave nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cloudclaw.clock import Clock, SystemClock
from cloudclaw.errors import NotFoundError, OutOfRangeError
from cloudclaw.objects.names import check_object_name, check_prefix, check_range
from cloudclaw.objects.port import ObjectInfo

_CHUNK = 1024 * 1024


class MemoryObjects:
    """An `ObjectStore` that lives and dies with the process. Never unavailable, never full."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._objects: dict[str, tuple[bytes, float]] = {}

    async def put(self, name: str, data: bytes, *, if_absent: bool = False) -> bool:
        check_object_name(name)
        if if_absent and name in self._objects:
            return False
        self._objects[name] = (bytes(data), self._clock.wall())
        return True

    async def put_stream(self, name: str, chunks: AsyncIterator[bytes]) -> int:
        check_object_name(name)
        data = b"".join([chunk async for chunk in chunks])
        self._objects[name] = (data, self._clock.wall())
        return len(data)

    async def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        check_object_name(name)
        check_range(offset, length)
        data, _ = self._find(name)
        if offset > len(data):
            raise OutOfRangeError(f"object {name} has {len(data)} bytes; offset {offset} is beyond its end")
        return data[offset:] if length is None else data[offset : offset + length]

    async def stream(self, name: str) -> AsyncIterator[bytes]:
        data = await self.get(name)
        for start in range(0, len(data), _CHUNK):
            yield data[start : start + _CHUNK]

    async def head(self, name: str) -> ObjectInfo:
        check_object_name(name)
        data, modified = self._find(name)
        return ObjectInfo(name, len(data), modified)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        check_prefix(prefix)
        # A copy: what others put and delete meanwhile must not disturb the iteration.
        names = sorted(name for name in self._objects if name.startswith(prefix) and name > start_after)
        for name in names:
            if name in self._objects:
                data, modified = self._objects[name]
                yield ObjectInfo(name, len(data), modified)

    async def delete(self, name: str) -> None:
        check_object_name(name)
        self._objects.pop(name, None)

    async def check(self) -> None:
        """Always serves."""

    async def close(self) -> None:
        """Nothing to release; the objects stay readable until the process ends."""

    def _find(self, name: str) -> tuple[bytes, float]:
        found = self._objects.get(name)
        if found is None:
            raise NotFoundError(f"no object {name}")
        return found
