"""Attempts whose object store is away or full: they wait, and end the wait for whoever wants them to end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from cloudclaw.errors import CloudClawError, DataLossError, QuotaExceededError, UnavailableError
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_pool_manager.app.attempts import AttemptRunner
from cloudclaw_pool_manager.app.manager import Behaviour
from cloudclaw_pool_manager.app.operations import Operations
from cloudclaw_pool_manager.domain.outcome import Phase
from cloudclaw_pool_manager.ports.backend import SlotPhase
from tests.support.fake_slots import FakeSupervisor
from tests.unit.pool_manager.rig import TENANT, Rig

SUCCEEDED, FAILED, CANCELED = (
    task_pb2.ATTEMPT_STATE_SUCCEEDED,
    task_pb2.ATTEMPT_STATE_FAILED,
    task_pb2.ATTEMPT_STATE_CANCELED,
)
SNAPSHOT_FAILED = task_pb2.END_REASON_SNAPSHOT_FAILED
EXCLUSIVE = task_pb2.WorkspaceSelection(name="ws", mode=task_pb2.WORKSPACE_MODE_EXCLUSIVE)
PATIENCE = 30.0
NEVER = 1000
STEPS = ["checkout", "collect", "snapshot"]


def away(times: int = NEVER) -> list[Exception]:
    return [UnavailableError("no route to the store") for _ in range(times)]


def full(times: int = NEVER) -> list[Exception]:
    return [QuotaExceededError("no room for object x", reason="OBJECT_STORE_FULL") for _ in range(times)]


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    """A node that waits for its store half a minute."""
    made = Rig(behaviour=Behaviour(slot_wait=2.0, cancel_grace=2.0, store_patience=PATIENCE))
    await made.start()
    yield made
    await made.close()


def runner(rig: Rig, task: pb.Assignment) -> AttemptRunner:
    return next(r for r in rig.manager.table.runners() if r.attempt.uid == task.uid)


def waits(rig: Rig, task: pb.Assignment) -> bool:
    return bool(runner(rig, task).patience.waiting)


async def waiting(rig: Rig, step: str) -> tuple[pb.Assignment, FakeSupervisor | None]:
    """An attempt that waits in this step for the store, and its sandbox."""
    if step == "checkout":
        task = await rig.assign(workspace=EXCLUSIVE)
        await rig.until(lambda: waits(rig, task))
        return task, None
    task, sandbox = await rig.running(workspace=EXCLUSIVE, artifacts=["out/**"])
    sandbox.finish(0)
    await rig.until(lambda: waits(rig, task))
    return task, sandbox


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("trouble", [away, full])
async def test_a_store_that_returns_in_time_costs_no_work(rig: Rig, step: str, trouble: object) -> None:
    rig.workspaces.errors[step] = trouble(6)  # type: ignore[operator]
    task, sandbox = await waiting(rig, step)
    there = runner(rig, task)
    assert there.phase is (Phase.PREPARING if step == "checkout" else Phase.SAVING)
    assert "waiting for the object store" in there.patience.waiting
    if sandbox is None:
        await rig.until(lambda: task.uid in rig.host.running())
        rig.host.of(task.uid).finish(0)
    await rig.gone(task)
    assert rig.report_of(task).state == SUCCEEDED
    assert rig.workspaces.errors[step] == []
    assert there.patience.waiting == ""
    assert len(rig.workspaces.snapshots) == 1


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("checkout", task_pb2.END_REASON_WORKSPACE_FAILED),
        ("collect", SNAPSHOT_FAILED),
        ("snapshot", SNAPSHOT_FAILED),
    ],
)
@pytest.mark.parametrize(("trouble", "named"), [(away, "out of reach"), (full, "full")])
async def test_when_patience_is_over_the_reason_says_what_and_for_how_long(
    rig: Rig, step: str, reason: int, trouble: object, named: str
) -> None:
    rig.workspaces.errors[step] = trouble(NEVER)  # type: ignore[operator]
    task, _ = await waiting(rig, step)
    begun = rig.clock.now
    await rig.gone(task)
    assert PATIENCE - 1 < rig.clock.now - begun < PATIENCE + 2
    outcome = rig.report_of(task)
    assert (outcome.state, outcome.reason, outcome.retryable) == (FAILED, reason, True)
    assert f"the object store was {named} for 30." in outcome.message
    assert str((away() if named != "full" else full())[0]) in outcome.message


async def test_pauses_grow_up_to_five_seconds(rig: Rig) -> None:
    rig.workspaces.errors["snapshot"] = away()
    task, _ = await waiting(rig, "snapshot")
    left, tries = len(rig.workspaces.errors["snapshot"]), []
    begun = rig.clock.now
    while rig.clock.now < begun + 20:
        await rig.pass_time(0.05)
        now = len(rig.workspaces.errors["snapshot"])
        tries += [round(rig.clock.now - begun, 1)] * (left - now)
        left = now
    assert tries == pytest.approx([0.2, 0.6, 1.4, 3.0, 6.2, 11.2, 16.2], abs=0.5)
    assert waits(rig, task)


@pytest.mark.parametrize(
    "error", [DataLossError("gone"), UnavailableError("disk", reason="DISK_FULL"), OSError(5, "x")]
)
async def test_only_the_stores_own_trouble_is_waited_for(rig: Rig, error: Exception) -> None:
    rig.workspaces.errors["snapshot"] = [error]
    task, sandbox = await rig.running(workspace=EXCLUSIVE)
    sandbox.finish(0)
    await rig.gone(task)
    assert rig.report_of(task).reason == SNAPSHOT_FAILED
    assert rig.workspaces.snapshots == []


async def test_without_patience_the_first_failure_counts(rig: Rig) -> None:
    made = Rig(behaviour=Behaviour(slot_wait=2.0))
    await made.start()
    made.workspaces.errors["snapshot"] = full(1)
    task, sandbox = await made.running(workspace=EXCLUSIVE)
    sandbox.finish(0)
    await made.gone(task)
    outcome = made.report_of(task)
    assert (outcome.reason, outcome.retryable) == (SNAPSHOT_FAILED, True)
    await made.close()


async def test_a_failure_waits_for_its_artifacts_and_stays_that_failure(rig: Rig) -> None:
    rig.workspaces.errors["collect"] = away(4)
    task, sandbox = await rig.running(artifacts=["out/**"])
    sandbox.finish(3)
    await rig.until(lambda: waits(rig, task))
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert outcome.reason == task_pb2.END_REASON_NONZERO_EXIT
    assert len(outcome.artifacts) == 1


@pytest.mark.parametrize("step", STEPS)
async def test_a_cancel_ends_the_wait_at_once(rig: Rig, step: str) -> None:
    rig.workspaces.errors[step] = away()
    task, _ = await waiting(rig, step)
    await rig.pass_time(4.0)
    began = rig.clock.now
    rig.leader.say(cancel=pb.CancelAttempt(tenant=TENANT, task_id=task.task_id, token=task.token))
    await rig.gone(task)
    assert rig.clock.now - began < 0.5
    assert rig.report_of(task).state == CANCELED
    assert rig.workspaces.snapshots == []


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("how", ["kill", "lease"])
async def test_a_fence_ends_the_wait_at_once_and_publishes_nothing(rig: Rig, step: str, how: str) -> None:
    rig.workspaces.errors[step] = away()
    task, _ = await waiting(rig, step)
    await rig.pass_time(4.0)
    if how == "kill":
        began = rig.clock.now
        rig.leader.say(kill=pb.KillAttempt(tenant=TENANT, task_id=task.task_id, token=task.token))
        await rig.gone(task)
        assert rig.clock.now - began < 0.5
    else:
        assert rig.state.lease_id
        await rig.kv.revoke(rig.state.lease_id)
        await rig.gone(task)
    assert rig.leader.reports == []
    assert all(committed is None for _, committed in rig.workspaces.released)


@pytest.mark.parametrize("step", STEPS)
async def test_a_try_that_hangs_is_given_up_for_a_cancel(rig: Rig, step: str) -> None:
    rig.workspaces.errors[step] = away(1)
    gate = asyncio.Event()
    task, _ = await waiting(rig, step)
    rig.workspaces.gates[step] = gate
    await rig.until(lambda: step in rig.workspaces.waiting)
    rig.leader.say(cancel=pb.CancelAttempt(tenant=TENANT, task_id=task.task_id, token=task.token))
    await rig.gone(task)
    assert not gate.is_set()
    assert rig.report_of(task).state == CANCELED
    assert rig.workspaces.busy == set()


async def test_a_slot_that_fails_ends_the_wait_for_its_workspace(rig: Rig) -> None:
    rig.workspaces.errors["checkout"] = away()
    task, _ = await waiting(rig, "checkout")
    began = rig.clock.now
    slot = next(e for e in rig.manager.templates["default"].slots.entries if e.occupant is not None)
    rig.host.alive[slot.number].die()
    await rig.gone(task)
    assert rig.clock.now - began < 2.0
    assert rig.report_of(task).reason == task_pb2.END_REASON_SLOT_FAILED


async def test_files_wait_on_when_the_slot_that_they_came_from_fails(rig: Rig) -> None:
    rig.workspaces.errors["snapshot"] = away(6)
    task, sandbox = await waiting(rig, "snapshot")
    assert sandbox is not None
    sandbox.die()
    await rig.gone(task)
    assert rig.report_of(task).state == SUCCEEDED


async def test_a_drained_node_gives_back_what_waits_for_its_workspace(rig: Rig) -> None:
    rig.workspaces.errors["checkout"] = away()
    task, _ = await waiting(rig, "checkout")
    began = rig.clock.now
    await Operations(rig.manager).drain(hand_over=True)
    await rig.gone(task)
    assert rig.clock.now - began < 0.5
    assert [r.task_id for r in rig.leader.rejects] == [task.task_id]
    assert rig.leader.reports == []


async def test_a_stopped_manager_leaves_the_wait_to_its_successor(rig: Rig) -> None:
    rig.workspaces.errors["snapshot"] = away()
    task, sandbox = await waiting(rig, "snapshot")
    began = rig.clock.now
    await rig.stop()
    assert rig.clock.now - began < 1.0
    assert rig.leader.reports == []
    assert sandbox is not None
    assert sandbox.phase is SlotPhase.EXITED
    rig.workspaces.errors["snapshot"] = away(3)
    await rig.start()
    await rig.gone(task)
    assert rig.report_of(task).state == SUCCEEDED
    assert len(rig.workspaces.snapshots) == 1


async def test_a_manager_that_stops_for_good_waits_no_longer_than_its_drain() -> None:
    made = Rig(behaviour=Behaviour(stop_slots=True, drain_grace=3.0, store_patience=900.0))
    await made.start()
    made.workspaces.errors["snapshot"] = away()
    await waiting(made, "snapshot")
    began = made.clock.now
    await made.stop()
    assert made.clock.now - began < 5.0
    assert made.leader.reports == []


async def test_heartbeats_and_other_attempts_go_on_meanwhile(rig: Rig) -> None:
    rig.workspaces.errors["snapshot"] = away()
    task, _ = await waiting(rig, "snapshot")
    beats = len(rig.leader.heartbeats)
    other, sandbox = await rig.running()
    await rig.pass_time(3.0)
    sandbox.finish(0)
    await rig.gone(other)
    assert rig.report_of(other).state == SUCCEEDED
    assert len(rig.leader.heartbeats) >= beats + 4
    phases = {r.task_id: r.phase for r in rig.leader.heartbeats[-1].attempts}
    assert phases[task.task_id] == pb.ATTEMPT_PHASE_SAVING


async def test_a_checkpoint_is_tried_again_when_the_next_is_due(rig: Rig) -> None:
    rig.workspaces.errors["upload"] = away(2)
    interval = task_pb2.TaskSpec().checkpoint_interval
    interval.FromSeconds(5)
    task, sandbox = await rig.running(workspace=EXCLUSIVE, checkpoint_interval=interval)
    there = runner(rig, task)
    await rig.pass_time(6.0)
    assert "no route to the store" in there.checkpoints.last_failure
    assert sandbox.phase is SlotPhase.RUNNING
    assert rig.leader.checkpoints == []
    await rig.until(lambda: bool(rig.leader.checkpoints))
    assert rig.leader.checkpoints[0].snapshot.snapshot_id
    assert there.checkpoints.last_failure == ""


@pytest.mark.parametrize("error", [*away(1), *full(1)])
async def test_a_checkpoint_on_demand_answers_with_the_stores_failure(rig: Rig, error: CloudClawError) -> None:
    rig.workspaces.errors["upload"] = [error]
    task, sandbox = await rig.running(workspace=EXCLUSIVE)
    rig.leader.say(take_checkpoint=pb.TakeCheckpoint(tenant=TENANT, task_id=task.task_id, token=task.token, request=1))
    await rig.until(lambda: bool(rig.leader.checkpoints))
    assert error.message in rig.leader.checkpoints[0].failure
    assert not rig.leader.checkpoints[0].HasField("snapshot")
    assert sandbox.phase is SlotPhase.RUNNING
