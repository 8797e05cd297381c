"""One stream of one consumer: what it takes to deliver, what it waits for, and what it gives back when it ends."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
from msgspec.structs import replace

from cloudclaw.clock import Clock
from cloudclaw.coordination import keys
from cloudclaw.coordination.port import KeyValue
from cloudclaw.coordination.records import ConsumerRecord, TaskRecord
from cloudclaw.coordination.transactions import Transactions
from cloudclaw.errors import (
    AbortedError,
    CloudClawError,
    DataLossError,
    FencedError,
    NotFoundError,
    UnavailableError,
)
from cloudclaw.v1 import task_pb2
from cloudclaw_scheduler.app.metrics import Metrics
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.results import Results
from cloudclaw_scheduler.domain.consumers import Ended, Receipt, Wish, deliverable

_log = structlog.get_logger()

BATCH: Final = 32
"""Deliveries made at once, on one lease."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """One delivery, as the stream hands it out. `visible`: when it is delivered again, in wall time."""

    result: task_pb2.Result
    receipt: Receipt
    visible: float


@dataclass(frozen=True, slots=True)
class Place:
    """A consumer as a stream found it; one deleted and made anew is another (`created`: its create revision)."""

    tenant: str
    consumer: str
    created: int


@dataclass(slots=True, eq=False)
class Pending:
    """An acknowledgement that waits for its turn: (task, token) of each delivery. Answered by `refused`, those of them
    that came too late, or by `error`."""

    receipts: list[tuple[str, int]]
    refused: set[tuple[str, int]] | None = None
    error: CloudClawError | None = None


@dataclass(frozen=True, slots=True)
class Shared:
    """What the streams and acknowledgements of one consumer on this replica have in common.

    Attributes:
        writing: held by whoever writes. Each delivery and each acknowledgement is guarded by the consumer's record, so
            those that went at once would only refuse each other.
        pending: acknowledgements that go together, as soon as `writing` is free.
        taking: tasks that a stream is about to deliver, so that the others take others.
        lapsed: revisions of results whose delivery was seen to lapse, for the metric alone.
    """

    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    pending: list[Pending] = field(default_factory=list)
    taking: set[str] = field(default_factory=set)
    lapsed: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Means:
    """What a stream works with. `check` raises once this replica is about to stop."""

    kv: KeyValue
    mirror: Mirror
    transactions: Transactions
    results: Results
    clock: Clock
    metrics: Metrics
    check: Callable[[], None]


class ResultStream:
    """Delivers until it is closed, or, draining, until nothing is left. `signal`: something may have changed."""

    def __init__(self, means: Means, place: Place, wish: Wish, shared: Shared) -> None:
        self.place = place
        self.signal = asyncio.Event()
        self._means = means
        self._wish = wish
        self._shared = shared
        self._mine: dict[str, tuple[int, int]] = {}
        """Its deliveries that are out: token and lease by task."""
        self._leases: set[int] = set()

    async def run(self) -> AsyncGenerator[Delivered, None]:
        """`NotFoundError` once the consumer is deleted; `UnavailableError` when a store is away: nothing is lost, the
        next stream goes on."""
        unsent: deque[Delivered] = deque()
        metric = self._means.metrics.deliveries
        try:
            while True:
                self._means.check()
                # Cleared before anything is read: what changes from here on is looked at in the next round.
                self.signal.clear()
                await self._forget()
                due = self._due()
                if not due and self._wish.drain:
                    return
                room = self._wish.outstanding - len(self._mine)
                if not due or room <= 0:
                    await self.signal.wait()
                    continue
                unsent.extend(await self._take(due[:room]))
                while unsent:
                    delivered = unsent.popleft()
                    again = delivered.receipt.revision in self._shared.lapsed
                    metric.labels("again" if again else "first").inc()
                    yield delivered
        finally:
            await self._give_back([delivered.receipt for delivered in unsent])
            await self._forget()

    def _record(self) -> ConsumerRecord:
        found = self._means.mirror.state.consumers.get((self.place.tenant, self.place.consumer))
        if found is None or found.create_revision != self.place.created:
            raise NotFoundError(f"consumer {self.place.consumer!r} was deleted", reason="NO_CONSUMER")
        return found.record

    async def _forget(self) -> None:
        """Deliveries that were acknowledged, or lapsed, are not out any more; a lease without any ends."""
        out = self._means.mirror.state.deliveries.get((self.place.tenant, self.place.consumer), {})
        for task, (token, _) in list(self._mine.items()):
            delivery = out.get(task)
            if delivery is None or delivery.token != token:
                del self._mine[task]
        for lease in self._leases - {lease for _, lease in self._mine.values()}:
            await self._revoke(lease)

    def _due(self) -> list[Ended]:
        """The next few that nobody has out."""
        record, state, tenant = self._record(), self._means.mirror.state, self.place.tenant
        out = state.deliveries.get((tenant, self.place.consumer), {}).keys() | self._shared.taking
        ended = state.ended_after(tenant, record.cursor)
        return list(itertools.islice(deliverable(record, ended, out), BATCH))

    async def _take(self, picked: Sequence[Ended]) -> list[Delivered]:
        """Deliver those of `picked` that no other replica has taken in this moment."""
        names = {task for _, task in picked}
        self._shared.taking.update(names)
        try:
            return await self._deliver(picked)
        finally:
            self._shared.taking.difference_update(names)

    async def _deliver(self, picked: Sequence[Ended]) -> list[Delivered]:
        means, wish = self._means, self._wish
        visible = means.clock.wall() + wish.visibility
        lease = await means.kv.grant(wish.visibility)
        self._leases.add(lease)
        whole = False
        try:
            async with self._shared.writing:
                made = await self._put(picked, lease)
            # Seen by the other streams here before they may take these again.
            await means.mirror.reach(max(made.values(), default=0))
            contents = await self._contents(list(made))
            whole = True
        finally:
            if not whole:
                await self._revoke(lease)
        delivered, gone = [], []
        for (item, token), content in zip(made.items(), contents, strict=True):
            receipt = Receipt(self.place.consumer, item[1], item[0], token)
            if content is None:
                gone.append(receipt)
            else:
                self._mine[receipt.task] = (token, lease)
                delivered.append(Delivered(content, receipt, visible))
        await self._give_back(gone)
        return delivered

    async def _put(self, picked: Sequence[Ended], lease: int) -> dict[Ended, int]:
        """Put the deliveries' keys; those that came about, with their tokens."""
        means, tenant, consumer = self._means, self.place.tenant, self.place.consumer
        answers = await asyncio.gather(
            *(means.transactions.deliver(tenant, consumer, task, revision, lease) for revision, task in picked),
            return_exceptions=True,
        )
        made: dict[Ended, int] = {}
        refused = ""
        for item, answer in zip(picked, answers, strict=True):
            if answer is None or isinstance(answer, AbortedError):
                refused = item[1]
            elif isinstance(answer, FencedError):
                raise UnavailableError("etcd took longer than the visibility timeout") from answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                made[item] = answer
        if refused:
            # Another replica delivered or acknowledged it. This one shall see that before it looks for more.
            await means.mirror.sync(keys.delivery(tenant, consumer, refused))
            await means.mirror.sync(keys.consumer(tenant, consumer))
        return made

    async def _contents(self, items: Sequence[Ended]) -> list[task_pb2.Result | None]:
        """The results; None for a task that left etcd in this moment."""
        state, tenant = self._means.mirror.state, self.place.tenant
        tasks = [state.task(tenant, task) for _, task in items]
        found = await asyncio.gather(
            *(self._content(state.whole(task.record)) for task in tasks if task is not None), return_exceptions=True
        )
        results = iter(found)
        contents: list[task_pb2.Result | None] = []
        for task in tasks:
            content = None if task is None else next(results)
            if isinstance(content, BaseException):
                raise content
            contents.append(content)
        return contents

    async def _content(self, record: TaskRecord) -> task_pb2.Result:
        """The whole result, or what its record says when the rest is lost: one loss must not hold up the others."""
        results = self._means.results
        try:
            return await results.read(record)
        except DataLossError as error:
            _log.error("a result cannot be read", tenant=record.tenant, task=record.task, error=error.message)
            rest = await results.read(replace(record, result="", result_object=""))
            rest.message = f"{rest.message}; {error.message}".removeprefix("; ")
            return rest

    async def _give_back(self, receipts: Sequence[Receipt]) -> None:
        """Take back deliveries that nobody got: their results may be delivered at once. Failing that, their lease
        ends."""
        if not receipts:
            return
        place = self.place
        try:
            await self._means.transactions.ack(
                place.tenant,
                place.consumer,
                [(receipt.task, receipt.token) for receipt in receipts],
                lambda record, _: record,
            )
        except (UnavailableError, AbortedError, NotFoundError) as error:
            _log.info("deliveries wait for their lease to end", tenant=place.tenant, error=error.message)

    async def _revoke(self, lease: int) -> None:
        self._leases.discard(lease)
        try:
            await self._means.kv.revoke(lease)
        except UnavailableError as error:
            _log.info("a lease of deliveries ends by itself", lease=f"{lease:x}", error=error.message)
