"""The archived tasks of tenants, found by id and listed by time, on any replica.

What it costs, for a tenant with 200,000 archived tasks in 200 bundles:

- By id, the first time: a list of the 200 names, their preambles (200 reads of 4 KiB, 16 at a time, newest bundles
  first, and no further once the task is found), one index and one frame (about 30 and 10 KiB). Ids are random, so
  nothing of an id says where it lies. From then on names and preambles are in memory: two reads.
- By id, for a task that is not there: one list of names, at most `1 / SPACING` a second for each tenant.
- A page of a list: the indexes of the bundles whose times overlap the page, and the frames of its tasks.

Names are listed again only when they may be incomplete: tasks have left the mirror since, or a lookup found nothing.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.errors import DataLossError, NotFoundError
from cloudclaw.history.bundles import ArchivedTask, BundleName, Index, Place
from cloudclaw.history.store import BundleStore
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.state import Change, Kind

_log = structlog.get_logger()

TENANTS: Final = 256
"""Tenants whose names of bundles are kept."""
SPACING: Final = 0.2
"""Seconds between two lists of one tenant's bundles that lookups in vain cause."""


@dataclass(frozen=True, slots=True)
class _Names:
    """A tenant's bundles. All that were there when the mirror showed `revision`, and when call number `call` began."""

    bundles: tuple[BundleName, ...]
    revision: int
    call: int


@dataclass(frozen=True, slots=True)
class ArchivedRow:
    """An archived task as the index of its bundle has it."""

    place: Place
    task: str
    mod_revision: int
    bundle: BundleName
    row: int
    index: Index


class History:
    """Reads the history. `UnavailableError` from every method while the object store is out of reach."""

    def __init__(self, store: BundleStore, mirror: Mirror, clock: Clock) -> None:
        self._store = store
        self._mirror = mirror
        self._clock = clock
        self._names: OrderedDict[str, _Names] = OrderedDict()
        self._removed: dict[str, int] = {}
        self._reloaded = 0
        self._calls = itertools.count(1)
        self._locks: dict[str, asyncio.Lock] = {}
        self._listed_at: dict[str, float] = {}
        mirror.subscribe(self)

    def changed(self, changes: Sequence[Change]) -> None:
        """Remember which tenants' tasks left the mirror: they are in bundles by now."""
        for change in changes:
            if change.kind is Kind.REMOVED and isinstance(change.value, tuple) and change.value[0] in self._locks:
                self._removed[change.value[0]] = self._mirror.state.revision

    def reloaded(self) -> None:
        """Any task may have left."""
        self._removed.clear()
        self._reloaded = self._mirror.state.revision

    async def find(self, tenant: str, task: str) -> ArchivedTask | None:
        """An archived task, None when there is no such; whatever was archived before the call is found.

        `DataLossError` naming a damaged bundle that may hold it, when no other bundle does.
        """
        call = next(self._calls)
        known = self._known(tenant)
        damage: DataLossError | None = None
        seen: frozenset[BundleName] = frozenset()
        if known is not None:
            found, damage = await self._store.search(known.bundles, task)
            if found is not None:
                return found
            seen = frozenset(known.bundles)
        names = await self._list(tenant, lambda names: names.call > call, SPACING)
        found, more = await self._store.search([name for name in names.bundles if name not in seen], task)
        damage = damage or more
        if found is None and damage is not None:
            raise damage
        return found

    async def bundles(self, tenant: str) -> tuple[BundleName, ...]:
        """Bundles that hold every task of the tenant that is not in the mirror any more; newest first."""
        known = self._known(tenant)
        if known is None or not self._complete(tenant, known):
            known = await self._list(tenant, lambda names: self._complete(tenant, names), 0.0)
        return known.bundles

    async def rows(
        self, names: Sequence[BundleName], before: Place | None, not_before: Place
    ) -> AsyncGenerator[ArchivedRow, None]:
        """The tasks in `names` (newest first) from before `before` down to `not_before`, newest first, each once."""
        pending = [n for n in names if n.newest >= not_before[0] and (before is None or n.oldest <= before[0])]
        pending.reverse()
        heap: list[tuple[int, int, int, int]] = []  # the place with its signs turned, number of the bundle, row
        opened: list[tuple[BundleName, Index, list[str]]] = []

        def push(bundle: int, row: int) -> None:
            index = opened[bundle][1]
            if row < len(index) and (place := index.place(row)) >= not_before:
                heapq.heappush(heap, (-place[0], -place[1], bundle, row))

        held: ArchivedRow | None = None
        while heap or pending:
            while pending and (not heap or pending[-1].newest >= -heap[0][0]):
                name = pending.pop()
                try:
                    index = await self._store.index(name)
                except NotFoundError:
                    _log.info("a bundle is gone", tenant=name.tenant, bundle=str(name))
                    continue
                opened.append((name, index, index.tasks()))
                push(len(opened) - 1, index.first_before(before))
            if not heap:
                continue
            created, create, bundle, row = heapq.heappop(heap)
            push(bundle, row + 1)
            name, index, tasks = opened[bundle]
            here = ArchivedRow((-created, -create), tasks[row], index.mod_revision(row), name, row, index)
            if held is not None and held.task != here.task:
                yield held
                held = here
            elif held is None or here.mod_revision > held.mod_revision:
                held = here
        if held is not None:
            yield held

    async def read(self, rows: Sequence[ArchivedRow]) -> list[ArchivedTask]:
        """The tasks in `rows`, in their order; those of a tenant that was deleted meanwhile are left out."""
        by_bundle: dict[BundleName, list[int]] = {}
        for row in rows:
            by_bundle.setdefault(row.bundle, []).append(row.row)
        found: dict[BundleName, dict[int, ArchivedTask]] = {}
        for name, wanted in by_bundle.items():
            try:
                found[name] = await self._store.tasks(name, wanted)
            except NotFoundError:
                _log.info("a bundle is gone", tenant=name.tenant, bundle=str(name))
                found[name] = {}
        return [found[row.bundle][row.row] for row in rows if row.row in found[row.bundle]]

    def _known(self, tenant: str) -> _Names | None:
        """The names as last listed, which count as used now."""
        if tenant in self._names:
            self._names.move_to_end(tenant)
        return self._names.get(tenant)

    def _complete(self, tenant: str, names: _Names) -> bool:
        """A task leaves etcd after its bundle is stored: names from after the last one left lack none."""
        return names.revision >= self._removed.get(tenant, self._reloaded)

    async def _list(self, tenant: str, enough: Callable[[_Names], bool], spacing: float) -> _Names:
        """Names that are `enough`; of those who ask at once, one lists."""
        lock = self._locks.setdefault(tenant, asyncio.Lock())
        async with lock:
            known = self._names.get(tenant)
            if known is not None and enough(known):
                return known
            since = self._clock.boottime() - self._listed_at.get(tenant, float("-inf"))
            if since < spacing:
                await self._clock.sleep(spacing - since)
            # Both are taken before the store is asked: what happened by then, the list shows.
            revision, call = self._mirror.state.revision, next(self._calls)
            self._listed_at[tenant] = self._clock.boottime()
            names = _Names(await self._store.names(tenant), revision, call)
            self._names[tenant] = names
            self._names.move_to_end(tenant)
        while len(self._names) > TENANTS:
            gone, _ = self._names.popitem(last=False)
            self._listed_at.pop(gone, None)
            if not self._locks[gone].locked():
                del self._locks[gone]
                self._removed.pop(gone, None)
        return names
