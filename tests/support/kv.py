"""Key-value stores under contract: the same tests over the memory store and a real etcd."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Protocol

import pytest

from cloudclaw.clock import SystemClock
from cloudclaw.coordination.etcd import EtcdKeyValue
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.coordination.port import (
    Delete,
    Entry,
    Guard,
    KeyEvent,
    KeyValue,
    Put,
    RangeResult,
    TxnResult,
    WatchBatch,
    Write,
)
from cloudclaw.errors import UnavailableError
from tests.support.etcd_server import EtcdServer

WITHIN = 20.0
"""Seconds that a test waits for what must happen."""


class ManualClock:
    """A clock that a test moves. `sleep` ends when the clock has been moved far enough."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now
        self._moved = asyncio.Condition()
        self._until: list[float] = []

    def wall(self) -> float:
        return self.now

    def boottime(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        async with self._moved:
            self._until.append(until)
            self._moved.notify_all()
            try:
                await self._moved.wait_for(lambda: self.now >= until)
            finally:
                self._until.remove(until)

    async def advance(self, seconds: float) -> None:
        """Move on; every sleeper whose time has come will run."""
        async with self._moved:
            self.now += seconds
            self._moved.notify_all()

    async def asleep(self, count: int = 1) -> None:
        """Wait until `count` callers sleep, those not counted whose time has come."""
        async with asyncio.timeout(WITHIN), self._moved:
            await self._moved.wait_for(lambda: sum(until > self.now for until in self._until) >= count)


class FaultyKeyValue:
    """A store whose answers get lost where a test says so; everything else goes through."""

    def __init__(self, inner: KeyValue) -> None:
        self.inner = inner
        self.sent: Counter[str] = Counter()
        """Calls that were made, by method."""
        self._failures: Counter[tuple[str, bool]] = Counter()
        self._then: dict[str, str] = {}
        self.before_txn: Callable[[], Awaitable[None]] | None = None
        """Runs once, before the next transaction is sent: what another does in that moment."""

    def fail_next(self, call: str, *, applied: bool = False, then: str = "") -> None:
        """The next call of `call` raises `UnavailableError`, done (`applied`) or not; so does the next one of
        `then` after it."""
        self._failures[call, applied] += 1
        self._then[call] = then

    async def get(self, key: str) -> Entry | None:
        with self._call("get"):
            return await self.inner.get(key)

    async def range(
        self,
        prefix: str,
        *,
        start_after: str = "",
        limit: int = 0,
        revision: int = 0,
        newest_first: bool = False,
        keys_only: bool = False,
        created_before: int = 0,
    ) -> RangeResult:
        with self._call("range"):
            return await self.inner.range(
                prefix,
                start_after=start_after,
                limit=limit,
                revision=revision,
                newest_first=newest_first,
                keys_only=keys_only,
                created_before=created_before,
            )

    async def txn(
        self, guards: Sequence[Guard], writes: Sequence[Write], *, read_on_failure: Sequence[str] = ()
    ) -> TxnResult:
        if self.before_txn is not None:
            meanwhile, self.before_txn = self.before_txn, None
            await meanwhile()
        with self._call("txn"):
            result = await self.inner.txn(guards, writes, read_on_failure=read_on_failure)
            if self._take("txn", applied=True):
                raise UnavailableError("the answer was lost")
            return result

    def watch(self, prefix: str, after_revision: int) -> AsyncGenerator[WatchBatch, None]:
        return self.inner.watch(prefix, after_revision)

    async def grant(self, ttl: int) -> int:
        with self._call("grant"):
            return await self.inner.grant(ttl)

    async def keep_alive(self, lease: int) -> int:
        with self._call("keep_alive"):
            return await self.inner.keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        with self._call("revoke"):
            await self.inner.revoke(lease)

    async def database_size(self) -> tuple[int, int]:
        return await self.inner.database_size()

    async def close(self) -> None:
        await self.inner.close()

    @contextlib.contextmanager
    def _call(self, call: str) -> Iterator[None]:
        self.sent[call] += 1
        if self._take(call, applied=False):
            raise UnavailableError("the store did not answer")
        yield

    def _take(self, call: str, *, applied: bool) -> bool:
        if not self._failures[call, applied]:
            return False
        self._failures[call, applied] -= 1
        if then := self._then.pop(call, ""):
            self._failures[then, False] += 1
        return True


class Store(Protocol):
    """A store under contract, and what a test must be able to make happen to it."""

    @property
    def kv(self) -> KeyValue:
        """The store."""
        ...

    async def lapse(self, lease: int) -> None:
        """Let `lease` (of one second) run out, and wait until its keys are gone."""
        ...

    async def compact(self, revision: int) -> None:
        """Compact the history at `revision`."""
        ...


class MemoryStore:
    """`Store` in memory."""

    def __init__(self) -> None:
        self.kv = MemoryKeyValue(SystemClock())

    async def lapse(self, lease: int) -> None:
        self.kv.expire(lease)

    async def compact(self, revision: int) -> None:
        self.kv.compact(revision)


class EtcdStore:
    """`Store` on a real etcd."""

    def __init__(self, server: EtcdServer, kv: EtcdKeyValue) -> None:
        self.kv = kv
        self._server = server

    async def lapse(self, lease: int) -> None:
        listed = await self.kv.range("")
        left = {entry.key for entry in listed.entries if entry.lease == lease}
        async with asyncio.timeout(WITHIN), contextlib.aclosing(self.kv.watch("", listed.revision)) as batches:
            while left:
                batch = await anext(batches)
                left.difference_update(event.entry.key for event in batch.events)

    async def compact(self, revision: int) -> None:
        await self._server.compact(revision)


@contextlib.asynccontextmanager
async def etcd_store(server: EtcdServer) -> AsyncIterator[EtcdStore]:
    """An empty store on `server`."""
    kv = server.open()
    try:
        await wipe(kv)
        yield EtcdStore(server, kv)
    finally:
        await kv.close()


@contextlib.asynccontextmanager
async def store_on(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """The empty store that `request.param` names: "memory", or "etcd" by the fixture `etcd_server`."""
    if request.param == "memory":
        yield MemoryStore()
        return
    server: EtcdServer = request.getfixturevalue("etcd_server")
    async with etcd_store(server) as etcd:
        yield etcd


async def put(store: Store, *names: str, value: bytes = b"v", lease: int = 0) -> int:
    """Write the keys in one transaction; answers its revision."""
    result = await store.kv.txn([], [Put(name, value, lease) for name in names])
    assert result.succeeded
    return result.revision


async def wipe(kv: KeyValue) -> None:
    """Remove every key, by revoking leases first, so that nothing vanishes under the next test."""
    entries = (await kv.range("", keys_only=True)).entries
    for lease in {entry.lease for entry in entries if entry.lease}:
        await kv.revoke(lease)
    names = [entry.key for entry in entries if not entry.lease]
    for begin in range(0, len(names), 100):
        await kv.txn([], [Delete(name) for name in names[begin : begin + 100]])


async def collect(kv: KeyValue, prefix: str, after_revision: int, count: int) -> list[KeyEvent]:
    """The next `count` events (or a few more, of the same revision) of a watch."""
    events: list[KeyEvent] = []
    async with asyncio.timeout(WITHIN), contextlib.aclosing(kv.watch(prefix, after_revision)) as batches:
        async for batch in batches:
            assert all(event.entry.mod_revision <= batch.revision for event in batch.events)
            events.extend(batch.events)
            if len(events) >= count:
                break
    return events
