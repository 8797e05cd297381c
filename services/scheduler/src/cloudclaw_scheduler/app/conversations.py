"""Conversations that run or wait: their inputs are brought to their nodes, and what is parked wakes. Leader only.

What is to be delivered is state (rule 5): a RUNNING task's record says how many inputs there are and whether it closes;
what its node does not say that it has is sent, once on each of the node's streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog
from msgspec.structs import replace

from cloudclaw.clock import Clock
from cloudclaw.coordination import conversation
from cloudclaw.coordination.records import InputRecord, TaskRecord, TaskState
from cloudclaw.coordination.transactions import Transactions, Versioned
from cloudclaw.coordination.transactions.conversations import INPUTS_PER_TRANSACTION
from cloudclaw.errors import AbortedError, CloudClawError, DataLossError
from cloudclaw.ids import new_id
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw_scheduler.app.finish import Finisher
from cloudclaw_scheduler.app.inbox import Inbox
from cloudclaw_scheduler.app.leading import Leading
from cloudclaw_scheduler.app.links import Links, NodeLink, Told
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.spawner import Spawner
from cloudclaw_scheduler.app.state import Change, Input, Kind, TaskKey
from cloudclaw_scheduler.app.timers import Timers

_log = structlog.get_logger()

_RETRY: Final = 0.5
_LISTENING: Final = frozenset((pb.ATTEMPT_PHASE_PREPARING, pb.ATTEMPT_PHASE_RUNNING, pb.ATTEMPT_PHASE_FROZEN))
"""Phases in which an input is of use; what comes later is for the next attempt."""


class Conversations:
    """Brings inputs to running attempts, and wakes parked tasks."""

    def __init__(
        self,
        mirror: Mirror,
        leading: Leading,
        transactions: Transactions,
        links: Links,
        inbox: Inbox,
        finisher: Finisher,
        timers: Timers,
        spawner: Spawner,
        clock: Clock,
    ) -> None:
        self._mirror = mirror
        self._leading = leading
        self._transactions = transactions
        self._links = links
        self._inbox = inbox
        self._finisher = finisher
        self._timers = timers
        self._spawner = spawner
        self._clock = clock
        self._telling: set[tuple[NodeLink, int]] = set()
        self._armed: dict[TaskKey, float] = {}

    def reloaded(self) -> None:
        """Start anew from the mirror. The timers were cleared before (`Recovery`)."""
        self._armed.clear()
        for key in self._mirror.state.inputs:
            task = self._mirror.state.task(*key)
            if task is not None:
                self._arm(task.record)
        for link in self._links:
            self.heard(link)

    def changed(self, changes: Sequence[Change]) -> None:
        for change in changes:
            task = change.value
            if change.kind is not Kind.TASK or not isinstance(task, Versioned) or not task.record.plan.interactive:
                continue
            record: TaskRecord = task.record
            self._arm(record)
            link = self._links.get(record.node) if record.uid else None
            attempt = self._mirror.state.attempt(record.node, record.tenant, record.task) if link else None
            running = link.running.get(attempt.revision) if link and attempt else None
            if link is not None and running is not None:
                self._tell(link, running)

    def heard(self, link: NodeLink) -> None:
        """The node said what it has: tell it what it lacks."""
        for running in link.running.values():
            self._tell(link, running)

    # -- delivery --

    def _tell(self, link: NodeLink, running: pb.RunningAttempt) -> None:
        if self._missing(link, running.token) and (link, running.token) not in self._telling:
            self._telling.add((link, running.token))
            self._spawner.spawn(self._deliver(link, running.token))

    def _missing(self, link: NodeLink, token: int) -> tuple[TaskRecord, int] | None:
        """The task whose attempt lacks something, and the last input that it has; None when it lacks nothing, or has no
        use for more."""
        running = link.running.get(token)
        if running is None or running.phase not in _LISTENING:
            return None
        task = self._mirror.state.task(running.tenant, running.task_id)
        if task is None or task.record.state is not TaskState.RUNNING or not task.record.plan.interactive:
            return None
        record = task.record
        attempt = self._mirror.state.attempt(link.node, record.tenant, record.task)
        if attempt is None or attempt.revision != token or attempt.uid != record.uid or record.cancel_requested:
            return None
        told = link.told.get(token, Told())
        has = max(running.inputs, told.inputs, record.inputs_done)
        closes = record.closes and not (running.closing or told.closing)
        return (record, has) if record.inputs > has or closes else None

    async def _deliver(self, link: NodeLink, token: int) -> None:
        try:
            while not link.outbox.closed and (missing := self._missing(link, token)) is not None:
                record, has = missing
                try:
                    inputs = await self._inbox.read(record, has)
                except DataLossError as error:
                    attempt = self._mirror.state.attempt(link.node, record.tenant, record.task)
                    if attempt is not None and attempt.revision == token:
                        await self._finisher.fail(attempt, error.message)
                    return
                last = inputs[-1].number if inputs else has
                closing = record.closes and last >= record.inputs
                link.told[token] = Told(last, closing)
                link.send(
                    pb.ConnectResponse(
                        deliver_input=pb.DeliverInput(
                            tenant=record.tenant, task_id=record.task, token=token, inputs=inputs, closing=closing
                        )
                    )
                )
                _log.debug("input delivered", tenant=record.tenant, task=record.task, node=link.node, last=last)
        except CloudClawError as error:
            # The node's next heartbeat brings it up again.
            _log.info("input not delivered yet", node=link.node, error=error.message)
        finally:
            self._telling.discard((link, token))

    # -- what is due --

    def _arm(self, record: TaskRecord) -> None:
        """Remember when the first delayed input is due of a task that is not parked; `Recovery` has those that are."""
        key = (record.tenant, record.task)
        due = record.later_due if record.later and not record.parked and not record.state.ended else 0.0
        if not due:
            self._armed.pop(key, None)
        elif self._armed.get(key) != due:
            self._armed[key] = due
            self._timers.at(due, lambda: self._spawner.spawn(self._due(key, due)))

    async def _due(self, key: TaskKey, due: float) -> None:
        task = self._mirror.state.task(*key)
        if self._armed.get(key) != due or task is None:
            return
        del self._armed[key]  # so that what it leaves is armed again, even when that is due at the same moment
        try:
            if await self.wake(task):
                return
        except CloudClawError as error:
            _log.info("an input is not due yet after all", tenant=key[0], task=key[1], error=error.message)
        if self._armed.setdefault(key, due) == due:
            self._timers.at(self._clock.wall() + _RETRY, lambda: self._spawner.spawn(self._due(key, due)))

    async def wake(self, task: Versioned[TaskRecord]) -> bool:
        """Number the inputs that are due; without any to come, close a parked task that has idled for too long. False
        when it is not time yet. Raises what the transactions do; `AbortedError` when the task changed."""
        record, now = task.record, self._clock.wall()
        if record.later:
            ripe, next_due = self._ripe(record, now)
            if not ripe:
                return False
            inputs = [await self._numbered(record, one, place) for place, one in enumerate(ripe, record.inputs + 1)]
            after = conversation.came_due(record, now, len(ripe), next_due, op_id=new_id("op"))
            await self._transactions.came_due(self._leading.guard(), task, after, inputs)
            return True
        if not record.parked or record.due > now:
            return False
        after = conversation.idled(record, now, op_id=new_id("op"))
        await self._transactions.idled(self._leading.guard(), task, after)
        _log.info("a conversation idled for too long", tenant=record.tenant, task=record.task)
        return True

    def _ripe(self, record: TaskRecord, now: float) -> tuple[list[Input], float]:
        """The inputs that are due, in the order in which they are, and when the first of the others is (0: none)."""
        known = self._mirror.state.inputs.get((record.tenant, record.task), {}).values()
        waiting = sorted(
            (one for one in known if one.due and not one.number), key=lambda one: (one.due, one.message_id)
        )
        count = sum(one.due <= now for one in waiting[:INPUTS_PER_TRANSACTION])
        return waiting[:count], waiting[count].due if count < len(waiting) else 0.0

    async def _numbered(
        self, record: TaskRecord, one: Input, number: int
    ) -> tuple[str, Versioned[InputRecord], InputRecord]:
        found = await self._transactions.get_input(record.tenant, record.task, one.message_id)
        if found is None or not found.record.waits:
            raise AbortedError(f"the inputs of {record.task} changed meanwhile")
        return one.message_id, found, replace(found.record, number=number)
