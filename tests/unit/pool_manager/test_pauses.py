"""Checkpoints beside self-fencing, beside the attempt's end, and over restarts of the manager."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf.duration_pb2 import Duration

from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_pool_manager.domain.attempt import KillReason
from cloudclaw_pool_manager.ports.backend import SlotPhase
from tests.unit.pool_manager.pausing import ask, back, cut_off, freezes, held, hold, outcomes, pauses
from tests.unit.pool_manager.rig import TENANT, Rig, settle

EXCLUSIVE = task_pb2.WorkspaceSelection(name="ws", mode=task_pb2.WORKSPACE_MODE_EXCLUSIVE)
EVERY_5_S = Duration(seconds=5)


# -- beside self-fencing --


async def test_a_deadline_that_passes_in_a_pause_keeps_it_frozen_until_its_token_was_read(rig: Rig) -> None:
    task, sandbox = await rig.running()
    gate = hold(rig, "scan")
    ask(rig, task, 1)
    await held(rig, "scan")
    cut_off(rig)
    await rig.until(lambda: sandbox.fenced)
    gate.set()
    await rig.pass_time(5)
    assert sandbox.phase is SlotPhase.FROZEN, "thawed past its deadline"
    assert (pauses(sandbox), sandbox.thaws) == (0, 0)
    back(rig)
    await rig.until(lambda: sandbox.phase is SlotPhase.RUNNING)
    assert sandbox.thaws == 1
    assert freezes(rig) == 1
    await rig.until(lambda: bool(rig.leader.checkpoints))
    assert rig.leader.checkpoints[0].HasField("snapshot"), "what was copied while all stood still is good"
    sandbox.finish(0)
    await rig.gone(task)


async def test_contact_that_comes_back_in_a_pause_thaws_nothing_before_the_scan_is_over(rig: Rig) -> None:
    task, sandbox = await rig.running()
    gate = hold(rig, "scan")
    ask(rig, task, 1)
    await held(rig, "scan")
    cut_off(rig)
    await rig.until(lambda: sandbox.fenced)
    back(rig)
    await rig.until(lambda: rig.leader.connected)
    await rig.pass_time(3)
    assert sandbox.phase is SlotPhase.FROZEN, "it ran while its files were copied"
    gate.set()
    await rig.until(lambda: sandbox.phase is SlotPhase.RUNNING, within=2)
    assert sandbox.thaws == 1


async def test_in_a_pause_whose_token_is_gone_it_is_killed_and_never_thawed(rig: Rig) -> None:
    task, sandbox = await rig.running()
    gate = hold(rig, "scan")
    ask(rig, task, 1)
    await held(rig, "scan")
    cut_off(rig)
    await rig.until(lambda: sandbox.fenced)
    rig.kv.outage = False
    await rig.unclaim(task.task_id)
    gate.set()
    await rig.gone(task)
    assert (sandbox.stops, sandbox.thaws, pauses(sandbox)) == ([KillReason.FENCED], 0, 0)
    assert rig.leader.reports == []


async def test_while_frozen_for_want_of_contact_no_checkpoint_begins(rig: Rig) -> None:
    task, sandbox = await rig.running()
    cut_off(rig)
    await rig.until(lambda: sandbox.phase is SlotPhase.FROZEN)
    rig.leader.up = True
    await rig.until(lambda: rig.leader.connected)
    ask(rig, task, 1)
    await rig.pass_time(3)
    assert sandbox.pauses == []
    rig.kv.outage = False
    await rig.until(lambda: len(sandbox.pauses) == 1)


@pytest.mark.parametrize("step", ["scan", "upload"])
async def test_a_fence_abandons_it_and_lets_nothing_run_on(rig: Rig, step: str) -> None:
    hold(rig, step)
    task, sandbox = await rig.running(workspace=EXCLUSIVE)
    ask(rig, task, 1)
    await held(rig, step)
    rig.leader.say(kill=pb.KillAttempt(tenant=TENANT, task_id=task.task_id, token=task.token))
    await rig.gone(task)
    assert sandbox.stops == [KillReason.FENCED]
    assert pauses(sandbox) == (1 if step == "upload" else 0)
    assert (rig.leader.checkpoints, rig.workspaces.snapshots) == ([], [])
    assert outcomes(rig) == {"abandoned": 1}


# -- beside the attempt's end --


@pytest.mark.parametrize("step", ["scan", "upload"])
async def test_a_cancel_abandons_it_and_ends_the_attempt_at_once(rig: Rig, step: str) -> None:
    hold(rig, step)
    task, sandbox = await rig.running()
    ask(rig, task, 1)
    await held(rig, step)
    begun = rig.clock.now
    rig.leader.say(cancel=pb.CancelAttempt(tenant=TENANT, task_id=task.task_id, token=task.token))
    await rig.gone(task)
    assert rig.clock.now - begun < 0.5
    assert pauses(sandbox) == 1, "its processes may end in peace only when they can run"
    assert sandbox.stops == [KillReason.CANCELED]
    assert rig.report_of(task).state == task_pb2.ATTEMPT_STATE_CANCELED
    assert rig.leader.checkpoints == []


async def test_a_timeout_while_one_is_uploaded_ends_the_attempt(rig: Rig) -> None:
    timeouts = task_pb2.Timeouts()
    timeouts.run.seconds = 5
    hold(rig, "upload")
    task, sandbox = await rig.running(timeouts=timeouts)
    ask(rig, task, 1)
    await rig.gone(task)
    assert sandbox.stops == [KillReason.RUN_TIMEOUT]
    assert rig.report_of(task).reason == task_pb2.END_REASON_RUN_TIMEOUT


async def test_an_end_while_one_is_uploaded_abandons_it_before_the_files_are_kept(rig: Rig) -> None:
    hold(rig, "upload")
    task, sandbox = await rig.running(workspace=EXCLUSIVE)
    ask(rig, task, 1)
    await held(rig, "upload")
    sandbox.finish(0)
    await rig.gone(task)
    assert rig.report_of(task).state == task_pb2.ATTEMPT_STATE_SUCCEEDED
    assert len(rig.workspaces.snapshots) == 1
    assert rig.leader.checkpoints == []
    assert outcomes(rig) == {"abandoned": 1}


async def test_an_end_while_a_checkpoint_waits_for_its_verdict_waits_for_nothing(rig: Rig) -> None:
    rig.leader.decides_checkpoints = False
    task, sandbox = await rig.running()
    ask(rig, task, 1)
    await rig.until(lambda: bool(rig.leader.checkpoints))
    sandbox.finish(0)
    await rig.gone(task)
    assert rig.report_of(task).state == task_pb2.ATTEMPT_STATE_SUCCEEDED


async def test_a_sandbox_killed_in_a_pause_ends_as_it_would_without(rig: Rig) -> None:
    hold(rig, "scan")
    task, sandbox = await rig.running()
    ask(rig, task, 1)
    await held(rig, "scan")
    sandbox.finish(137, killed=KillReason.MEMORY_LIMIT)
    await rig.gone(task)
    assert rig.report_of(task).reason == task_pb2.END_REASON_MEMORY_LIMIT


@pytest.mark.parametrize("how", ["supervisor", "call"])
async def test_a_slot_that_breaks_in_a_pause_is_the_slots_failure(rig: Rig, how: str) -> None:
    gate = hold(rig, "scan")
    task, sandbox = await rig.running()
    ask(rig, task, 1)
    await held(rig, "scan")
    if how == "supervisor":
        sandbox.die()
    else:
        sandbox.refuses = "no answer"
        gate.set()
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.reason, outcome.retryable) == (task_pb2.END_REASON_SLOT_FAILED, True)
    await rig.until(lambda: len(rig.host.alive) == 2)


# -- over restarts --


async def test_a_manager_killed_in_a_pause_leaves_an_attempt_that_the_next_one_thaws(rig: Rig) -> None:
    hold(rig, "scan")
    task, sandbox = await rig.running()
    ask(rig, task, 1)
    await held(rig, "scan")
    await rig.crash()
    rig.workspaces.gates.clear()
    assert sandbox.phase is SlotPhase.FROZEN
    await rig.start()
    await rig.until(lambda: sandbox.phase is SlotPhase.RUNNING, within=3)
    assert sandbox.thaws == 1
    ask(rig, task, 1)
    await rig.until(lambda: bool(rig.leader.checkpoints))
    sandbox.finish(0)
    await rig.gone(task)


async def test_a_manager_killed_in_a_pause_and_long_away_leaves_it_frozen_and_not_running(rig: Rig) -> None:
    hold(rig, "scan")
    task, sandbox = await rig.running()
    ask(rig, task, 1)
    await held(rig, "scan")
    await rig.crash()
    rig.workspaces.gates.clear()
    await rig.pass_time(5)
    assert sandbox.fenced
    await rig.unclaim(task.task_id)
    await rig.start()
    assert sandbox.stops == [KillReason.FENCED]
    assert sandbox.thaws == 0


@pytest.mark.parametrize("late", [False, True])
async def test_a_manager_killed_while_it_freezes_leaves_an_attempt_that_runs_on(rig: Rig, late: bool) -> None:
    """Its processes stand still after the next manager has come: before that one asks them to go on, or after."""
    task, sandbox = await rig.running()
    sandbox.gates["freeze"] = asyncio.Event()
    ask(rig, task, 1)
    await settle()
    await rig.crash()
    sandbox.freezing = True
    asked = sandbox.gates["resume"] = asyncio.Event()
    await rig.start()
    if not late:
        sandbox.stand_still()
        await settle()
        assert sandbox.phase is SlotPhase.FROZEN
    asked.set()
    await settle()
    sandbox.stand_still()
    await rig.until(lambda: sandbox.phase is SlotPhase.RUNNING, within=3)
    assert sandbox.phase is SlotPhase.RUNNING
    sandbox.gates.clear()
    ask(rig, task, 1)
    await rig.until(lambda: bool(rig.leader.checkpoints))
    await rig.pass_time(1)
    assert sandbox.phase is SlotPhase.RUNNING
    sandbox.finish(0)
    await rig.gone(task)


async def test_a_freeze_by_an_earlier_manager_that_is_done_late_waits_for_the_token(rig: Rig) -> None:
    """Also where the supervisor is of a release that knows no `resume`, or its answer was lost."""
    task, sandbox = await rig.running()
    await rig.crash()
    await rig.start()
    await rig.pass_time(2)
    sandbox.freezing = True
    sandbox.stand_still()
    await rig.until(lambda: sandbox.thaws == 1, within=2)
    assert sandbox.phase is SlotPhase.RUNNING
    sandbox.finish(0)
    await rig.gone(task)


async def test_a_manager_that_stops_in_a_pause_lets_go_first(rig: Rig) -> None:
    hold(rig, "scan")
    task, sandbox = await rig.running()
    ask(rig, task, 1)
    await held(rig, "scan")
    await rig.stop()
    assert sandbox.phase is SlotPhase.RUNNING
    assert pauses(sandbox) == 1


async def test_an_adopted_attempt_keeps_its_interval_however_often_managers_change(rig: Rig) -> None:
    _, sandbox = await rig.running(checkpoint_interval=Duration(seconds=10))
    for _ in range(3):
        await rig.pass_time(3)
        await rig.crash()
        await rig.start()
    await rig.until(lambda: len(sandbox.pauses) == 1, within=3)
