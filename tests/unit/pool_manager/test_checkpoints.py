"""Checkpoints of running attempts, and all that can come in between."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from cloudclaw.errors import InvalidArgumentError, UnavailableError
from cloudclaw.snapshots.port import Progress
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_pool_manager.domain.attempt import KillReason
from cloudclaw_pool_manager.ports.backend import SlotPhase
from tests.unit.pool_manager.pausing import ask, back, cut_off, freezes, held, hold, outcomes
from tests.unit.pool_manager.rig import NODE, TENANT, Rig, settle

EXCLUSIVE = task_pb2.WorkspaceSelection(name="ws", mode=task_pb2.WORKSPACE_MODE_EXCLUSIVE)
EVERY_5_S = Duration(seconds=5)


# -- when --


async def test_the_first_comes_an_interval_after_the_start_and_the_next_after_the_end_of_the_last(rig: Rig) -> None:
    _, sandbox = await rig.running(checkpoint_interval=EVERY_5_S)
    started = rig.clock.now
    gate = hold(rig, "upload")
    await held(rig, "upload")
    assert rig.clock.now - started == pytest.approx(5, abs=0.3)
    await rig.pass_time(20)
    assert len(sandbox.pauses) == 1, "two at once"
    gate.set()
    await rig.until(lambda: len(rig.leader.checkpoints) == 1)
    ended = rig.clock.now
    await rig.until(lambda: len(sandbox.pauses) == 2)
    assert rig.clock.now - ended == pytest.approx(5, abs=0.3)
    await rig.until(lambda: len(rig.leader.checkpoints) == 2)
    ids = [report.snapshot.snapshot_id for report in rig.leader.checkpoints]
    assert len(set(ids)) == 2
    assert all(name.startswith("ckpt-") for name in ids)
    assert [report.request for report in rig.leader.checkpoints] == [0, 0]


async def test_without_an_interval_there_is_none_until_somebody_asks(rig: Rig) -> None:
    task, sandbox = await rig.running()
    await rig.pass_time(60)
    assert sandbox.pauses == []
    ask(rig, task, 1)
    await rig.until(lambda: bool(rig.leader.checkpoints), within=0.5)
    [report] = rig.leader.checkpoints
    assert (report.tenant, report.task_id, report.token) == (TENANT, task.task_id, task.token)
    assert (report.uid, report.request, report.failure) == (task.uid, 1, "")
    assert report.snapshot.uid == task.uid
    assert outcomes(rig) == {"committed": 1}


async def test_time_frozen_for_want_of_contact_does_not_bring_a_checkpoint_nearer(rig: Rig) -> None:
    _, sandbox = await rig.running(checkpoint_interval=Duration(seconds=10))
    await rig.pass_time(2)
    cut_off(rig)
    await rig.until(lambda: sandbox.phase is SlotPhase.FROZEN)
    await rig.pass_time(20)
    back(rig)
    await rig.until(lambda: sandbox.phase is SlotPhase.RUNNING)
    await rig.pass_time(4)
    assert sandbox.pauses == []
    await rig.until(lambda: len(sandbox.pauses) == 1, within=5)


async def test_a_repeated_request_is_answered_once(rig: Rig) -> None:
    task, sandbox = await rig.running()
    gate = hold(rig, "scan")
    ask(rig, task, 1)
    await held(rig, "scan")
    gate.set()
    await rig.until(lambda: len(rig.leader.checkpoints) == 1)
    ask(rig, task, 1)
    await rig.pass_time(5)
    assert len(sandbox.pauses) == 1


async def test_a_request_that_comes_while_one_is_taken_is_answered_by_the_next(rig: Rig) -> None:
    task, sandbox = await rig.running()
    gate = hold(rig, "upload")
    ask(rig, task, 1)
    await held(rig, "upload")
    ask(rig, task, 2)
    ask(rig, task, 3)
    await rig.pass_time(2)
    assert len(sandbox.pauses) == 1
    gate.set()
    await rig.until(lambda: len(rig.leader.checkpoints) == 2, within=0.5)
    assert [report.request for report in rig.leader.checkpoints] == [1, 3]
    await rig.pass_time(2)
    assert len(sandbox.pauses) == 2


async def test_a_checkpoint_by_the_clock_answers_who_asked_before_it(rig: Rig) -> None:
    task, sandbox = await rig.running(checkpoint_interval=EVERY_5_S)
    rig.leader.decides_checkpoints = False
    await rig.until(lambda: len(rig.leader.checkpoints) == 1)
    ask(rig, task, 4)
    await rig.pass_time(0.5)
    assert len(sandbox.pauses) == 1, "a newer one was taken before the older had its verdict"
    rig.leader.decides_checkpoints = True
    rig.leader.decide_checkpoint(rig.leader.checkpoints[0], pb.ReportVerdict.VERDICT_COMMITTED)
    await rig.until(lambda: rig.leader.checkpoints[-1].request == 4, within=0.5)


# -- what it does to the attempt --


async def test_a_pause_shows_as_running_counts_as_no_freeze_and_says_how_far_it_has_come(rig: Rig) -> None:
    task, sandbox = await rig.running()
    rig.workspaces.progress = Progress(3, 30, 10, 100)
    gate = hold(rig, "scan")
    ask(rig, task, 1)
    await held(rig, "scan")
    await rig.pass_time(5)
    assert sandbox.phase is SlotPhase.FROZEN
    beats = [beat.attempts[0] for beat in rig.leader.heartbeats[-8:]]
    assert {beat.phase for beat in beats} == {pb.ATTEMPT_PHASE_RUNNING}
    assert (beats[-1].progress.files, beats[-1].progress.total_bytes) == (3, 100)
    gate.set()
    await rig.until(lambda: sandbox.phase is SlotPhase.RUNNING)
    await rig.until(lambda: bool(rig.leader.checkpoints))
    await rig.pass_time(1)
    assert freezes(rig) == 0
    assert sandbox.thaws == 0
    assert not rig.leader.heartbeats[-1].attempts[0].HasField("progress")
    frozen = rig.leader.checkpoints[0].frozen
    assert 4.9 <= frozen.seconds + frozen.nanos / 1e9 <= 5.3


async def test_a_pause_counts_for_no_timeout(rig: Rig) -> None:
    timeouts = task_pb2.Timeouts()
    timeouts.run.seconds, timeouts.silence.seconds = 10, 8
    task, sandbox = await rig.running(timeouts=timeouts)
    await rig.pass_time(4)
    gate = hold(rig, "scan")
    ask(rig, task, 1)
    await held(rig, "scan")
    await rig.pass_time(30)
    gate.set()
    await rig.until(lambda: sandbox.phase is SlotPhase.RUNNING)
    await rig.pass_time(3)
    assert sandbox.stops == []
    sandbox.write(b".")
    await rig.gone(task)
    assert sandbox.stops == [KillReason.RUN_TIMEOUT]


async def test_the_files_that_are_mapped_are_named_while_nothing_moves(rig: Rig) -> None:
    task, sandbox = await rig.running()
    sandbox.mapped = frozenset({7, 9})
    ask(rig, task, 1)
    await rig.until(lambda: bool(rig.workspaces.checkpoints))
    assert rig.workspaces.checkpoints[0][1] == {7, 9}


@pytest.mark.parametrize("step", ["scan", "upload"])
@pytest.mark.parametrize(
    "error", [InvalidArgumentError("workspace/pipe is a FIFO", field="path"), UnavailableError("no store"), OSError(28)]
)
async def test_one_that_fails_ends_nothing_and_says_why_to_who_asked(rig: Rig, step: str, error: Exception) -> None:
    rig.workspaces.errors[step] = [error]
    task, sandbox = await rig.running()
    ask(rig, task, 1)
    await rig.until(lambda: bool(rig.leader.checkpoints))
    [report] = rig.leader.checkpoints
    assert not report.HasField("snapshot")
    assert (report.request, report.failure) == (1, str(error))
    assert sandbox.phase is SlotPhase.RUNNING
    assert outcomes(rig) == {"failed": 1}
    ask(rig, task, 2)
    await rig.until(lambda: rig.leader.checkpoints[-1].request == 2)
    assert rig.leader.checkpoints[-1].HasField("snapshot")
    sandbox.finish(0)
    await rig.gone(task)
    assert rig.report_of(task).state == task_pb2.ATTEMPT_STATE_SUCCEEDED


async def test_one_by_the_clock_that_fails_is_not_reported_and_the_next_comes_in_time(rig: Rig) -> None:
    rig.workspaces.errors["scan"] = [UnavailableError("no store")]
    _, sandbox = await rig.running(checkpoint_interval=EVERY_5_S)
    await rig.until(lambda: len(sandbox.pauses) == 1)
    failed = rig.clock.now
    await rig.until(lambda: len(rig.leader.checkpoints) == 1)
    assert rig.clock.now - failed == pytest.approx(5, abs=0.5)
    assert rig.leader.checkpoints[0].HasField("snapshot")


async def test_processes_that_do_not_stand_still_cost_a_checkpoint_and_not_the_attempt(rig: Rig) -> None:
    timeouts = task_pb2.Timeouts()
    timeouts.run.seconds = 20
    task, sandbox = await rig.running(timeouts=timeouts)
    sandbox.restless = True
    ask(rig, task, 1)
    await rig.until(lambda: bool(rig.leader.checkpoints))
    assert "stand still" in rig.leader.checkpoints[0].failure
    assert sandbox.phase is SlotPhase.RUNNING
    await rig.gone(task)
    assert rig.report_of(task).reason == task_pb2.END_REASON_RUN_TIMEOUT, "its clock goes on"


async def test_a_fault_of_ours_costs_a_checkpoint_and_not_the_attempt(rig: Rig) -> None:
    rig.workspaces.errors["scan"] = [ZeroDivisionError("a bug")]
    task, sandbox = await rig.running()
    ask(rig, task, 1)
    await rig.until(lambda: bool(rig.leader.checkpoints))
    assert "a bug" in rig.leader.checkpoints[0].failure
    assert sandbox.phase is SlotPhase.RUNNING


# -- the verdict --


async def test_a_report_is_repeated_over_reconnects_until_its_verdict(rig: Rig) -> None:
    rig.leader.decides_checkpoints = False
    task, _ = await rig.running()
    ask(rig, task, 1)
    await rig.until(lambda: len(rig.leader.checkpoints) >= 3)
    rig.leader.checkpoints.clear()
    rig.leader.cut()
    await rig.until(lambda: len(rig.leader.hellos) == 2)
    await rig.until(lambda: bool(rig.leader.checkpoints), within=0.5)
    rig.leader.decide_checkpoint(rig.leader.checkpoints[0], pb.ReportVerdict.VERDICT_COMMITTED)
    await rig.until(lambda: outcomes(rig) == {"committed": 1}, within=0.5)
    count = len(rig.leader.checkpoints)
    await rig.pass_time(5)
    assert len(rig.leader.checkpoints) == count


async def test_a_verdict_of_retry_is_reported_again_soon_and_one_on_another_report_is_dropped(rig: Rig) -> None:
    rig.leader.decides_checkpoints = False
    task, _ = await rig.running()
    ask(rig, task, 1)
    await rig.until(lambda: len(rig.leader.checkpoints) == 1)
    other = pb.CheckpointReport(uid=task.uid, snapshot=task_pb2.SnapshotRef(snapshot_id="ckpt-old"), request=1)
    rig.leader.decide_checkpoint(other, pb.ReportVerdict.VERDICT_FENCED)
    await settle()
    rig.leader.decides_checkpoints = True
    rig.leader.checkpoint_verdicts = [pb.ReportVerdict.VERDICT_RETRY] * 2
    begun, count = rig.clock.now, len(rig.leader.checkpoints)
    rig.leader.decide_checkpoint(rig.leader.checkpoints[0], pb.ReportVerdict.VERDICT_RETRY)
    await rig.until(lambda: outcomes(rig) == {"committed": 1})
    assert len(rig.leader.checkpoints) - count == 3
    assert rig.clock.now - begun < 1.0
    assert len({r.SerializeToString() for r in rig.leader.checkpoints}) == 1


async def test_a_fenced_checkpoint_kills_its_attempt(rig: Rig) -> None:
    rig.leader.checkpoint_verdicts = [pb.ReportVerdict.VERDICT_FENCED]
    task, sandbox = await rig.running()
    ask(rig, task, 1)
    await rig.gone(task)
    assert sandbox.stops == [KillReason.FENCED]
    assert rig.leader.reports == []
    assert outcomes(rig) == {"fenced": 1}


# -- resuming --


async def test_an_attempt_that_resumes_is_told_from_what_and_works_against_the_head(rig: Rig) -> None:
    task, sandbox = await rig.running(
        workspace=EXCLUSIVE,
        base=task_pb2.SnapshotRef(snapshot_id="ckpt-1", manifest_digest="cd" * 32, uid="att-old"),
        head=task_pb2.SnapshotRef(snapshot_id="snap-head", manifest_digest="ab" * 32),
        resumes=True,
    )
    assert sandbox.launch is not None
    assert sandbox.launch.env["CLAW_RESUMED_FROM"] == "ckpt-1"
    tree = rig.workspaces.trees[task.uid]
    assert tree.base is not None
    assert tree.head is not None
    assert (tree.base.id, tree.base.uid, tree.head.id) == ("ckpt-1", "att-old", "snap-head")
    sandbox.finish(0)
    await rig.gone(task)
    assert rig.report_of(task).snapshot.parent_id == "snap-head"


async def test_a_first_attempt_is_told_of_no_checkpoint(rig: Rig) -> None:
    _, sandbox = await rig.running(base=task_pb2.SnapshotRef(snapshot_id="snap-1", manifest_digest="cd" * 32))
    assert sandbox.launch is not None
    assert "CLAW_RESUMED_FROM" not in sandbox.launch.env


async def test_trees_of_a_tenant_that_is_deleted_are_forgotten(rig: Rig) -> None:
    rig.workspaces.errors["forget"] = [OSError(5, "broken disk")]
    for _ in range(2):
        rig.leader.say(forget_tenant=pb.ForgetTenant(tenant="gone"))
        await settle()
    assert rig.workspaces.forgotten == ["gone"]
    assert rig.manager.node == NODE
