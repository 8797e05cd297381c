"""Recovery: what has ended without a word, and what is due (rules 4, 9 and the sweep of design §5). Leader only.

Driven by the mirror's changes; a sweep every few seconds and at the start of each term finds what was missed, for
instance because etcd or the object store did not answer at the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination import keys, life
from cloudclaw.coordination.port import Entry
from cloudclaw.coordination.records import EndReason, TaskRecord, TaskState
from cloudclaw.coordination.transactions import Transactions, Versioned
from cloudclaw.errors import AbortedError, CloudClawError, FencedError, PreconditionError
from cloudclaw.ids import new_id
from cloudclaw_scheduler.app.leading import Leading
from cloudclaw_scheduler.app.logs import LogHub
from cloudclaw_scheduler.app.metrics import Metrics
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.spawner import Spawner
from cloudclaw_scheduler.app.state import Attempt, Change, Delayed, Kind, Queued, TaskKey
from cloudclaw_scheduler.app.timers import Timers

_log = structlog.get_logger()

SWEEP_EVERY: Final = 3.0
AT_ONCE: Final = 32
_RETRY: Final = 0.5


class Recovery:
    """Expires attempts whose lease is gone, requeues those of silent nodes, ends what waited too long."""

    def __init__(
        self,
        mirror: Mirror,
        leading: Leading,
        transactions: Transactions,
        hub: LogHub,
        timers: Timers,
        spawner: Spawner,
        clock: Clock,
        metrics: Metrics,
        wake: Callable[[Versioned[TaskRecord]], Awaitable[bool]],
    ) -> None:
        """`wake`: what is done with a parked task that is due (`Conversations.wake`)."""
        self._mirror = mirror
        self._leading = leading
        self._transactions = transactions
        self._hub = hub
        self._timers = timers
        self._spawner = spawner
        self._clock = clock
        self._metrics = metrics
        self._wake = wake
        self._busy: set[TaskKey] = set()
        self._slots = asyncio.Semaphore(AT_ONCE)

    def reloaded(self) -> None:
        """Start anew from the mirror: timers, and a sweep."""
        self._timers.clear()
        state = self._mirror.state
        for delayed in state.delayed.values():
            self._delayed(delayed)
        for queued in state.queue.values():
            self._queued(queued)
        self._hub.retain({attempt.uid for held in state.attempts.values() for attempt in held.values()})
        self.sweep()

    def changed(self, changes: Sequence[Change]) -> None:
        for change in changes:
            value = change.value
            if change.kind is Kind.RELEASED:
                assert isinstance(value, Attempt)
                task = self._mirror.state.task(*value.key)
                if task is None or task.record.uid != value.uid:
                    self._hub.close(value.uid)
                else:
                    self._start(value.key)
            elif change.kind is Kind.DELAYED:
                assert isinstance(value, Delayed)
                self._delayed(value)
            elif change.kind is Kind.QUEUED:
                assert isinstance(value, Queued)
                self._queued(value)

    def sweep(self) -> None:
        """Expire every RUNNING task without a lease."""
        state = self._mirror.state
        for key in tuple(state.running):
            task = state.task(*key)
            if task is not None and state.attempt(task.record.node, *key) is None:
                self._start(key)

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            await self._clock.sleep(SWEEP_EVERY)
            self.sweep()

    # -- lost attempts --

    def _start(self, key: TaskKey) -> None:
        if key not in self._busy:
            self._busy.add(key)
            self._spawner.spawn(self._expire(key))

    async def _expire(self, key: TaskKey) -> None:
        try:
            async with self._slots:
                state = self._mirror.state
                task = state.task(*key)
                if task is None or task.record.state is not TaskState.RUNNING:
                    return
                record = task.record
                if state.attempt(record.node, *key) is not None:
                    return
                end = await self._hub.hold(record.tenant, record.uid)
                after = life.lost(
                    record, self._clock.wall(), message=f"the lease of node {record.node} ended", log_end=end,
                    op_id=new_id("op"),
                )  # fmt: skip
                try:
                    await self._transactions.expire(self._leading.guard(), task, after)
                except CloudClawError as error:
                    # The sweep comes back to it, with what is true then.
                    self._hub.release(record.uid)
                    _log.info("not expired", tenant=key[0], task=key[1], error=error.message)
                    return
                self._done(record, after, "lease")
        finally:
            self._busy.discard(key)

    async def requeue_silent(self, node: str, entry: Entry, silent: Callable[[], bool]) -> bool:
        """Take all attempts of a silent node back (rule 4); True when none is left. `entry` is the node's key as it
        was when the node was found silent; it guards every transaction. `silent` is asked before each of them."""
        attempts = tuple(self._mirror.state.attempts.get(node, {}).values())
        await asyncio.gather(*(self._requeue(attempt, entry, silent) for attempt in attempts))
        for attempt in attempts:
            await self._mirror.sync(keys.task(*attempt.key))
        return not self._mirror.state.attempts.get(node)

    async def _requeue(self, attempt: Attempt, entry: Entry, silent: Callable[[], bool]) -> None:
        key = attempt.key
        if key in self._busy:
            return
        self._busy.add(key)
        try:
            async with self._slots:
                end = await self._hub.hold(attempt.tenant, attempt.uid)
                task = await self._transactions.get_task(*key)
                if task is None or task.record.uid != attempt.uid:
                    return
                if not silent():
                    self._hub.release(attempt.uid)
                    return
                after = life.lost(
                    task.record, self._clock.wall(), message=f"node {attempt.node} fell silent", log_end=end,
                    op_id=new_id("op"), token=attempt.revision,
                )  # fmt: skip
                await self._transactions.requeue_early(self._leading.guard(), attempt.token, task, after, entry)
                self._done(task.record, after, "silence")
        except CloudClawError as error:
            # Whatever it was: the log must not stay held, or the attempt could never finish.
            self._hub.release(attempt.uid)
            _log.info("not requeued", tenant=key[0], task=key[1], node=attempt.node, error=error.message)
        finally:
            self._busy.discard(key)

    async def unclaim(self, attempt: Attempt, message: str) -> None:
        """The node has no slot for it after all, and started nothing: the attempt is given back (rule 9)."""
        for _ in range(3):
            task = await self._transactions.get_task(*attempt.key)
            if task is None or task.record.uid != attempt.uid:
                return
            try:
                after = life.unclaimed(task.record, self._clock.wall(), op_id=new_id("op"), message=message)
                await self._transactions.unclaim(self._leading.guard(), attempt.token, task, after)
            except AbortedError:
                continue  # a cancel came between: once more with what is there now
            except FencedError:
                return
            except PreconditionError as error:
                _log.warning("not given back", tenant=attempt.tenant, task=attempt.task, error=error.message)
                return
            self._hub.close(attempt.uid)
            self._metrics.requeued.labels("unclaim").inc()
            _log.info("given back", tenant=attempt.tenant, task=attempt.task, node=attempt.node, message=message)
            return

    def _done(self, before: TaskRecord, after: TaskRecord, cause: str) -> None:
        self._hub.close(before.uid)
        end = after.attempts[-1]
        self._metrics.attempts.labels(end.state.value, end.reason.value if end.reason else "").inc()
        if after.state.ended:
            self._metrics.ended.labels(after.state.value).inc()
        else:
            self._metrics.requeued.labels(cause).inc()
        _log.warning(
            "attempt lost", tenant=before.tenant, task=before.task, attempt=before.attempt, node=before.node,
            cause=cause, state=after.state.value,
        )  # fmt: skip

    # -- timers --

    def _delayed(self, delayed: Delayed) -> None:
        self._timers.at(delayed.due, lambda: self._spawner.spawn(self._due(delayed)))

    async def _due(self, delayed: Delayed) -> None:
        key = (delayed.tenant, delayed.task)
        async with self._slots:
            task = self._mirror.state.task(*key)
            if self._mirror.state.delayed.get(key) != delayed or task is None or not task.record.due:
                return
            try:
                if task.record.parked:
                    if await self._wake(task):
                        return
                    raise AbortedError("its time has not come; was the clock set?")
                after = life.became_due(task.record, self._clock.wall(), op_id=new_id("op"))
                await self._transactions.due(self._leading.guard(), task, after)
            except CloudClawError as error:
                # Whatever it was: no sweep looks for delayed tasks, so the timer must not be lost.
                _log.info("not moved to the queue yet", tenant=key[0], task=key[1], error=error.message)
                again = self._clock.wall() + _RETRY
                self._timers.at(again, lambda: self._spawner.spawn(self._due(delayed)))

    def _queued(self, queued: Queued) -> None:
        task = self._mirror.state.task(*queued.key)
        if task is not None and task.record.plan.queue_timeout:
            until = task.record.queued + task.record.plan.queue_timeout
            self._timers.at(until, lambda: self._spawner.spawn(self._timed_out(queued)))

    async def _timed_out(self, queued: Queued) -> None:
        task: Versioned[TaskRecord] | None = self._mirror.state.task(*queued.key)
        if self._mirror.state.queue.get(queued.key) is not queued or task is None:
            return
        if task.record.state is not TaskState.QUEUED:
            return
        limit = task.record.plan.queue_timeout
        after = life.failed(
            task.record, self._clock.wall(), EndReason.QUEUE_TIMEOUT, f"waited longer than {limit:g} s in the queue",
            op_id=new_id("op"),
        )  # fmt: skip
        try:
            await self._transactions.cancel(task, after)
            self._metrics.ended.labels(after.state.value).inc()
        except CloudClawError as error:
            _log.info("not timed out yet", task=queued.task, error=error.message)
            again = self._clock.wall() + _RETRY
            self._timers.at(again, lambda: self._spawner.spawn(self._timed_out(queued)))
