"""Slots that break under an attempt."""

from __future__ import annotations

import asyncio

import pytest

from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_pool_manager.domain.attempt import Exit, KillReason
from cloudclaw_pool_manager.ports.backend import SlotPhase
from tests.unit.pool_manager.rig import Rig, settle

SUCCEEDED, FAILED, CANCELED = (
    task_pb2.ATTEMPT_STATE_SUCCEEDED,
    task_pb2.ATTEMPT_STATE_FAILED,
    task_pb2.ATTEMPT_STATE_CANCELED,
)
EXCLUSIVE = task_pb2.WorkspaceSelection(name="ws", mode=task_pb2.WORKSPACE_MODE_EXCLUSIVE)


@pytest.mark.parametrize("how", ["supervisor", "call"])
async def test_a_slot_that_breaks_under_an_attempt_fails_it_when_its_processes_are_gone(rig: Rig, how: str) -> None:
    task, sandbox = await rig.running()
    sandbox.write(b"before")
    await settle()
    gate = rig.host.gates["destroy"] = asyncio.Event()
    if how == "supervisor":
        sandbox.die()
    else:
        sandbox.refuses = "no answer"
    await rig.pass_time(2)
    assert not rig.leader.reports, "reported while its processes may be alive"
    gate.set()
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.state, outcome.reason, outcome.retryable) == (FAILED, task_pb2.END_REASON_SLOT_FAILED, True)
    assert outcome.log_end == len(rig.leader.logs[task.uid]) == 6
    await rig.until(lambda: len(rig.host.alive) == 2)
    await rig.running()
    assert rig.host.peak == 2


async def test_a_slot_that_fails_to_start_fails_the_attempt(rig: Rig) -> None:
    for supervisor in rig.host.alive.values():
        supervisor.refuses = "broken"
    task = await rig.assign()
    await rig.gone(task)
    assert rig.report_of(task).reason == task_pb2.END_REASON_SLOT_FAILED


async def test_a_slot_that_breaks_while_its_report_waits_keeps_the_report(rig: Rig) -> None:
    rig.leader.decides = False
    task, sandbox = await rig.running()
    sandbox.finish(0)
    await rig.until(lambda: bool(rig.leader.reports))
    sandbox.die()
    await rig.until(lambda: len(rig.host.provisions) == 3)
    other, _ = await rig.running()
    rig.leader.decide(rig.leader.reports[0], pb.ReportVerdict.VERDICT_COMMITTED)
    await rig.gone(task)
    assert other.uid in rig.host.running()
    assert rig.report_of(task).state == SUCCEEDED


async def test_a_sandbox_that_could_not_be_built_is_the_slots_failure_and_not_the_tasks(rig: Rig) -> None:
    task, sandbox = await rig.running(workspace=EXCLUSIVE)
    pid = sandbox.pid
    sandbox.exit = Exit(1, 0, KillReason.NONE, False, 0, 0.0, 0.0, failed="bwrap: No space left on device")
    sandbox.phase = SlotPhase.EXITED
    sandbox.tell()
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.state, outcome.reason, outcome.retryable) == (FAILED, task_pb2.END_REASON_SLOT_FAILED, True)
    assert "bwrap: No space left on device" in outcome.message
    assert rig.workspaces.snapshots == []
    assert pid not in [s.pid for s in rig.host.alive.values()]
