"""One attempt on this node, from its assignment to the leader's verdict.

    PREPARING ──► RUNNING ◄──► FROZEN
        │            │            │
        │            ▼            │
        │         SAVING ◄────────┘      only when there is something to keep
        │            │
        └──────► REPORTING ──► verdict

The slot is held from PREPARING to the verdict, so that a manager that crashes anywhere finds either a supervisor that
knows the attempt or nothing at all. A fence (lost lease, kill by the leader) leads from everywhere to the end: the
processes are killed, nothing is reported, nothing is kept. Steps are not cancelled half-way, unless they wait for the
store (`patience`); each looks at the fence when done. A checkpoint beside RUNNING is cancelled before anything is kept.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable
from dataclasses import replace

import structlog

from cloudclaw.coordination.records import EndReason, SnapshotPointer
from cloudclaw.errors import CloudClawError, InvalidArgumentError
from cloudclaw.v1.scheduler_pb2 import AttemptReport
from cloudclaw_pool_manager.app import messages, runner, starting
from cloudclaw_pool_manager.app.agent import Agent
from cloudclaw_pool_manager.app.berth import Berth
from cloudclaw_pool_manager.app.checkpoints import Checkpointer
from cloudclaw_pool_manager.app.delivery import Delivery
from cloudclaw_pool_manager.app.egress import way_out
from cloudclaw_pool_manager.app.ending import Ending
from cloudclaw_pool_manager.app.files import Files, worth_retrying
from cloudclaw_pool_manager.app.logs import ShippedLog
from cloudclaw_pool_manager.app.patience import Patience
from cloudclaw_pool_manager.app.runner import NotOursError, NotStartedError, Surroundings
from cloudclaw_pool_manager.app.slots import SlotEntry
from cloudclaw_pool_manager.app.timing import cancel, wait_until
from cloudclaw_pool_manager.domain.assignment import Assignment
from cloudclaw_pool_manager.domain.attempt import Exit, KillReason, Usage
from cloudclaw_pool_manager.domain.outcome import Checkpoint, Outcome, Phase, Verdict, canceled, failed, of_kill
from cloudclaw_pool_manager.domain.timers import RunTimers
from cloudclaw_pool_manager.ports.backend import FencedIncarnationError, Slot, SlotFailedError, SlotPhase, SlotStatus
from cloudclaw_pool_manager.ports.state import Started

_log = structlog.get_logger()


class AttemptRunner:
    """Runs one attempt. Exactly one of `run`, `resume` and `report_lost` is awaited, once.

    Attributes:
        phase: where it is.
        delivery: its report, and the leader's verdict.
        checkpoints: taken while its program runs.
        files: its tree.
        patience: with the object store.
        usage: resources as last measured.
        ending: who ends it, and how its program ended.
        agent: its companion, who has nothing to do for a program that is no agent.
    """

    def __init__(self, assignment: Assignment, around: Surroundings):
        self.assignment = assignment
        self.attempt = assignment.attempt
        self.phase = Phase.PREPARING
        self.usage = Usage()
        self._around = around
        self._template = around.templates.get(assignment.pool)
        self._arrived, self._prepared = around.clock.boottime(), 0.0
        self._berth = Berth(self._template)
        self.ending = Ending(self._berth, canceled=assignment.cancel_requested)
        self._log: ShippedLog | None = None
        self._timers = RunTimers(0.0, 0.0, 0.0)
        self._given = self._paused = False
        self.patience = Patience(
            around.clock,
            around.store_patience,
            lambda: self.ending.pressed(preparing=self.phase is Phase.PREPARING),
            self.ending.wake,
            around.metrics.store_retries,
        )
        self.files = Files(assignment, around, self.patience)
        self.delivery: Delivery[AttemptReport] = Delivery(around.link.report, around.clock)
        self.checkpoints = Checkpointer(self, assignment, around, self.files)
        self.agent = Agent(self, assignment, runner.agent_of(self._template, assignment), around.clock, self.files)

    # -- what others see and ask for; nothing here blocks --

    @property
    def log_end(self) -> int:
        """Bytes of log so far."""
        return self._log.available if self._log else 0

    @property
    def live_slot(self) -> Slot | None:
        """Its slot while the program may run, for deadlines and measurements."""
        if self.phase in (Phase.RUNNING, Phase.FROZEN) and self.ending.exit is None and self._berth.failure is None:
            return self._berth.held
        return None

    @property
    def egress_slot(self) -> Slot | None:
        return self.live_slot if self.agent.adapter is not None else None

    @property
    def may_pause(self) -> bool:
        runs = self.phase is Phase.RUNNING and self.ending.why is KillReason.NONE and self.live_slot is not None
        return runs and not self.agent.settling

    def turned(self) -> None:
        self.checkpoints.turned()

    def works(self) -> None:
        self.checkpoints.works()

    def describe(self, checkpoint: Checkpoint) -> Checkpoint:
        return self.agent.describe(checkpoint)

    def cancel(self) -> None:
        """Its user wants it to end. Once its processes are gone the leader knows what to make of any report."""
        self.ending.cancel()
        self.end(KillReason.CANCELED)

    def fence(self, why: str) -> None:
        """It is not ours any more: kill it, publish nothing."""
        if self.ending.fenced:
            return
        self.ending.fence(why)
        self.delivery.fence()
        self.checkpoints.delivery.fence()
        if self._log is not None:
            self._log.end_sent.set()

    def tick(self, now: float) -> None:
        """Look at the clock (boot time): run and silence timeouts."""
        if self.checkpoints.moving.is_set() and self.phase is Phase.RUNNING:  # whatever became of a checkpoint
            if not self._paused:
                self._timers.thaw(now)
            elif self.ending.may_go_on:
                self._froze()
        due = self._timers.due(now) if self.phase is Phase.RUNNING else KillReason.NONE
        if due and not (due is KillReason.SILENCE_TIMEOUT and self.agent.waits):
            self.end(due)
        self.checkpoints.tick()
        self.agent.tick()

    def hand_over(self, wanted: bool) -> None:
        """Its node is drained: it goes on elsewhere, from a checkpoint or its begin (given back), or not after all."""
        self.ending.drain(wanted)
        if wanted and self.agent.waits:
            self.agent.leave()
        else:
            self.checkpoints.hand_over(wanted)

    def handed_over(self) -> bool:
        self.end(KillReason.DRAINED)
        return self.ending.why is KillReason.DRAINED

    def sick(self, slot: Slot, message: str) -> None:
        """A call to `slot` failed while it ran this attempt."""
        if self.live_slot is slot:
            self._berth.recycle(slot, message)

    def on_status(self, status: SlotStatus) -> None:
        if status.attempt is None or status.attempt.uid != self.attempt.uid:
            return
        if self._log is not None and status.phase is not SlotPhase.EXITED:
            self._log.grown(status.log_end)
            self.agent.grown(status.log_end)
        self._timers.output(status.last_output)
        self._paused = status.paused
        if status.exit is not None:
            self._exited(status.exit)
        elif status.paused and not self.checkpoints.moving.is_set():
            return  # by a checkpoint of ours, and not of an earlier manager's: of that nobody is left to let go
        elif status.phase is SlotPhase.FROZEN:
            self._froze()
        elif status.phase is SlotPhase.RUNNING and self.phase in (Phase.PREPARING, Phase.FROZEN):
            self._timers.thaw(self._around.clock.boottime())
            self._enter(Phase.RUNNING)

    def on_slot_failed(self, message: str) -> None:
        self._berth.failure = message
        self.ending.wake.set()

    async def run(self) -> None:
        """A new assignment."""
        await self._conclude(self._start())

    def take_over(self, entry: SlotEntry, status: SlotStatus, started: Started, log_start: int) -> None:
        """Become the runner of an attempt that an earlier manager left in `entry`; then `resume`. No coroutine, so
        that nothing is missed of what the slot reports from here on."""
        slot = self._berth.adopt(entry)
        self._prepared = started.prepared
        self._given, self._timers = True, runner.timers_of(self.assignment, started.boottime)
        self._log = self._around.shipper.open(self.attempt, slot, log_start)
        self.agent.watch(self._log, slot, self._around.state, self._around.parsing)
        if status.phase is not SlotPhase.EXITED:
            self.ending.processes_gone.clear()
        self.phase = Phase.RUNNING
        self.on_status(status)

    async def resume(self) -> None:
        """What `take_over` took over."""
        await self._conclude(self._adopted())

    async def report_lost(self, message: str) -> None:
        """An attempt that an earlier manager had, and whose slot is gone with everything in it."""
        await self._conclude(self._slot_broke(message))

    # -- steps --

    async def _conclude(self, work: Awaitable[Outcome]) -> None:
        committed: SnapshotPointer | None = None
        reason = "FENCED"
        with structlog.contextvars.bound_contextvars(
            tenant=self.attempt.tenant, task=self.attempt.task, attempt=self.attempt.uid
        ):
            try:
                outcome = await self._guard(work)
                reason = outcome.reason
                await self._deliver(outcome)
                committed = outcome.snapshot
            except NotOursError:
                _log.warning("attempt fenced", why=self.ending.fence_reason)
            except NotStartedError as error:
                reason = "REJECTED"
                _log.warning("attempt rejected", why=str(error))
                self._around.link.reject(self.attempt, str(error))
            await self._clean_up(committed)
        self._around.metrics.attempts.labels(self.assignment.pool, reason).inc()

    async def _guard(self, work: Awaitable[Outcome]) -> Outcome:
        """The outcome of `work`, whatever breaks; when it is there, no process is left."""
        try:
            return await work
        except (NotOursError, NotStartedError, FencedIncarnationError):
            raise
        except SlotFailedError as error:
            return await self._slot_broke(str(error))
        except Exception as error:  # noqa: BLE001 - a fault of ours or of a runtime fails its attempt, not the node
            _log.exception("attempt failed by a fault")
            if not self.ending.processes_gone.is_set():
                await self._slot_broke(str(error))
            return self._failed(EndReason.INTERNAL, f"a fault of the pool-manager: {error!r}", retryable=True)

    async def _start(self) -> Outcome:
        around, assignment, template = self._around, self.assignment, self._template
        if template is None:
            raise NotStartedError(f"this node has no pool {assignment.pool!r}")
        try:
            start = starting.plan(template, assignment, around)
        except InvalidArgumentError as error:
            return self._failed(EndReason.START_FAILED, error.message)
        slot = await self._berth.take(template, self, around.slot_wait, start.warm_key)
        self._prepared = around.clock.wall()
        if self.ending.before_start():
            return self._canceled()
        try:
            tree = await self.files.check_out()
        except (CloudClawError, OSError) as error:
            _log.warning("no workspace", error=str(error))
            message = f"the workspace could not be prepared: {error}"
            return self._failed(EndReason.WORKSPACE_FAILED, message, retryable=worth_retrying(error))
        if self.ending.before_start() or tree is None:
            return self._canceled()
        if self.agent.settled:
            return await self._kept(self.agent.closed(prepared=self._prepared))
        now = around.clock.boottime()
        await around.state.remember_attempt(runner.note_of(assignment, self._berth.name, slot.pid, self._prepared, now))
        if self.ending.before_start():
            return self._canceled()
        self._given, self._timers = True, runner.timers_of(assignment, now)
        self._log = around.shipper.open(self.attempt, slot)
        self.agent.watch(self._log, slot, around.state, around.parsing)
        self.ending.processes_gone.clear()
        try:
            await start.hand(slot, self._berth.warm_key, self.agent, tree.path)
        except InvalidArgumentError as error:  # refused before anything was done
            self.ending.processes_gone.set()
            around.shipper.close(self._log)
            self._given, self._log = False, None
            return self._failed(EndReason.START_FAILED, error.message)
        started = around.clock.boottime()
        around.metrics.sandbox_seconds.labels(assignment.pool).observe(started - now)
        around.metrics.start_seconds.labels(assignment.pool).observe(started - self._arrived)
        if self.phase is Phase.PREPARING:
            self._enter(Phase.RUNNING)
        return await self._attend()

    async def _adopted(self) -> Outcome:
        if self.live_slot is not None and self.phase is Phase.RUNNING:  # it may stand still soon, for nobody any more
            await self._berth.slot.resume(self.attempt.uid, self._around.deadline())
        await self.files.reopen()
        await self.agent.adopted(self._log.forgotten if self._log is not None else 0)
        return await self._attend()

    async def _attend(self) -> Outcome:
        """While the program runs: until it has ended, whoever ended it."""
        if self.ending.canceled:
            self.cancel()
        slot = self._berth.slot
        checkpoints = asyncio.ensure_future(self.checkpoints.run(slot, self._timers))
        beside = self.agent.accompany(slot)
        try:
            async with way_out(self._around.access, self):
                end = await self.ending.come(functools.partial(self._stop, checkpoints))
            await cancel(checkpoints)
            if not self.ending.fenced:
                await self.agent.heard_out(end.log_end)
        finally:
            await cancel(checkpoints, *beside)
        return await self._judge(end)

    async def _stop(self, checkpoints: asyncio.Future[None]) -> None:
        """End the program, as somebody wants."""
        if self.ending.may_go_on:  # a checkpoint lets go of it, so that it may end in peace
            checkpoints.cancel()
            await wait_until(self.checkpoints.moving, self._around.clock, self._around.cancel_grace)
        grace = self._around.cancel_grace if self.ending.may_go_on and self.phase is not Phase.FROZEN else 0.0
        self._exited(await self._berth.slot.stop(self.attempt.uid, self.ending.why, grace))

    async def _judge(self, exit: Exit) -> Outcome:
        if self.ending.fenced:
            raise NotOursError
        outcome = of_kill(exit) or runner.judged(self._template, self.assignment, exit, self.agent.transcript)
        outcome = self.agent.concluded(replace(outcome, prepared=self._prepared))
        return await self._kept(outcome)

    async def _kept(self, outcome: Outcome) -> Outcome:
        """What it leaves, stored."""
        if self.files.wanted(outcome):
            self._enter(Phase.SAVING)
            outcome = await self.files.keep(outcome)
        return outcome

    async def _deliver(self, outcome: Outcome) -> None:
        """Returns once the leader has committed it. Raises `NotOursError` when it will not."""
        if self._log is not None and not self.ending.fenced:
            await self._log.end_sent.wait()  # before that, the leader could only wait for it
        self._enter(Phase.REPORTING)
        if await self.delivery.run(lambda: self._report(outcome)) is not Verdict.COMMITTED:
            self.fence("the leader says so")
            raise NotOursError

    def _report(self, outcome: Outcome) -> AttemptReport:
        if self._log is not None and self._log.final is not None:
            outcome = replace(outcome, log_end=self._log.final)  # less than it was, when its spool was lost
        return messages.report(self.attempt, outcome)

    async def _slot_broke(self, message: str) -> Outcome:
        """The slot failed. Nothing is reported before its processes are gone: another attempt may start at once."""
        await self._berth.replace(message)
        self.ending.processes_gone.set()
        if self._log is not None:
            self._log.ended(None)
        if self.ending.fenced:
            raise NotOursError
        if self.ending.canceled:
            return self._canceled()
        return self.agent.concluded(self._failed(EndReason.SLOT_FAILED, f"the slot failed: {message}", retryable=True))

    async def _clean_up(self, committed: SnapshotPointer | None) -> None:
        if self._log is not None:
            self._around.shipper.close(self._log)
        await self._berth.leave(self.attempt.uid, started=self._given)
        await self.files.release(committed)
        await runner.forget(self._around.state, self.attempt.uid)

    # -- small parts --

    def _enter(self, phase: Phase) -> None:
        if self.phase is not phase:
            self.phase = phase
            self._around.link.changed()

    def end(self, why: KillReason) -> None:
        """End the program, unless somebody does already."""
        if self.phase in (Phase.RUNNING, Phase.FROZEN):
            self.ending.want(why)

    def _froze(self) -> None:
        """It stands still for no checkpoint of ours: whoever reads its token may thaw it."""
        if self.phase in (Phase.PREPARING, Phase.RUNNING):
            self._timers.freeze(self._around.clock.boottime())
            self._around.metrics.freezes.labels(self.assignment.pool).inc()
            self._enter(Phase.FROZEN)

    def _exited(self, exit: Exit) -> None:
        if self.ending.exited(exit) and self._log is not None:
            self._log.ended(exit.log_end)

    def _canceled(self) -> Outcome:
        return canceled(now=self._around.clock.wall(), prepared=self._prepared)

    def _failed(self, reason: EndReason, message: str, *, retryable: bool = False) -> Outcome:
        return failed(reason, message, now=self._around.clock.wall(), prepared=self._prepared, retryable=retryable)
