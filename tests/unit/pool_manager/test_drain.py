"""Draining with hand-over: running attempts stop at a checkpoint and go on elsewhere."""

from __future__ import annotations

import asyncio

import pytest

from cloudclaw.errors import UnavailableError
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_pool_manager.app.operations import Operations
from cloudclaw_pool_manager.domain.attempt import KillReason
from cloudclaw_pool_manager.ports.backend import SlotPhase
from cloudclaw_pool_manager.ports.state import Drain
from tests.unit.pool_manager.pausing import held, hold, outcomes, pauses
from tests.unit.pool_manager.rig import TENANT, Rig, settle

COMMITTED = pb.ReportVerdict.VERDICT_COMMITTED


async def hand_over(rig: Rig) -> int:
    return await Operations(rig.manager).drain(hand_over=True)


async def test_every_running_attempt_ends_at_its_checkpoint_and_goes_on_elsewhere(rig: Rig) -> None:
    rig.leader.decides_checkpoints = False
    tasks = [await rig.running() for _ in range(2)]
    for _, sandbox in tasks:
        sandbox.write(b"half")
    assert await hand_over(rig) == 2
    assert rig.serving[-1] is False
    await rig.until(lambda: len({report.uid for report in rig.leader.checkpoints}) == 2)
    await rig.pass_time(5)
    for task, sandbox in tasks:
        assert sandbox.phase is SlotPhase.FROZEN, "it works on after the checkpoint: its side effects come twice"
        assert sandbox.stops == []
        report = next(r for r in rig.leader.checkpoints if r.uid == task.uid)
        rig.leader.decide_checkpoint(report, COMMITTED)
        await rig.gone(task)
        assert sandbox.stops == [KillReason.DRAINED]
        assert sandbox.pauses[-1][1] is None, "it was resumed after all"
        outcome = rig.report_of(task)
        assert (outcome.state, outcome.reason) == (task_pb2.ATTEMPT_STATE_FAILED, task_pb2.END_REASON_DRAINED)
        assert outcome.retryable
        assert not outcome.HasField("snapshot")
        assert bytes(rig.leader.logs[task.uid]) == b"half"
        assert outcome.log_end == 4
    assert rig.leader.heartbeats[-1].draining


async def test_an_attempt_whose_checkpoint_fails_runs_on_here_until_it_is_asked_again(rig: Rig) -> None:
    task, sandbox = await rig.running()
    rig.workspaces.errors["upload"] = [UnavailableError("no store")]
    await hand_over(rig)
    await rig.until(lambda: rig.workspaces.errors["upload"] == [])
    await rig.pass_time(5)
    assert sandbox.phase is SlotPhase.RUNNING
    assert (len(sandbox.pauses), sandbox.stops, rig.leader.checkpoints) == (1, [], [])
    [view] = [view for view in Operations(rig.manager).slots() if view.attempt]
    assert view.attempt is not None
    assert view.attempt.checkpoints.last_failure == "no store"
    await hand_over(rig)
    await rig.gone(task)
    assert rig.report_of(task).reason == task_pb2.END_REASON_DRAINED


async def test_what_has_not_started_is_given_back(rig: Rig) -> None:
    gate = rig.workspaces.gates["checkout"] = asyncio.Event()
    task = await rig.assign()
    await rig.until(lambda: "checkout" in rig.workspaces.waiting)
    await hand_over(rig)
    gate.set()
    await rig.gone(task)
    assert [(r.task_id, r.token) for r in rig.leader.rejects] == [(task.task_id, task.token)]
    assert rig.leader.reports == []
    assert rig.workspaces.released == [(task.uid, None)]
    assert rig.state.started == {}


async def test_a_drain_without_hand_over_lets_everything_end_here(rig: Rig) -> None:
    gate = rig.workspaces.gates["checkout"] = asyncio.Event()
    late = await rig.assign()
    await Operations(rig.manager).drain()
    gate.set()
    await rig.until(lambda: late.uid in rig.host.running())
    await rig.pass_time(10)
    assert rig.host.of(late.uid).pauses == []
    assert rig.leader.rejects == []


async def test_an_undrain_before_the_verdict_leaves_the_attempt_here(rig: Rig) -> None:
    rig.leader.decides_checkpoints = False
    task, sandbox = await rig.running()
    await hand_over(rig)
    await rig.until(lambda: bool(rig.leader.checkpoints))
    await Operations(rig.manager).undrain()
    rig.leader.decide_checkpoint(rig.leader.checkpoints[0], COMMITTED)
    await rig.until(lambda: sandbox.phase is SlotPhase.RUNNING)
    await rig.pass_time(5)
    assert sandbox.stops == []
    sandbox.finish(0)
    await rig.gone(task)
    assert rig.report_of(task).state == task_pb2.ATTEMPT_STATE_SUCCEEDED


async def test_without_a_leader_it_stands_still_until_there_is_one(rig: Rig) -> None:
    rig.leader.decides_checkpoints = False
    task, sandbox = await rig.running()
    await hand_over(rig)
    await rig.until(lambda: bool(rig.leader.checkpoints))
    rig.leader.up = False
    rig.leader.cut()
    await rig.pass_time(60)
    assert (sandbox.phase, sandbox.fenced, sandbox.stops) == (SlotPhase.FROZEN, False, [])
    rig.leader.up = rig.leader.decides_checkpoints = True
    await rig.gone(task)
    assert rig.report_of(task).reason == task_pb2.END_REASON_DRAINED
    assert len({report.snapshot.snapshot_id for report in rig.leader.checkpoints}) == 1
    assert len(sandbox.pauses) == 1


async def test_without_a_leader_an_undrain_lets_it_run_on_at_once_and_a_drain_begins_anew(rig: Rig) -> None:
    rig.leader.decides_checkpoints = False
    task, sandbox = await rig.running()
    await hand_over(rig)
    await rig.until(lambda: bool(rig.leader.checkpoints))
    rig.leader.up = False
    rig.leader.cut()
    await rig.pass_time(10)
    await Operations(rig.manager).undrain()
    await settle()
    assert sandbox.phase is SlotPhase.RUNNING, "it waits for a leader though nobody wants it to end"
    await hand_over(rig)
    rig.leader.up = True
    await rig.until(lambda: len({report.snapshot.snapshot_id for report in rig.leader.checkpoints}) == 2)
    first, last = rig.leader.checkpoints[0], rig.leader.checkpoints[-1]
    rig.leader.decide_checkpoint(first, COMMITTED)
    await rig.pass_time(1)
    assert sandbox.stops == [], "it ended at a checkpoint after which it had run"
    rig.leader.decide_checkpoint(last, COMMITTED)
    await rig.gone(task)
    assert sandbox.stops == [KillReason.DRAINED]
    assert [until is None for _, until in sandbox.pauses] == [False, True]


@pytest.mark.parametrize("step", ["scan", "upload"])
async def test_an_undrain_lets_it_run_on_though_the_store_hangs(rig: Rig, step: str) -> None:
    task, sandbox = await rig.running()
    gate = hold(rig, step)
    await hand_over(rig)
    await held(rig, step)
    assert pauses(sandbox) == 0
    await Operations(rig.manager).undrain()
    await settle()
    assert sandbox.phase is SlotPhase.RUNNING
    gate.set()
    await rig.pass_time(5)
    assert (rig.leader.checkpoints, sandbox.stops, outcomes(rig)) == ([], [], {"abandoned": 1})
    sandbox.finish(0)
    await rig.gone(task)
    assert rig.report_of(task).state == task_pb2.ATTEMPT_STATE_SUCCEEDED


async def test_who_asked_for_a_checkpoint_gets_one_though_the_hand_over_was_taken_back(rig: Rig) -> None:
    task, sandbox = await rig.running()
    gate = hold(rig, "upload")
    rig.leader.say(take_checkpoint=pb.TakeCheckpoint(tenant=TENANT, task_id=task.task_id, token=task.token, request=1))
    await hand_over(rig)
    await held(rig, "upload")
    await Operations(rig.manager).undrain()
    gate.set()
    await rig.until(lambda: bool(rig.leader.checkpoints))
    assert [(report.request, report.failure) for report in rig.leader.checkpoints] == [(1, "")]
    await rig.pass_time(1)
    assert (sandbox.phase, sandbox.stops) == (SlotPhase.RUNNING, [])


async def test_a_leader_that_repeats_the_drain_takes_no_hand_over_back(rig: Rig) -> None:
    await hand_over(rig)
    rig.leader.say(drain=pb.SetDraining(draining=True))
    await settle()
    assert rig.state.drained is Drain.HAND_OVER


async def test_a_hand_over_is_kept_over_a_restart(rig: Rig) -> None:
    rig.leader.decides_checkpoints = False
    task, sandbox = await rig.running()
    await hand_over(rig)
    await rig.until(lambda: bool(rig.leader.checkpoints))
    await rig.crash()
    rig.leader.decides_checkpoints = True
    await rig.start()
    await rig.gone(task)
    assert rig.report_of(task).reason == task_pb2.END_REASON_DRAINED
    assert sandbox.stops == [KillReason.DRAINED]


async def test_a_crash_between_the_end_and_its_report_reports_the_hand_over(rig: Rig) -> None:
    rig.leader.decides = False
    task, _ = await rig.running()
    await hand_over(rig)
    await rig.until(lambda: bool(rig.leader.reports))
    await rig.crash()
    rig.leader.reports.clear()
    rig.leader.decides = True
    await rig.start()
    await rig.gone(task)
    assert rig.report_of(task).reason == task_pb2.END_REASON_DRAINED


async def test_a_checkpoint_that_began_before_is_not_the_one_it_ends_at(rig: Rig) -> None:
    task, sandbox = await rig.running()
    gate = rig.workspaces.gates["upload"] = asyncio.Event()
    rig.leader.say(take_checkpoint=pb.TakeCheckpoint(tenant=TENANT, task_id=task.task_id, token=task.token, request=1))
    await rig.until(lambda: "upload" in rig.workspaces.waiting)
    await hand_over(rig)
    await rig.pass_time(1)
    assert sandbox.phase is SlotPhase.RUNNING
    gate.set()
    await rig.gone(task)
    assert len(rig.leader.checkpoints) == 2
    assert [until is None for _, until in sandbox.pauses] == [False, True]


@pytest.mark.parametrize("how", ["cancel", "kill"])
async def test_ended_while_it_waits_to_be_handed_over(rig: Rig, how: str) -> None:
    rig.leader.decides_checkpoints = False
    task, sandbox = await rig.running()
    await hand_over(rig)
    await rig.until(lambda: bool(rig.leader.checkpoints))
    named = {"tenant": TENANT, "task_id": task.task_id, "token": task.token}
    if how == "cancel":
        rig.leader.say(cancel=pb.CancelAttempt(**named))  # type: ignore[arg-type]
    else:
        rig.leader.say(kill=pb.KillAttempt(**named))  # type: ignore[arg-type]
    await rig.gone(task)
    assert sandbox.stops == [KillReason.CANCELED if how == "cancel" else KillReason.FENCED]
    assert [r.outcome.state for r in rig.leader.reports] == (
        [task_pb2.ATTEMPT_STATE_CANCELED] if how == "cancel" else []
    )


async def test_standing_still_for_a_hand_over_it_is_frozen_past_its_deadline_like_any_other(rig: Rig) -> None:
    rig.leader.decides_checkpoints = False
    task, sandbox = await rig.running()
    await hand_over(rig)
    await rig.until(lambda: bool(rig.leader.checkpoints))
    rig.leader.up = False
    rig.leader.cut()
    rig.kv.outage = True
    rig.kv._leases[rig.state.lease_id].expires += 100  # type: ignore[index]
    await rig.until(lambda: sandbox.fenced)
    rig.kv.outage = False
    rig.leader.up = rig.leader.decides_checkpoints = True
    await rig.gone(task)
    assert (sandbox.thaws, sandbox.stops) == (0, [KillReason.DRAINED])
    assert rig.report_of(task).reason == task_pb2.END_REASON_DRAINED
