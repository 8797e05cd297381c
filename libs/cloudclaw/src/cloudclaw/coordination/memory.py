"""The key-value port in one process: revisions, guards, leases, watches and compaction as etcd has them."""

from __future__ import annotations

import asyncio
import bisect
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from cloudclaw.clock import Clock
from cloudclaw.coordination.port import (
    MAX_OPERATIONS,
    Absent,
    CompactedError,
    CreateIs,
    Delete,
    Entry,
    Exists,
    Guard,
    KeyEvent,
    LeaseLostError,
    ModIs,
    Op,
    Put,
    RangeResult,
    TxnResult,
    ValueIs,
    WatchBatch,
    Write,
)
from cloudclaw.errors import OutOfRangeError, UnavailableError


@dataclass(slots=True)
class _Lease:
    ttl: int
    expires: float
    keys: set[str] = field(default_factory=set)


class MemoryKeyValue:
    """`KeyValue` for tests.

    Leases end when `clock.boottime()` passes their expiry; that is looked at by every call and by waiting watches,
    and by `tick()` for tests that move a clock by hand. `outage` and `fail_next` make calls fail as an unreachable
    store does.
    """

    def __init__(self, clock: Clock) -> None:
        self._outage = False
        self._clock = clock
        self._revision = 1
        self._compacted = 0
        self._live: dict[str, Entry] = {}
        self._keys: list[str] = []
        """Every key that has a history, sorted."""
        self._history: dict[str, list[tuple[int, Entry | None]]] = {}
        self._log: list[WatchBatch] = []
        self._leases: dict[int, _Lease] = {}
        self._next_lease = 0x1000
        self._changed: set[asyncio.Event] = set()
        self._failures: Counter[tuple[str, bool]] = Counter()

    # -- hooks for tests --

    @property
    def outage(self) -> bool:
        """While True every call raises `UnavailableError` and watches stand still. Leases go on running out, as
        they do for a client that is cut off."""
        return self._outage

    @outage.setter
    def outage(self, away: bool) -> None:
        self._outage = away
        self._wake()

    def fail_next(self, call: str, *, applied: bool = False, times: int = 1) -> None:
        """Let the next `times` calls of the method `call` raise `UnavailableError`, done (`applied`) or not."""
        self._failures[call, applied] += times

    def heal(self) -> None:
        """No outage, and no failures that are still to come."""
        self._failures.clear()
        self.outage = False

    def expire(self, lease: int) -> None:
        """End a lease as if its time were over."""
        self._end_lease(lease)

    def tick(self) -> None:
        """End the leases whose time is over by the clock."""
        now = self._clock.boottime()
        for lease in [lease for lease, held in self._leases.items() if held.expires <= now]:
            self._end_lease(lease)

    def compact(self, revision: int) -> None:
        """Forget what was overwritten or deleted at or before `revision`."""
        if not self._compacted < revision <= self._revision:
            raise OutOfRangeError(f"cannot compact to {revision}: {self._compacted} to {self._revision} is kept")
        self._compacted = revision
        for key in list(self._history):
            versions = self._history[key]
            first = max(0, bisect.bisect_right(versions, revision, key=lambda version: version[0]) - 1)
            if versions[first][0] <= revision and versions[first][1] is None:
                first += 1
            self._history[key] = versions[first:]
            if not self._history[key]:
                del self._history[key]
                self._keys.remove(key)
        self._log = [batch for batch in self._log if batch.revision >= revision]

    # -- the port --

    async def get(self, key: str) -> Entry | None:
        self._before("get")
        return self._live.get(key)

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
        self._before("range")
        if revision and revision < self._compacted:
            raise CompactedError(self._compacted)
        if revision > self._revision:
            raise OutOfRangeError(f"revision {revision} is still to come; the store is at {self._revision}")
        entries = []
        for index in range(bisect.bisect_left(self._keys, max(prefix, start_after)), len(self._keys)):
            key = self._keys[index]
            if not key.startswith(prefix):
                break
            entry = self._at(key, revision) if revision else self._live.get(key)
            if entry is None or key == start_after or (created_before and entry.create_revision >= created_before):
                continue
            if keys_only:
                entry = Entry(entry.key, b"", entry.create_revision, entry.mod_revision, entry.lease)
            entries.append(entry)
        if newest_first:
            entries.sort(key=lambda entry: -entry.create_revision)
        more = bool(limit) and len(entries) > limit
        return RangeResult(entries[:limit] if limit else entries, revision or self._revision, more)

    async def txn(
        self, guards: Sequence[Guard], writes: Sequence[Write], *, read_on_failure: Sequence[str] = ()
    ) -> TxnResult:
        lose_answer = self._before("txn")
        keys = [write.key for write in writes]
        if len(set(keys)) != len(keys):
            raise ValueError(f"a transaction may write a key once only: {keys}")
        if max(len(guards), len(writes), len(read_on_failure)) > MAX_OPERATIONS:
            raise ValueError(f"more than {MAX_OPERATIONS} operations in a transaction")
        if not all(map(self._holds, guards)):
            result = TxnResult(False, self._revision, [self._live[key] for key in read_on_failure if key in self._live])
        else:
            for write in writes:
                if isinstance(write, Put) and write.lease and write.lease not in self._leases:
                    raise LeaseLostError(f"lease {write.lease:x} is gone")
            self._apply(writes)
            result = TxnResult(True, self._revision)
        if lose_answer:
            raise UnavailableError("the answer was lost (fail_next)")
        return result

    async def watch(self, prefix: str, after_revision: int) -> AsyncGenerator[WatchBatch, None]:
        changed = asyncio.Event()
        self._changed.add(changed)
        seen = after_revision
        try:
            while True:
                if seen + 1 < self._compacted and not self.outage:
                    raise CompactedError(self._compacted)
                changed.clear()
                first = len(self._log) if self.outage else self._first_after(seen)
                for batch in self._log[first:]:
                    seen = batch.revision
                    events = [event for event in batch.events if event.entry.key.startswith(prefix)]
                    if events:
                        yield WatchBatch(batch.revision, events)
                if self._first_after(seen) == len(self._log) or self.outage:
                    await self._wait(changed)
        finally:
            self._changed.discard(changed)

    async def grant(self, ttl: int) -> int:
        lose_answer = self._before("grant")
        self._next_lease += 1
        self._leases[self._next_lease] = _Lease(ttl, self._clock.boottime() + ttl)
        self._wake()
        if lose_answer:
            raise UnavailableError("the answer was lost (fail_next)")
        return self._next_lease

    async def keep_alive(self, lease: int) -> int:
        lose_answer = self._before("keep_alive")
        held = self._leases.get(lease)
        if held is None:
            raise LeaseLostError(f"lease {lease:x} is gone")
        held.expires = self._clock.boottime() + held.ttl
        if lose_answer:
            raise UnavailableError("the answer was lost (fail_next)")
        return held.ttl

    async def revoke(self, lease: int) -> None:
        lose_answer = self._before("revoke")
        self._end_lease(lease)
        if lose_answer:
            raise UnavailableError("the answer was lost (fail_next)")

    async def database_size(self) -> tuple[int, int]:
        self._before("database_size")
        return sum(len(entry.key) + len(entry.value) for entry in self._live.values()), 0

    async def close(self) -> None:
        """Nothing to release."""

    # -- inside --

    def _before(self, call: str) -> bool:
        """Raise when the call is to fail unapplied; True when its answer is to be lost."""
        if self.outage:
            raise UnavailableError("the store is away (outage)")
        if self._failures[call, False]:
            self._failures[call, False] -= 1
            raise UnavailableError("the store did not answer (fail_next)")
        self.tick()
        if self._failures[call, True]:
            self._failures[call, True] -= 1
            return True
        return False

    def _at(self, key: str, revision: int) -> Entry | None:
        versions = self._history[key]
        index = bisect.bisect_right(versions, revision, key=lambda version: version[0])
        return versions[index - 1][1] if index else None

    def _holds(self, guard: Guard) -> bool:
        entry = self._live.get(guard.key)
        match guard:
            case Exists():
                return entry is not None
            case Absent():
                return entry is None
            case ModIs(revision=revision):
                return (entry.mod_revision if entry else 0) == revision
            case CreateIs(revision=revision):
                return (entry.create_revision if entry else 0) == revision
            case ValueIs(value=value):
                return entry is not None and entry.value == value

    def _apply(self, writes: Sequence[Write]) -> None:
        effective = [write for write in writes if isinstance(write, Put) or write.key in self._live]
        if not effective:
            return
        self._revision += 1
        events = [self._put(write) if isinstance(write, Put) else self._delete(write) for write in effective]
        self._log.append(WatchBatch(self._revision, events))
        self._wake()

    def _wake(self) -> None:
        for changed in self._changed:
            changed.set()

    def _put(self, write: Put) -> KeyEvent:
        before = self._live.get(write.key)
        if before is not None and before.lease:
            self._leases[before.lease].keys.discard(write.key)
        if write.lease:
            self._leases[write.lease].keys.add(write.key)
        created = before.create_revision if before else self._revision
        entry = Entry(write.key, write.value, created, self._revision, write.lease)
        self._live[write.key] = entry
        self._remember(write.key, entry)
        return KeyEvent(Op.PUT, entry)

    def _delete(self, write: Delete) -> KeyEvent:
        before = self._live.pop(write.key)
        if before.lease in self._leases:
            self._leases[before.lease].keys.discard(write.key)
        self._remember(write.key, None)
        return KeyEvent(Op.DELETE, Entry(write.key, b"", 0, self._revision))

    def _remember(self, key: str, entry: Entry | None) -> None:
        if key not in self._history:
            bisect.insort(self._keys, key)
            self._history[key] = []
        self._history[key].append((self._revision, entry))

    def _end_lease(self, lease: int) -> None:
        held = self._leases.pop(lease, None)
        if held is not None:
            self._apply([Delete(key) for key in sorted(held.keys)])

    def _first_after(self, revision: int) -> int:
        return bisect.bisect_right(self._log, revision, key=lambda batch: batch.revision)

    async def _wait(self, changed: asyncio.Event) -> None:
        """Until something changed, or a lease may have run out."""
        patience = None
        if self._leases:
            patience = max(0.01, min(held.expires for held in self._leases.values()) - self._clock.boottime())
        try:
            async with asyncio.timeout(patience):
                await changed.wait()
        except TimeoutError:
            self.tick()
