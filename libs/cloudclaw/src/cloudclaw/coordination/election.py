"""Leader election: candidates queue up by create revision, and the oldest living key leads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination import keys
from cloudclaw.coordination.lease import NodeLease
from cloudclaw.coordination.port import (
    Absent,
    CompactedError,
    CreateIs,
    Delete,
    Entry,
    Guard,
    KeyEvent,
    KeyValue,
    LeaseLostError,
    Op,
    Put,
    ValueIs,
)
from cloudclaw.coordination.records import LeaderRecord, decode, encode
from cloudclaw.errors import AbortedError, UnavailableError

_log = structlog.get_logger(__name__)

RETRY: Final = 0.5
RESIGN_DEADLINE: Final = 1.0


class Leadership:
    """One term of one leader.

    Attributes:
        key: our election key.
        term: create revision of the election key; higher than that of every leader before.
        lost: set when another may lead: our key is gone, or could be for all we know.
    """

    def __init__(self, key: str, term: int) -> None:
        self.key = key
        self.term = term
        self.lost = asyncio.Event()

    def guard(self) -> Guard:
        """Holds in the store for as long as this term does."""
        return CreateIs(self.key, self.term)


class Election:
    """One candidate of `service`, reachable for clients at `address` (host:port, unique among candidates).

    Terms rise: a candidate leads when no living key is older than its own, so the next leader's key is younger.
    """

    def __init__(self, kv: KeyValue, clock: Clock, service: str, address: str, ttl: int = 10) -> None:
        self._kv = kv
        self._clock = clock
        self._service = service
        self._prefix = f"{keys.ELECTION}{service}/"
        self._address = address
        self._ttl = ttl
        self._candidates: dict[str, Entry] = {}
        self._shown = 0
        """Revision that `_candidates` shows."""
        self._leader: tuple[str, int] | None = None
        self._leader_key = ""
        self._changed = asyncio.Condition()

    def leader(self) -> tuple[str, int] | None:
        """(address, term) of the leader as last seen, by followers too; None while there is none."""
        return self._leader

    async def changed(self) -> None:
        """Wait until `leader()` may have changed."""
        async with self._changed:
            await self._changed.wait()

    async def run(self, lead: Callable[[Leadership], Awaitable[None]]) -> None:
        """Campaign for ever; while leader run `lead`, and cancel it when leadership is lost.

        Leadership counts as lost once the store says so, and also when no renewal got through for the TTL: nodes
        must not go on listening to a leader that cannot commit anything while another is elected. When `lead`
        returns, or fails with `UnavailableError` or `AbortedError`, the candidate resigns and queues up anew; any
        other error of it ends the campaign (raised in an `ExceptionGroup`). Cancelled, the candidate resigns at
        once by revoking its lease.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._observe())
            while True:
                try:
                    await self._campaign(lead)
                except* (UnavailableError, LeaseLostError, AbortedError) as errors:
                    _log.warning("the candidacy failed; trying again", service=self._service, errors=_leaves(errors))
                await self._clock.sleep(RETRY)

    async def _campaign(self, lead: Callable[[Leadership], Awaitable[None]]) -> None:
        """One candidacy: until it fails, or leadership is lost or given up."""
        await self._remove_own_stale_keys()
        lease = NodeLease(self._kv, self._clock, self._ttl)
        await lease.acquire()
        try:
            leadership = await self._stand(lease)
            async with asyncio.TaskGroup() as group:
                renewal = group.create_task(lease.run())
                watchdog = group.create_task(self._notice_loss(leadership, lease))
                if await self._elected(leadership):
                    _log.info("leading", service=self._service, term=leadership.term)
                    await self._lead(lead, leadership)
                    _log.info("no longer leading", service=self._service, term=leadership.term)
                renewal.cancel()
                watchdog.cancel()
        finally:
            await self._resign(lease)

    async def _remove_own_stale_keys(self) -> None:
        """Keys of earlier runs at this address: that process is gone (the address is ours now), or fenced by this.

        So a restarted leader need not wait for its old lease. Guarded by value, never another candidate's.
        """
        value = encode(LeaderRecord(address=self._address))
        for entry in (await self._kv.range(self._prefix)).entries:
            if entry.value == value:
                guards: list[Guard] = [ValueIs(entry.key, value), CreateIs(entry.key, entry.create_revision)]
                await self._kv.txn(guards, [Delete(entry.key)])

    async def _stand(self, lease: NodeLease) -> Leadership:
        key = keys.election(self._service, lease.lease_id)
        value = encode(LeaderRecord(address=self._address))
        result = await self._kv.txn([Absent(key)], [Put(key, value, lease.lease_id)])
        if not result.succeeded:
            raise AbortedError(f"{key} exists, and its lease is new")
        return Leadership(key, result.revision)

    async def _elected(self, leadership: Leadership) -> bool:
        """Wait until no older candidate lives; False when the candidacy was lost first."""
        async with self._changed:
            await self._changed.wait_for(lambda: leadership.lost.is_set() or self._leader_key == leadership.key)
        return not leadership.lost.is_set()

    async def _lead(self, lead: Callable[[Leadership], Awaitable[None]], leadership: Leadership) -> None:
        """Run `lead` until it ends or leadership does; it has wound up when this returns."""

        async def leading() -> None:
            await lead(leadership)

        async with asyncio.TaskGroup() as group:
            work = group.create_task(leading())
            loss = group.create_task(leadership.lost.wait())
            try:
                await asyncio.wait([work, loss], return_when=asyncio.FIRST_COMPLETED)
            finally:
                leadership.lost.set()
                work.cancel()
                loss.cancel()

    async def _notice_loss(self, leadership: Leadership, lease: NodeLease) -> None:
        """Set `lost` when our key went, our lease did, or our lease may have gone."""

        async def key_gone() -> None:
            async with self._changed:
                await self._changed.wait_for(
                    lambda: self._shown >= leadership.term and leadership.key not in self._candidates
                )

        async def lease_outlived() -> None:
            while (left := lease.last_renewal_sent + lease.ttl - self._clock.boottime()) > 0:
                await self._clock.sleep(left)

        async def lease_lost() -> None:
            await lease.lost.wait()

        async with asyncio.TaskGroup() as group:
            causes = [group.create_task(cause()) for cause in (key_gone, lease_outlived, lease_lost)]
            await asyncio.wait(causes, return_when=asyncio.FIRST_COMPLETED)
            for cause in causes:
                cause.cancel()
        leadership.lost.set()
        async with self._changed:
            self._changed.notify_all()

    async def _resign(self, lease: NodeLease) -> None:
        """Give the lease back, so that the next candidate need not wait for its end; bounded, and through a
        cancellation."""
        try:
            async with asyncio.timeout(RESIGN_DEADLINE):
                await lease.release()
        except (UnavailableError, TimeoutError):
            _log.info("could not resign; the lease ends by itself", service=self._service)

    async def _observe(self) -> None:
        """Keep the candidates current, through outages and compactions."""
        while True:
            try:
                listed = await self._kv.range(self._prefix)
                await self._show({entry.key: entry for entry in listed.entries}, listed.revision)
                watch = self._kv.watch(self._prefix, listed.revision)
                async with contextlib.aclosing(watch) as batches:
                    async for batch in batches:
                        await self._show(_applied(self._candidates, batch.events), batch.revision)
            except CompactedError:
                _log.info("the watch on the candidates was compacted; listing them again", service=self._service)
            except UnavailableError:
                await self._clock.sleep(RETRY)

    async def _show(self, candidates: dict[str, Entry], revision: int) -> None:
        first = min(candidates.values(), key=lambda entry: entry.create_revision, default=None)
        async with self._changed:
            self._candidates, self._shown = candidates, revision
            self._leader_key = first.key if first is not None else ""
            self._leader = (decode(first.value, LeaderRecord).address, first.create_revision) if first else None
            self._changed.notify_all()


def _leaves(group: BaseExceptionGroup[Exception]) -> list[str]:
    """What the errors in the group, and in the groups within it, say."""
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [str(error)])
    ]


def _applied(candidates: dict[str, Entry], events: Sequence[KeyEvent]) -> dict[str, Entry]:
    after = dict(candidates)
    for event in events:
        if event.op is Op.PUT:
            after[event.entry.key] = event.entry
        else:
            after.pop(event.entry.key, None)
    return after
