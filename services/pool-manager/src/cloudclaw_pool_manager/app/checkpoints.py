"""Checkpoints of one running attempt: by the clock, at its agent's turns, on demand, and before a planned drain.

One at a time, from the freeze to the leader's verdict. Whatever goes wrong with one, the attempt runs on: a failure is
logged, counted, and reported when it answers a request. A hand-over stands still from its freeze to the verdict, also
while there is no leader; taken back before the verdict it is abandoned, and the attempt runs on.
"""

from __future__ import annotations

import asyncio
import functools
import math
from dataclasses import replace
from typing import Final, Protocol

import structlog

from cloudclaw.errors import CloudClawError
from cloudclaw.ids import new_id
from cloudclaw.v1.scheduler_pb2 import CheckpointReport, CheckpointVerdict
from cloudclaw_pool_manager.app import messages
from cloudclaw_pool_manager.app.delivery import Delivery
from cloudclaw_pool_manager.app.ending import Ending
from cloudclaw_pool_manager.app.files import Files
from cloudclaw_pool_manager.app.runner import Surroundings
from cloudclaw_pool_manager.app.standstill import Standstill
from cloudclaw_pool_manager.domain.assignment import Assignment
from cloudclaw_pool_manager.domain.outcome import Checkpoint, Verdict
from cloudclaw_pool_manager.domain.timers import RunTimers
from cloudclaw_pool_manager.ports.backend import FencedIncarnationError, Slot, SlotFailedError

_log = structlog.get_logger()


SPARE: Final = 5.0
"""Times what a checkpoint took that none is taken at a turn after it: quick ones may follow quick turns, and together
take a sixth of the time at most. `turn_spacing` is the longest that they keep apart."""


class Runner(Protocol):
    """The attempt, as its checkpoints see it. Nothing here blocks."""

    @property
    def may_pause(self) -> bool:
        """Its program runs, and nobody ends it."""
        ...

    @property
    def ending(self) -> Ending:
        """Who ends it: when it stands still, it may run again unless it was fenced or handed over."""
        ...

    def fence(self, why: str) -> None:
        """It is not ours any more."""
        ...

    def describe(self, checkpoint: Checkpoint) -> Checkpoint:
        """With what its agent has told so far."""
        ...

    def handed_over(self) -> bool:
        """Its checkpoint is recorded and it stands still at it: end it, to go on elsewhere. False when somebody ends
        it already."""
        ...

    def sick(self, slot: Slot, message: str) -> None:
        """A call to `slot` failed."""
        ...


class Checkpointer:
    """Takes an attempt's checkpoints while `run` is awaited.

    Attributes:
        delivery: the report that waits for its verdict.
        moving: set while no checkpoint holds the processes still.
        last_failure: why the last checkpoint failed, empty after one that did not.
    """

    def __init__(self, runner: Runner, assignment: Assignment, around: Surroundings, files: Files):
        self.delivery: Delivery[CheckpointReport] = Delivery(around.link.checkpoint, around.clock)
        self.moving = asyncio.Event()
        self.moving.set()
        self.last_failure = ""
        self._runner = runner
        self._attempt = assignment.attempt
        self._pool = assignment.pool
        self._interval = assignment.checkpoint_interval
        self._around = around
        self._files = files
        self._timers: RunTimers | None = None
        self._wake = asyncio.Event()
        self._due = math.inf
        self._turns = around.turn_spacing is not None
        self._spacing = around.turn_spacing or 0.0
        self._fresh_until = 0.0
        self._turn = False
        self._wanted = self._served = 0
        self._hand_over = False
        self._handing: asyncio.Task[None] | None = None

    # -- what others ask for; nothing here blocks --

    def take(self, request: int) -> None:
        """Take one on demand. One that has begun already is too early for it: another follows at once."""
        self._wanted = max(self._wanted, request)
        self._wake.set()

    def hand_over(self, wanted: bool) -> None:
        """Take one and end the attempt at it; or, when it is not too late, leave the attempt here after all."""
        self._hand_over = wanted
        if not wanted and self._handing is not None:
            self._handing.cancel()
        self._wake.set()

    def turned(self) -> None:
        """The agent's turn is complete: take one, as soon as the last is old enough and while no other turn begins."""
        self._turn = self._turns
        self._wake.set()

    def works(self) -> None:
        """The agent's next turn has begun: it is too late for one at the turn before."""
        self._turn = False

    def tick(self) -> None:
        """Look at the clock."""
        if self._called_for():
            self._wake.set()

    def decide(self, message: CheckpointVerdict) -> None:
        """The leader's verdict; one on an earlier report is dropped."""
        report, verdict = self.delivery.report, messages.verdict(int(message.verdict))
        named = (message.snapshot_id, message.request)
        if report is not None and verdict is not None and named == (report.snapshot.snapshot_id, report.request):
            self.delivery.decide(verdict)

    async def run(self, slot: Slot, timers: RunTimers) -> None:
        """Until cancelled, which abandons a checkpoint that is under way, and lets the processes go on.

        The interval is of running time. For an attempt that was adopted the first is due at the next multiple of it
        since the start, so that managers who come and go do not put it off.
        """
        self._timers = timers
        still = Standstill(
            slot,
            self._attempt.uid,
            timers=timers,
            clock=self._around.clock,
            deadline=self._around.deadline,
            may_go_on=lambda: self._runner.ending.may_go_on,
            moving=self.moving,
        )
        if self._interval:
            self._due = (self._ran() // self._interval + 1) * self._interval
        while True:
            if not self._called_for():
                self._wake.clear()
                await self._wake.wait()
                continue
            request = self._wanted if self._wanted > self._served else 0
            self._turn = False
            begun = self._around.clock.boottime()
            try:
                if self._hand_over:
                    await self._recallable(slot, still, request)
                else:
                    await self._one(slot, still, request, handing=False)
            except (SlotFailedError, FencedIncarnationError) as error:
                _log.warning("a checkpoint was left alone with its slot", error=str(error))
                self._give_up()
                if isinstance(error, SlotFailedError):
                    self._runner.sick(slot, str(error))
            except Exception as error:  # noqa: BLE001 - a fault of ours costs a checkpoint, not the attempt
                _log.exception("a checkpoint was broken off by a fault")
                await self._refuse(request, f"a fault of the pool-manager: {error!r}")
            taken = self._around.clock.boottime() - begun
            self._fresh_until = self._ran() + min(self._spacing, taken * SPARE)
            if self._interval:
                self._due = self._ran() + self._interval

    # -- one checkpoint --

    async def _recallable(self, slot: Slot, still: Standstill, request: int) -> None:
        """One to hand over at; abandoned when the hand-over is taken back."""
        self._handing = asyncio.ensure_future(self._one(slot, still, request, handing=True))
        try:
            await self._handing  # a cancellation of ours goes on to it, and is over when it is
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            _log.info("the hand-over was taken back; the attempt runs on here")
        finally:
            self._handing = None

    async def _one(self, slot: Slot, still: Standstill, request: int, *, handing: bool) -> None:
        outcome, stays = "abandoned", False
        try:
            checkpoint = await self._taken(slot, still, request, keep=handing)
            if checkpoint.snapshot is None:
                outcome = "failed"
                await still.let_go()
                if handing:
                    self._hand_over = False
                    _log.warning("the attempt is not handed over and runs on here", error=checkpoint.failure)
                if not request:
                    return
            if not await self._delivered(checkpoint):
                outcome = "fenced"
                return
            if checkpoint.snapshot is not None:
                outcome = "committed"
                stays = handing and self._hand_over and self._runner.handed_over()
        finally:
            self._around.metrics.checkpoints.labels(self._pool, outcome).inc()
            if not stays:
                await still.let_go()

    async def _taken(self, slot: Slot, still: Standstill, request: int, *, keep: bool) -> Checkpoint:
        """Stored, or why not; the processes stand still afterwards only when `keep` is wanted and it is stored."""
        clock, metrics, snapshot_id = self._around.clock, self._around.metrics, new_id("ckpt")
        begun = clock.boottime()
        described = self._runner.describe(Checkpoint(None, request))  # what was seen before it stands still is in it
        try:
            stored = await self._files.checkpoint(snapshot_id, functools.partial(still.pause, keep=keep))
        except (CloudClawError, OSError, SlotFailedError) as error:
            _log.warning("no checkpoint", error=str(error))
            self.last_failure = str(error)
            if isinstance(error, SlotFailedError):
                self._runner.sick(slot, self.last_failure)
            return Checkpoint(None, request, failure=self.last_failure)
        except FencedIncarnationError:
            raise
        except Exception as error:  # noqa: BLE001 - a fault of ours costs a checkpoint, not the attempt
            _log.exception("a checkpoint failed by a fault")
            self.last_failure = f"a fault of the pool-manager: {error!r}"
            return Checkpoint(None, request, failure=self.last_failure)
        seconds = clock.boottime() - begun
        self.last_failure = ""
        metrics.freeze_seconds.labels(self._pool).observe(still.seconds)
        metrics.checkpoint_seconds.labels(self._pool).observe(seconds)
        metrics.checkpoint_bytes.labels(self._pool).inc(stored.stored_bytes)
        _log.info(
            "checkpoint stored",
            snapshot=stored.pointer.id,
            frozen=round(still.seconds, 4),
            seconds=round(seconds, 4),
            stored_bytes=stored.stored_bytes,
        )
        return replace(described, snapshot=stored.pointer, frozen=still.seconds)

    async def _delivered(self, checkpoint: Checkpoint) -> bool:
        """Reported, and the leader has recorded it; False: fenced instead."""
        make = functools.partial(messages.checkpoint_report, self._attempt, checkpoint)
        if await self.delivery.run(make) is not Verdict.COMMITTED:
            self._runner.fence("the leader says so of its checkpoint")
            return False
        self._served = max(self._served, checkpoint.request)
        return True

    async def _refuse(self, request: int, failure: str) -> None:
        """Answer who asked, and hand nothing over until asked again."""
        self.last_failure, self._hand_over = failure, False
        if request <= self._served:
            return
        try:
            await self._delivered(Checkpoint(None, request, failure=failure))
        except Exception:  # noqa: BLE001 - then who asked learns it from the attempt's end
            _log.exception("the failure of a checkpoint cannot be reported")
            self._give_up()

    def _give_up(self) -> None:
        """What was asked for cannot be had here: do not try it for ever."""
        self._served, self._hand_over = self._wanted, False

    # -- when --

    def _called_for(self) -> bool:
        """One is to be taken now."""
        if self._timers is None or not self._runner.may_pause:
            return False
        if self._around.deadline() <= self._around.clock.boottime():
            return False  # about to be frozen for want of contact
        turn = self._turn and self._ran() >= self._fresh_until
        return self._hand_over or turn or self._wanted > self._served or self._ran() >= self._due

    def _ran(self) -> float:
        assert self._timers is not None
        return self._timers.ran(self._around.clock.boottime())
