"""An image of etcd in memory, kept by one watch over the whole prefix.

One watch for all keys, so that what it shows is consistent: it is etcd at `state.revision`, never half of a
transaction. Every replica has one; the leader's work is driven by its changes, and lists are read from it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Sequence
from typing import Final, Protocol

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination import keys
from cloudclaw.coordination.port import CompactedError, KeyValue, Op, WatchBatch
from cloudclaw.errors import UnavailableError
from cloudclaw_scheduler.app.state import Change, State

_log = structlog.get_logger()

_LOADED: Final = (
    keys.TASKS,
    keys.QUEUE,
    keys.DELAYED,
    keys.ATTEMPTS,
    keys.NODES,
    keys.WRITERS,
    keys.WORKSPACES,
    keys.TOMBSTONES,
    keys.CONSUMERS,
    keys.DELIVERIES,
    keys.INPUTS,
    keys.EARLIER,
    keys.MODEL_KEYS,
)
_IGNORED: Final = (keys.REQUESTS, keys.SNAPSHOTS, keys.ELECTION)
_RETRY: Final = 0.5
_BREATH: Final = 500
CATCH_UP: Final = 5.0
"""Seconds that a read waits for the mirror before it gives up with `UnavailableError`."""


class Listener(Protocol):
    """Told of changes, in the order it subscribed, after the whole batch is in the mirror. Must not block."""

    def changed(self, changes: Sequence[Change]) -> None:
        """The changes of one or more whole revisions, in order."""
        ...

    def reloaded(self) -> None:
        """The mirror was read anew: anything may have changed."""
        ...


class Mirror:
    """The image and those who follow it."""

    def __init__(self, kv: KeyValue, clock: Clock) -> None:
        self._kv = kv
        self._clock = clock
        self._listeners: list[Listener] = []
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._written = 0
        self.state = State()
        self.loaded = asyncio.Event()

    def subscribe(self, listener: Listener) -> None:
        """Tell `listener` of every change from now on."""
        self._listeners.append(listener)

    def unsubscribe(self, listener: Listener) -> None:
        """Tell it no more."""
        self._listeners.remove(listener)

    async def run(self) -> None:
        """Follow etcd for ever, through outages and compactions."""
        while True:
            try:
                await self._load()
                async for batch in self._kv.watch(keys.ROOT, self.state.revision):
                    self._take(batch)
            except CompactedError as error:
                _log.warning("the watch fell behind a compaction; loading again", compacted=error.compact_revision)
            except UnavailableError as error:
                _log.warning("etcd does not answer; trying again", error=error.message)
                await self._clock.sleep(_RETRY)

    def wrote(self, revision: int) -> None:
        """This replica wrote at `revision`: its reads shall show it."""
        self._written = max(self._written, revision)

    async def caught_up(self) -> None:
        """Return when the mirror shows all that this replica wrote."""
        await self.reach(self._written)

    async def reach(self, revision: int) -> None:
        """Return when the mirror shows `revision`. `UnavailableError` after `CATCH_UP` seconds."""
        if self.state.revision >= revision and self.loaded.is_set():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (revision, next(self._order), future))
        try:
            async with asyncio.timeout(CATCH_UP):
                await future
        except TimeoutError as error:
            raise UnavailableError("this replica has not caught up with etcd; try again", retry_after=1.0) from error

    async def sync(self, key: str) -> bool:
        """Return when the mirror is as new as `key` is in etcd now; whether the key is there. `UnavailableError`.

        Not the store's revision: others may write to the same etcd, and the watch does not tell of theirs.
        """
        entry = await self._kv.get(key)
        if entry is not None:
            await self.reach(entry.mod_revision)
        return entry is not None

    async def _load(self) -> None:
        state = State()
        for prefix in _LOADED:
            result = await self._kv.range(prefix, revision=state.revision)
            state.revision = state.revision or result.revision
            for count, entry in enumerate(result.entries, 1):
                state.apply(entry, deleted=False)
                if not count % _BREATH:
                    await asyncio.sleep(0)  # a long list must not hold up heartbeats
        for pool, runtimes in self.state.pools.items():
            state.pools.setdefault(pool, set()).update(runtimes)
        self.state = state
        self.loaded.set()
        _log.info("mirror loaded", revision=state.revision, tenants=len(state.tenants), queued=len(state.queue))
        self._wake()
        for listener in tuple(self._listeners):
            listener.reloaded()

    def _take(self, batch: WatchBatch) -> None:
        changes: list[Change] = []
        state = self.state
        for event in batch.events:
            if event.entry.key.startswith(_IGNORED):
                continue
            change = state.apply(event.entry, event.op is Op.DELETE)
            if change is not None:
                changes.append(change)
        state.revision = max(state.revision, batch.revision)
        self._wake()
        if changes:
            for listener in tuple(self._listeners):
                listener.changed(changes)

    def _wake(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.state.revision:
            future = heapq.heappop(self._waiting)[2]
            if not future.done():
                future.set_result(None)
