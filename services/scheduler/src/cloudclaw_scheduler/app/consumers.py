"""Results for consumers: delivered as tasks end, again when nobody acknowledged them, until somebody has.

All of it is state in etcd, so any replica serves any stream, and none has to outlive anything: what a consumer has
acknowledged is its record; what is being delivered is a key on a lease whose time is the visibility timeout. When that
key vanishes without an acknowledgement, every replica's mirror sees it, and the result is delivered again. No clocks
are compared, and no leader is needed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination import keys
from cloudclaw.coordination.port import KeyValue
from cloudclaw.coordination.records import ConsumerRecord
from cloudclaw.coordination.transactions import Transactions, Versioned
from cloudclaw.errors import AbortedError, CloudClawError, NotFoundError, UnavailableError
from cloudclaw.ids import new_id
from cloudclaw_scheduler.app.deliveries import Delivered, Means, Pending, Place, ResultStream, Shared
from cloudclaw_scheduler.app.metrics import Metrics
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.results import Results
from cloudclaw_scheduler.app.state import Change, Delivery, Kind, TaskKey
from cloudclaw_scheduler.domain.consumers import Receipt, Wish, acknowledge, is_acked, unacknowledged

_log = structlog.get_logger()

COUNTED: Final = 10_000
"""A backlog is counted so far and no further."""
DRAIN_WAIT: Final = 1.0
"""Seconds that a drain waits at most for the mirror to show what was written before it. Where others write to the same
etcd, its revision alone is never shown."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a consumer stands."""

    name: str
    record: ConsumerRecord
    backlog: int


class Consumers:
    """Streams, acknowledgements and standings; the same on every replica."""

    def __init__(
        self,
        kv: KeyValue,
        mirror: Mirror,
        transactions: Transactions,
        results: Results,
        clock: Clock,
        metrics: Metrics,
        hold: float,
    ) -> None:
        """`hold`: seconds that an idle consumer's results are kept at hand for it."""
        self._kv = kv
        self._mirror = mirror
        self._transactions = transactions
        self._clock = clock
        self._metrics = metrics
        self._hold = hold
        self._means = Means(kv, mirror, transactions, results, clock, metrics, self._check)
        self._streams: dict[str, set[ResultStream]] = {}
        self._shared: dict[TaskKey, Shared] = {}
        self._stopped = False
        mirror.subscribe(self)

    # -- what users call --

    async def stream(self, tenant: str, wish: Wish) -> AsyncGenerator[Delivered, None]:
        """Deliver results, for a consumer that is made by the first stream. `QuotaExceededError` when there are too
        many; else as `ResultStream.run`."""
        place = await self._open(tenant, wish)
        shared = self._shared.setdefault((tenant, wish.consumer), Shared())
        stream = ResultStream(self._means, place, wish, shared)
        streams = self._streams.setdefault(tenant, set())
        streams.add(stream)
        try:
            with self._metrics.result_streams.track_inprogress():
                async with aclosing(stream.run()) as deliveries:
                    async for delivered in deliveries:
                        yield delivered
        finally:
            streams.discard(stream)
            if not streams and self._streams.get(tenant) is streams:
                del self._streams[tenant]
            # What this one was about to deliver, another may.
            for other in self._of((tenant, wish.consumer)):
                other.signal.set()

    async def ack(self, tenant: str, consumer: str, receipts: Sequence[Receipt]) -> list[Receipt]:
        """Acknowledge; answers the receipts that came too late, and those that are not this consumer's.

        A receipt whose result is acknowledged already, by itself or by a later delivery's, is not too late.
        `NotFoundError`: no such consumer.
        """
        named = {(receipt.task, receipt.token): receipt for receipt in receipts if receipt.consumer == consumer}
        refused = await self._ack((tenant, consumer), list(named)) if named else set()
        late = {named[receipt] for receipt in refused}
        if late or not named:
            record = (await self._get(tenant, consumer)).record
            late = {receipt for receipt in late if not is_acked(record, receipt.revision)}
        expired = [receipt for receipt in receipts if receipt.consumer != consumer or receipt in late]
        outcomes = self._metrics.acks
        outcomes.labels("acked").inc(len(named) - len(refused))
        outcomes.labels("repeated").inc(len(refused) - len(late))
        outcomes.labels("expired").inc(len(expired))
        return expired

    async def standings(self, tenant: str) -> list[Standing]:
        """The tenant's consumers, by name."""
        found = await self._transactions.list_consumers(tenant)
        await self._mirror.reach(max((consumer.mod_revision for consumer in found.values()), default=0))
        return [Standing(name, found[name].record, self._backlog(tenant, found[name].record)) for name in sorted(found)]

    async def delete(self, tenant: str, consumer: str) -> None:
        """Forget a consumer; its open streams end with `NotFoundError`, as this does when there is none."""
        await self._transactions.delete_consumer(tenant, consumer)

    # -- for the archiver --

    def held(self, tenant: str) -> int | None:
        """The tenant's results that ended after this revision are still wanted by a consumer; None: none is.

        A consumer counts as idle, and holds nothing, once its oldest result has waited for `hold` seconds, and it has
        acknowledged nothing for as long.
        """
        now, state = self._clock.wall(), self._mirror.state
        wanted = []
        for (owner, _), consumer in state.consumers.items():
            record = consumer.record
            if owner != tenant:
                continue
            first = next(unacknowledged(record, state.ended_after(tenant, record.cursor)), None)
            task = state.task(tenant, first[1]) if first else None
            if first and task and now - max(record.updated, task.record.updated) <= self._hold:
                wanted.append(first[0] - 1)
        return min(wanted, default=None)

    # -- what the mirror tells --

    def changed(self, changes: Sequence[Change]) -> None:
        woken: set[ResultStream] = set()
        touched: set[TaskKey] = set()
        for change in changes:
            value = change.value
            if change.kind is Kind.TASK and isinstance(value, Versioned):
                if value.record.state.ended:
                    woken |= self._streams.get(value.record.tenant, set())
            elif change.kind is Kind.CONSUMER and isinstance(value, tuple):
                touched.add(value)
            elif change.kind is Kind.UNDELIVERED and isinstance(value, Delivery):
                key = (value.tenant, value.consumer)
                touched.add(key)
                if key in self._shared:
                    self._shared[key].lapsed.add(value.revision)
        for key in touched:
            woken |= self._of(key)
            self._settled(key)
        for stream in woken:
            stream.signal.set()

    def reloaded(self) -> None:
        self._wake_all()

    async def stop(self) -> None:
        """This replica is about to stop: its streams end, and go on elsewhere."""
        self._stopped = True
        self._wake_all()

    # -- inside --

    def _check(self) -> None:
        if self._stopped:
            raise UnavailableError("this replica is stopping; go on elsewhere", retry_after=0.2, reason="STOPPING")

    def _wake_all(self) -> None:
        for streams in self._streams.values():
            for stream in streams:
                stream.signal.set()

    def _of(self, key: TaskKey) -> set[ResultStream]:
        return {stream for stream in self._streams.get(key[0], ()) if stream.place.consumer == key[1]}

    def _settled(self, key: TaskKey) -> None:
        """What is acknowledged has not lapsed."""
        shared, consumer = self._shared.get(key), self._mirror.state.consumers.get(key)
        if consumer is None:
            self._shared.pop(key, None)
        elif shared is not None and shared.lapsed:
            record = consumer.record
            shared.lapsed.difference_update(record.acked)
            shared.lapsed.difference_update([r for r in shared.lapsed if r <= record.cursor])

    async def _open(self, tenant: str, wish: Wish) -> Place:
        """The consumer, made if there is none, once the mirror shows it."""
        self._check()
        found = await self._transactions.get_consumer(tenant, wish.consumer)
        shown = 0
        if found is None or wish.drain:
            listed = await self._kv.range(keys.consumer(tenant, wish.consumer), limit=1, keys_only=True)
            shown = listed.revision
        if found is None:
            now = self._clock.wall()
            cursor = 0 if wish.from_oldest else shown
            record = ConsumerRecord(created=now, updated=now, op_id=new_id("op"), cursor=cursor)
            found = await self._transactions.register_consumer(tenant, wish.consumer, record)
            _log.info("a consumer of results begins", tenant=tenant, consumer=wish.consumer, cursor=cursor)
        if wish.drain:
            await self._show(shown)
        await self._mirror.reach(found.mod_revision)
        return Place(tenant, wish.consumer, found.create_revision)

    async def _show(self, revision: int) -> None:
        try:
            async with asyncio.timeout(DRAIN_WAIT):
                await self._mirror.reach(revision)
        except TimeoutError:
            _log.debug("the last write to etcd was not CloudClaw's", revision=revision)

    async def _ack(self, key: TaskKey, receipts: list[tuple[str, int]]) -> set[tuple[str, int]]:
        """Those that were refused. What waits here for the same consumer meanwhile goes in one transaction."""
        shared = self._shared.setdefault(key, Shared())
        pending = shared.pending
        mine = Pending(receipts)
        pending.append(mine)
        async with shared.writing:
            if mine in pending:
                batch = pending[:]
                pending.clear()
                try:
                    await self._ack_all(key, batch)
                finally:
                    # Cancelled half-way: the others, which all wait for the lock, are taken by the next of them.
                    pending += [each for each in batch if each.refused is None and each.error is None]
                    if mine in pending:
                        pending.remove(mine)
        if mine.error is not None:
            raise mine.error
        return mine.refused or set()

    async def _ack_all(self, key: TaskKey, batch: Sequence[Pending]) -> None:
        tenant, consumer = key
        receipts = [receipt for each in batch for receipt in each.receipts]
        try:
            refused = await self._transactions.ack(
                tenant, consumer, receipts, lambda record, revisions: self._after(tenant, record, revisions)
            )
        except CloudClawError as error:
            if isinstance(error, NotFoundError):
                self._shared.pop(key, None)  # names that are nobody's must not add up
            elif isinstance(error, AbortedError):  # other replicas write all the time
                error = UnavailableError(error.message, retry_after=0.1, reason="CONSUMER_BUSY")
            for each in batch:
                each.error = error
        else:
            for each in batch:
                each.refused = set(refused).intersection(each.receipts)

    async def _get(self, tenant: str, consumer: str) -> Versioned[ConsumerRecord]:
        found = await self._transactions.get_consumer(tenant, consumer)
        if found is None:
            raise NotFoundError(f"no consumer {consumer!r}", reason="NO_CONSUMER", metadata={"consumer": consumer})
        return found

    def _after(self, tenant: str, record: ConsumerRecord, revisions: Sequence[int]) -> ConsumerRecord:
        state = self._mirror.state
        ended = state.ended_after(tenant, record.cursor)
        return acknowledge(record, revisions, ended, state.revision, self._clock.wall())

    def _backlog(self, tenant: str, record: ConsumerRecord) -> int:
        ended = self._mirror.state.ended_after(tenant, record.cursor)
        return sum(1 for _ in itertools.islice(unacknowledged(record, ended), COUNTED))
