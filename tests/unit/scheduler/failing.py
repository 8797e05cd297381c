"""An object store that can go away, or be full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from cloudclaw.errors import QuotaExceededError, UnavailableError
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.objects.port import ObjectInfo


class FailingObjects(MemoryObjects):
    """While `away`, every call raises `UnavailableError`; while `full`, puts find no room; while `held` is clear, they
    wait."""

    def __init__(self) -> None:
        super().__init__()
        self.away = self.full = False
        self.held = asyncio.Event()
        self.held.set()
        self.puts: list[str] = []

    def _check(self) -> None:
        if self.away:
            raise UnavailableError("the object store is away")

    async def put(self, name: str, data: bytes, *, if_absent: bool = False) -> bool:
        self._check()
        if self.full:
            raise QuotaExceededError(f"no room for object {name}", reason="OBJECT_STORE_FULL")
        await self.held.wait()
        self.puts.append(name)
        return await super().put(name, data, if_absent=if_absent)

    async def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self._check()
        return await super().get(name, offset=offset, length=length)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        self._check()
        async for info in super().list(prefix, start_after=start_after):
            yield info
