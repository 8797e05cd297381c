"""Faults of ours in the middle of a checkpoint: they cost it, never the attempt, and nobody waits for ever."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_pool_manager.app import messages
from cloudclaw_pool_manager.app.operations import Operations
from cloudclaw_pool_manager.domain.attempt import AttemptId
from cloudclaw_pool_manager.domain.outcome import Checkpoint
from cloudclaw_pool_manager.ports.backend import SlotPhase
from tests.support.fake_slots import FakeSlot
from tests.unit.pool_manager.pausing import ask, freezes, outcomes, pauses
from tests.unit.pool_manager.rig import Rig


@pytest.fixture
def unspeakable(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Checkpoints that cannot be put into a report: as many as the number that the list holds, reports of failures
    left out unless there is a second number."""
    left = [1]
    spoken = messages.checkpoint_report

    def report(attempt: AttemptId, checkpoint: Checkpoint) -> pb.CheckpointReport:
        if checkpoint.snapshot is None:
            if len(left) > 1:
                raise ZeroDivisionError("nor a failure")
        elif left[0]:
            left[0] -= 1
            raise ZeroDivisionError("a bug")
        return spoken(attempt, checkpoint)

    monkeypatch.setattr(messages, "checkpoint_report", report)
    return left


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The next pause cannot be let go: as often as the number that the list holds."""
    left = [1]
    real = FakeSlot.resume

    async def resume(self: FakeSlot, uid: str, deadline: float) -> bool:
        if left[0]:
            left[0] -= 1
            raise ZeroDivisionError("a bug")
        return await real(self, uid, deadline)

    monkeypatch.setattr(FakeSlot, "resume", resume)
    return left


async def test_who_asked_is_told_and_the_next_one_is_taken(rig: Rig, unspeakable: list[int]) -> None:
    task, sandbox = await rig.running()
    ask(rig, task, 1)
    await rig.until(lambda: bool(rig.leader.checkpoints))
    [report] = rig.leader.checkpoints
    assert (report.request, report.HasField("snapshot")) == (1, False)
    assert "a bug" in report.failure
    assert sandbox.phase is SlotPhase.RUNNING
    ask(rig, task, 2)
    await rig.until(lambda: rig.leader.checkpoints[-1].request == 2)
    assert rig.leader.checkpoints[-1].HasField("snapshot")
    sandbox.finish(0)
    await rig.gone(task)
    assert rig.report_of(task).state == task_pb2.ATTEMPT_STATE_SUCCEEDED


async def test_a_failure_that_cannot_be_told_either_stops_no_later_checkpoint(rig: Rig, unspeakable: list[int]) -> None:
    unspeakable.append(1)
    task, sandbox = await rig.running()
    ask(rig, task, 1)
    await rig.until(lambda: pauses(sandbox) == 1)
    await rig.pass_time(2)
    assert rig.leader.checkpoints == []
    assert len(sandbox.pauses) == 1, "it is tried for ever"
    ask(rig, task, 2)
    await rig.until(lambda: bool(rig.leader.checkpoints))
    assert rig.leader.checkpoints[0].HasField("snapshot")


async def test_those_by_the_clock_go_on(rig: Rig, unspeakable: list[int]) -> None:
    _, sandbox = await rig.running(checkpoint_interval=Duration(seconds=5))
    await rig.until(lambda: len(sandbox.pauses) == 1)
    failed = rig.clock.now
    await rig.until(lambda: bool(rig.leader.checkpoints))
    assert rig.clock.now - failed == pytest.approx(5, abs=0.5)


async def test_a_hand_over_runs_on_here_until_it_is_asked_again(rig: Rig, unspeakable: list[int]) -> None:
    task, sandbox = await rig.running()
    await Operations(rig.manager).drain(hand_over=True)
    await rig.until(lambda: pauses(sandbox) == 1)
    await rig.pass_time(3)
    assert (sandbox.phase, sandbox.stops) == (SlotPhase.RUNNING, [])
    await Operations(rig.manager).drain(hand_over=True)
    await rig.gone(task)
    assert rig.report_of(task).reason == task_pb2.END_REASON_DRAINED


async def test_what_could_not_be_let_go_is_thawed_once_its_token_was_read(rig: Rig, stuck: list[int]) -> None:
    timeouts = task_pb2.Timeouts()
    timeouts.run.seconds = 30
    task, sandbox = await rig.running(timeouts=timeouts)
    ask(rig, task, 1)
    await rig.until(lambda: sandbox.thaws == 1, within=2)
    assert (sandbox.phase, pauses(sandbox), freezes(rig)) == (SlotPhase.RUNNING, 0, 1)
    await rig.until(lambda: bool(rig.leader.checkpoints))
    assert "a bug" in rig.leader.checkpoints[0].failure
    ask(rig, task, 2)
    await rig.until(lambda: rig.leader.checkpoints[-1].request == 2)
    assert rig.leader.checkpoints[-1].HasField("snapshot")
    await rig.gone(task)
    assert rig.report_of(task).reason == task_pb2.END_REASON_RUN_TIMEOUT, "its clock goes on"


async def test_what_could_not_be_let_go_is_killed_when_it_is_not_ours_any_more(rig: Rig, stuck: list[int]) -> None:
    task, sandbox = await rig.running()
    await rig.unclaim(task.task_id)
    ask(rig, task, 1)
    await rig.gone(task)
    assert (sandbox.thaws, pauses(sandbox), rig.leader.reports) == (0, 0, [])


async def test_a_hand_over_that_fails_while_it_cannot_be_let_go_runs_on(
    rig: Rig, stuck: list[int], unspeakable: list[int]
) -> None:
    task, sandbox = await rig.running()
    await Operations(rig.manager).drain(hand_over=True)
    await rig.until(lambda: sandbox.thaws == 1, within=2)
    await rig.pass_time(3)
    assert (sandbox.phase, sandbox.stops, outcomes(rig)) == (SlotPhase.RUNNING, [], {"abandoned": 1})
    sandbox.finish(0)
    await rig.gone(task)
