"""All attempts of this node: what the leader says reaches the right one, and heartbeats say what there is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

import structlog

from cloudclaw.coordination.records import PoolSlots
from cloudclaw.errors import InvalidArgumentError
from cloudclaw.v1 import scheduler_pb2
from cloudclaw_pool_manager.app import messages
from cloudclaw_pool_manager.app.attempts import AttemptRunner
from cloudclaw_pool_manager.app.runner import Surroundings
from cloudclaw_pool_manager.domain.assignment import Assignment
from cloudclaw_pool_manager.domain.attempt import AttemptId
from cloudclaw_pool_manager.domain.slot import SlotState
from cloudclaw_pool_manager.ports.state import Drain

_log = structlog.get_logger()


class AttemptTable:
    """The attempts of one node, by uid.

    Attributes:
        drain: whether there is an end to the node's work.
    """

    def __init__(self, around: Surroundings):
        self.drain = Drain.NONE
        self._around = around
        self._runners: dict[str, AttemptRunner] = {}
        self._group: asyncio.TaskGroup | None = None
        self._early: list[Coroutine[Any, Any, None]] = []
        self._empty = asyncio.Event()
        self._empty.set()

    async def run(self) -> None:
        """Own the runners until cancelled; they stop where they are then, to be resumed by the next process."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for work in self._early:
                group.create_task(work)
            self._early.clear()
            await asyncio.get_running_loop().create_future()

    @property
    def draining(self) -> bool:
        """Take no new work."""
        return self.drain is not Drain.NONE

    def runners(self) -> list[AttemptRunner]:
        """All attempts, oldest first."""
        return list(self._runners.values())

    def add(self, assignment: Assignment) -> AttemptRunner:
        """A runner for an attempt that is not here yet; `start` it."""
        runner = AttemptRunner(assignment, self._around)
        self._runners[runner.attempt.uid] = runner
        self._empty.clear()
        return runner

    def start(self, runner: AttemptRunner, work: Coroutine[Any, Any, None]) -> None:
        """Run one of the runner's ways in, and forget the runner when it is over."""
        whole = self._whole(runner, work)
        if self._group is None:
            self._early.append(whole)
        else:
            self._group.create_task(whole, name=f"attempt {runner.attempt.uid}")

    def begin_drain(self, drain: Drain) -> None:
        """Take no new work, hand over what there is, or take work again. Asked again, hand-overs that failed are tried
        again."""
        self.drain = drain
        for runner in self.runners():
            runner.hand_over(drain is Drain.HAND_OVER)

    async def wait_empty(self) -> None:
        """Wait until no attempt is left."""
        await self._empty.wait()

    async def fence_all(self, why: str) -> None:
        """Kill all attempts and return when none of their processes is left."""
        runners = self.runners()
        for runner in runners:
            runner.fence(why)
        for runner in runners:
            await runner.ending.processes_gone.wait()

    # -- what the leader says --

    def assign(self, message: scheduler_pb2.Assignment) -> None:
        """Run this, unless it runs already (design rule 5)."""
        try:
            assignment = messages.assignment(message)
        except InvalidArgumentError as error:
            _log.error("an assignment that cannot be", task=message.task_id, error=str(error))
            attempt = AttemptId(message.tenant, message.task_id, message.attempt, message.uid, message.token)
            self._around.link.reject(attempt, f"{error.field}: {error.message}")
            return
        attempt = assignment.attempt
        present = self._runners.get(attempt.uid)
        if present is not None:
            if assignment.cancel_requested:
                present.cancel()
            present.delivery.again()
            return
        for other in self._of_task(attempt.tenant, attempt.task):
            if other.attempt.token > attempt.token:
                return
            other.fence("a later attempt of its task was assigned here")
        if self.draining:
            self._around.link.reject(attempt, "the node is draining")
            return
        runner = self.add(assignment)
        self.start(runner, runner.run())
        self._around.link.changed()

    def cancel(self, message: scheduler_pb2.CancelAttempt) -> None:
        """Its user wants it to end."""
        for runner in self._named(message.tenant, message.task_id, message.token):
            runner.cancel()

    def kill(self, message: scheduler_pb2.KillAttempt) -> None:
        """It is not this node's any more."""
        for runner in self._named(message.tenant, message.task_id, message.token):
            runner.fence(message.message or "the leader says that it is not this node's")

    def verdict(self, message: scheduler_pb2.ReportVerdict) -> None:
        """What became of a report."""
        runner = self._runners.get(message.uid)
        verdict = messages.verdict(int(message.verdict))
        if runner is not None and verdict is not None:
            runner.delivery.decide(verdict)

    def take_checkpoint(self, message: scheduler_pb2.TakeCheckpoint) -> None:
        """A checkpoint on demand."""
        for runner in self._named(message.tenant, message.task_id, message.token):
            runner.checkpoints.take(message.request)

    def deliver(self, message: scheduler_pb2.DeliverInput) -> None:
        """Messages for an agent."""
        for runner in self._named(message.tenant, message.task_id, message.token):
            runner.agent.take(messages.inputs(message.inputs), closing=message.closing)
            self._around.link.changed()

    def checkpoint_verdict(self, message: scheduler_pb2.CheckpointVerdict) -> None:
        """What became of a checkpoint."""
        if (runner := self._runners.get(message.uid)) is not None:
            runner.checkpoints.decide(message)

    # -- what heartbeats say --

    def running(self) -> list[scheduler_pb2.RunningAttempt]:
        """All attempts with phase and use."""
        return [
            messages.running(r.attempt, r.phase, r.log_end, r.usage, r.files.progress, r.agent)
            for r in self._runners.values()
        ]

    def capacities(self) -> list[scheduler_pb2.PoolCapacity]:
        """Slots that can work, and those that are free now."""
        return [
            scheduler_pb2.PoolCapacity(
                pool=name,
                slots=template.slots.count(SlotState.IDLE, SlotState.ASSIGNED),
                idle=template.slots.count(SlotState.IDLE),
                runtimes=template.offered,
                backend=template.backend,
                runtime_status=messages.runtime_status(template.readiness),
            )
            for name, template in self._around.templates.items()
        ]

    def pool_slots(self) -> tuple[PoolSlots, ...]:
        """The same for the node's key: what is meant to be there."""
        return tuple(
            PoolSlots(
                pool=name,
                slots=template.slots.size,
                runtimes=tuple(template.offered),
                backend=template.backend,
            )
            for name, template in self._around.templates.items()
        )

    # -- parts --

    async def _whole(self, runner: AttemptRunner, work: Coroutine[Any, Any, None]) -> None:
        await work
        del self._runners[runner.attempt.uid]
        if not self._runners:
            self._empty.set()
        self._around.link.changed()

    def _of_task(self, tenant: str, task: str) -> Iterator[AttemptRunner]:
        for runner in self.runners():
            if runner.attempt.tenant == tenant and runner.attempt.task == task:
                yield runner

    def _named(self, tenant: str, task: str, token: int) -> Iterator[AttemptRunner]:
        for runner in self._of_task(tenant, task):
            if runner.attempt.token == token:
                yield runner
