"""Bundles of archived tasks in the object store, and what of them is kept in memory."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, Generic, TypeVar

from cloudclaw.errors import DataLossError, NotFoundError, OutOfRangeError, UnavailableError
from cloudclaw.history import bundles
from cloudclaw.history.bundles import ArchivedTask, BundleName, Index, Preamble
from cloudclaw.objects.port import ObjectStore

V = TypeVar("V")

PREAMBLE_CACHE: Final = 8 * 1024 * 1024
"""Bytes of preambles kept: those of about 2,000 bundles, or two million tasks."""
INDEX_CACHE: Final = 8 * 1024 * 1024
"""Bytes of indexes kept: those of about 180 full bundles."""
WAVE: Final = 32
"""Bundles whose preambles are looked at together."""
AT_ONCE: Final = 16
"""Reads of the object store at a time, so that a search through many bundles leaves room for logs and results."""


class BytesLru(Generic[V]):
    """What was used last, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._items: OrderedDict[BundleName, tuple[V, int]] = OrderedDict()

    def get(self, key: BundleName) -> V | None:
        """The value, which counts as used now."""
        found = self._items.get(key)
        if found is None:
            return None
        self._items.move_to_end(key)
        return found[0]

    def put(self, key: BundleName, value: V, size: int) -> None:
        """Keep `value`, which takes `size` bytes."""
        before = self._items.pop(key, None)
        self._used += size - (before[1] if before else 0)
        self._items[key] = (value, size)
        while self._used > self._limit:
            _, (_, gone) = self._items.popitem(last=False)
            self._used -= gone

    def drop(self, key: BundleName) -> None:
        """Forget it."""
        gone = self._items.pop(key, None)
        self._used -= gone[1] if gone else 0


class BundleStore:
    """Reads and writes bundles. All methods raise what the store raises, and `DataLossError` naming a bundle that is
    damaged; a bundle that is gone raises `NotFoundError`."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._preambles: BytesLru[Preamble] = BytesLru(PREAMBLE_CACHE)
        self._indexes: BytesLru[Index] = BytesLru(INDEX_CACHE)
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def put(self, name: BundleName, data: bytes) -> None:
        """Store a new bundle."""
        await self._objects.put(str(name), data)

    async def delete(self, name: BundleName) -> None:
        """Remove a bundle that nobody needs."""
        await self._objects.delete(str(name))

    async def names(self, tenant: str) -> tuple[BundleName, ...]:
        """All bundles of a tenant, the one with the newest task first."""
        found = [bundles.parse_name(info.name) async for info in self._objects.list(bundles.prefix(tenant))]
        known = [name for name in found if name is not None]
        return tuple(sorted(known, key=lambda name: (name.newest, name.oldest, name.id), reverse=True))

    def cached_preamble(self, name: BundleName) -> Preamble | None:
        """The preamble when it is at hand."""
        return self._preambles.get(name)

    async def preamble(self, name: BundleName) -> Preamble:
        """The preamble of a bundle; one read of about 4 KiB when it is not at hand."""
        found = self._preambles.get(name)
        if found is None:
            data = await self._read(name, 0, bundles.PREAMBLE_BYTES)
            found = Preamble(data, str(name))
            self._preambles.put(name, found, 256 + 4 * len(found))
        return found

    async def index(self, name: BundleName) -> Index:
        """The index of a bundle; one read of about 30 bytes for each task when it is not at hand."""
        found = self._indexes.get(name)
        if found is None:
            preamble = await self.preamble(name)
            data = await self._read(name, preamble.index_at, preamble.index_length)
            found = Index(data, str(name), preamble)
            self._indexes.put(name, found, found.size)
        return found

    async def tasks(self, name: BundleName, rows: Sequence[int]) -> dict[int, ArchivedTask]:
        """The tasks in `rows` of a bundle; one read for each run of frames."""
        index = await self.index(name)
        ordered = sorted(rows)
        found: dict[int, ArchivedTask] = {}
        for span in index.spans(ordered):
            data = await self._read(name, span.offset, span.length)
            if len(span.frames) > 2:  # several milliseconds
                found.update(await asyncio.to_thread(bundles.decode_span, span, data, ordered, str(name)))
            else:
                found.update(bundles.decode_span(span, data, ordered, str(name)))
        return found

    async def find(self, tenant: str, task: str) -> ArchivedTask | None:
        """An archived task, None when there is no such; lists the tenant's bundles at each call.

        `DataLossError` naming a damaged bundle that may hold it, when no other bundle does.
        """
        found, damage = await self.search(await self.names(tenant), task)
        if found is None and damage is not None:
            raise damage
        return found

    async def search(self, names: Sequence[BundleName], task: str) -> tuple[ArchivedTask | None, DataLossError | None]:
        """The task, and what is damaged of the bundles that were looked at."""
        damage: DataLossError | None = None
        away: UnavailableError | None = None

        async def look(name: BundleName) -> ArchivedTask | None:
            nonlocal damage, away
            try:
                if not (await self.preamble(name)).may_hold(task):
                    return None
                row = (await self.index(name)).row_of(task)
                return None if row is None else (await self.tasks(name, [row]))[row]
            except NotFoundError:
                return None  # deleted with its tenant
            except DataLossError as error:
                damage = damage or error
            except UnavailableError as error:
                away = away or error
            return None

        def excluded(name: BundleName) -> bool:
            preamble = self.cached_preamble(name)
            return preamble is not None and not preamble.may_hold(task)

        rest = [name for name in names if not excluded(name)]
        for wave in (rest[at : at + WAVE] for at in range(0, len(rest), WAVE)):
            found = [each for each in await asyncio.gather(*map(look, wave)) if each is not None]
            if away is not None:
                raise away
            if found:
                return max(found, key=lambda each: each.task.mod_revision), damage
        return None, damage

    async def _read(self, name: BundleName, offset: int, length: int) -> bytes:
        async with self._turns:
            try:
                return await self._objects.get(str(name), offset=offset, length=length)
            except NotFoundError:
                self._preambles.drop(name)
                self._indexes.drop(name)
                raise
            except OutOfRangeError:
                return b""  # cut short: what decodes it says so
