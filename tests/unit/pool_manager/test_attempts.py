"""One attempt on a node, from assignment to verdict, and all that can come in between."""

from __future__ import annotations

import asyncio

import pytest

from cloudclaw.errors import DataLossError, QuotaExceededError, UnavailableError
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_pool_manager.domain.attempt import KillReason
from cloudclaw_pool_manager.ports.backend import SlotPhase
from tests.unit.pool_manager.rig import TENANT, Rig, settle

SUCCEEDED, FAILED, CANCELED = (
    task_pb2.ATTEMPT_STATE_SUCCEEDED,
    task_pb2.ATTEMPT_STATE_FAILED,
    task_pb2.ATTEMPT_STATE_CANCELED,
)
EXCLUSIVE = task_pb2.WorkspaceSelection(name="ws", mode=task_pb2.WORKSPACE_MODE_EXCLUSIVE)


async def test_a_task_runs_is_reported_and_leaves_a_free_slot(rig: Rig) -> None:
    task, sandbox = await rig.running(
        "make", "test", env={"A": "1", "CLAW_TASK_ID": "forged", "CLAW_ELSE": "x", "bad name": "x"}
    )
    assert sandbox.launch is not None
    assert sandbox.launch.argv == ("make", "test")
    env = dict(sandbox.launch.env)
    assert (env["CLAW_TASK_ID"], env["CLAW_ATTEMPT"], env["CLAW_TENANT"]) == (task.task_id, "1", TENANT)
    assert env["A"] == "1"
    assert "bad name" not in env
    assert "CLAW_ELSE" not in env
    sandbox.write(b"hello\n")
    sandbox.finish(0)
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.state, outcome.reason, outcome.exit_code) == (SUCCEEDED, task_pb2.END_REASON_COMPLETED, 0)
    assert outcome.log_end == 6
    assert not outcome.HasField("snapshot")
    assert bytes(rig.leader.logs[task.uid]) == b"hello\n"
    assert sandbox.phase is SlotPhase.IDLE
    assert rig.state.started == {}
    assert rig.workspaces.released == [(task.uid, None)]


async def test_the_report_comes_after_the_logs_last_byte(rig: Rig) -> None:
    task, sandbox = await rig.running()
    rig.leader.cut("logs")
    rig.leader.logs.clear()
    sandbox.write(b"x" * 100)
    sandbox.finish(0)
    await settle()
    assert not rig.leader.reports
    await rig.gone(task)
    assert task.uid in rig.leader.ended


async def test_an_assignment_that_is_repeated_starts_once(rig: Rig) -> None:
    task, sandbox = await rig.running()
    rig.leader.say(assignment=task)
    await settle()
    assert sandbox.starts == [task.uid]
    assert len(rig.host.running()) == 1
    rig.leader.decides = False
    sandbox.finish(0)
    await rig.until(lambda: bool(rig.leader.reports))
    rig.leader.say(assignment=task)
    await rig.until(lambda: len(rig.leader.reports) > 1)
    assert sandbox.starts == [task.uid]


@pytest.mark.parametrize(
    ("end", "state", "reason"),
    [
        ({"code": 3}, FAILED, task_pb2.END_REASON_NONZERO_EXIT),
        ({"code": 127}, FAILED, task_pb2.END_REASON_START_FAILED),
        ({"code": 139, "signal": 11}, FAILED, task_pb2.END_REASON_KILLED_BY_SIGNAL),
        ({"code": 137, "signal": 9, "oom": True}, FAILED, task_pb2.END_REASON_MEMORY_LIMIT),
        ({"code": 0, "oom": True}, SUCCEEDED, task_pb2.END_REASON_COMPLETED),
        ({"code": 137, "killed": KillReason.PIDS_LIMIT}, FAILED, task_pb2.END_REASON_PIDS_LIMIT),
        ({"code": 137, "killed": KillReason.DISK_LIMIT}, FAILED, task_pb2.END_REASON_DISK_LIMIT),
        ({"code": 137, "killed": KillReason.LOG_LIMIT}, FAILED, task_pb2.END_REASON_LOG_LIMIT),
        ({"code": 137, "killed": KillReason.ORPHANED}, FAILED, task_pb2.END_REASON_NODE_LOST),
    ],
)
async def test_every_end_has_the_reason_that_names_it(rig: Rig, end: dict[str, int], state: int, reason: int) -> None:
    task, sandbox = await rig.running(workspace=EXCLUSIVE)
    sandbox.finish(**end)  # type: ignore[arg-type]
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.state, outcome.reason) == (state, reason)
    assert outcome.HasField("snapshot") == (state == SUCCEEDED)


async def test_success_keeps_the_files_and_the_tree_returns_as_committed(rig: Rig) -> None:
    base = task_pb2.SnapshotRef(snapshot_id="snap-base", manifest_digest="cd" * 32)
    task, sandbox = await rig.running(workspace=EXCLUSIVE, base=base)
    sandbox.finish(0)
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert outcome.snapshot.parent_id == "snap-base"
    assert outcome.snapshot.snapshot_id == "snap-" + task.uid.partition("-")[2]
    kinds = {change.path: change.change for change in outcome.changed_files}
    assert kinds == {
        "new%FF": task_pb2.ChangedFile.CHANGE_ADDED,
        "old": task_pb2.ChangedFile.CHANGE_REMOVED,
        "x": task_pb2.ChangedFile.CHANGE_MODIFIED,
    }
    [(uid, committed)] = rig.workspaces.released
    assert uid == task.uid
    assert committed is not None
    assert committed.id == outcome.snapshot.snapshot_id


async def test_a_fork_keeps_its_files_and_an_ephemeral_task_does_not(rig: Rig) -> None:
    for mode, kept in ((task_pb2.WORKSPACE_MODE_FORK, True), (task_pb2.WORKSPACE_MODE_EPHEMERAL, False)):
        task, sandbox = await rig.running(workspace=task_pb2.WorkspaceSelection(name="ws", mode=mode))
        sandbox.finish(0)
        await rig.gone(task)
        assert rig.report_of(task).HasField("snapshot") == kept


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (UnavailableError("the object store is away"), True),
        (DataLossError("blob 12ab is missing"), False),
        (QuotaExceededError("workspace/big is over 256 MiB"), False),
        (OSError(28, "No space left on device"), True),
    ],
)
@pytest.mark.parametrize("step", ["checkout", "snapshot"])
async def test_what_goes_wrong_with_files_is_said_precisely(
    rig: Rig, step: str, error: Exception, retryable: bool
) -> None:
    rig.workspaces.errors[step] = [error]
    task = await rig.assign(workspace=EXCLUSIVE)
    if step == "snapshot":
        await rig.until(lambda: task.uid in rig.host.running())
        rig.host.of(task.uid).finish(0)
    await rig.gone(task)
    outcome = rig.report_of(task)
    wanted = task_pb2.END_REASON_WORKSPACE_FAILED if step == "checkout" else task_pb2.END_REASON_SNAPSHOT_FAILED
    assert (outcome.state, outcome.reason, outcome.retryable) == (FAILED, wanted, retryable)
    assert str(error) in outcome.message
    assert not outcome.HasField("snapshot")
    assert all(s.phase is SlotPhase.IDLE for s in rig.host.alive.values())


async def test_a_report_is_repeated_until_there_is_a_verdict(rig: Rig) -> None:
    rig.leader.decides = False
    task, sandbox = await rig.running()
    sandbox.finish(0)
    await rig.until(lambda: len(rig.leader.reports) >= 3)
    assert len({r.SerializeToString() for r in rig.leader.reports}) == 1
    rig.leader.decide(rig.leader.reports[0], pb.ReportVerdict.VERDICT_COMMITTED)
    await rig.gone(task)


async def test_a_report_is_sent_again_after_reconnecting(rig: Rig) -> None:
    rig.leader.decides = False
    task, sandbox = await rig.running()
    sandbox.finish(0)
    await rig.until(lambda: bool(rig.leader.reports))
    rig.leader.reports.clear()
    rig.leader.decides = True
    rig.leader.cut()
    await rig.gone(task)
    assert rig.leader.hellos[-1].attempts[0].phase == pb.ATTEMPT_PHASE_REPORTING


async def test_a_verdict_of_retry_is_reported_again_soon(rig: Rig) -> None:
    rig.leader.verdicts = [pb.ReportVerdict.VERDICT_RETRY] * 3
    task, sandbox = await rig.running()
    before = rig.clock.now
    sandbox.finish(0)
    await rig.gone(task)
    assert len(rig.leader.reports) == 4
    assert 0.6 <= rig.clock.now - before < 1.5


async def test_a_fenced_report_discards_everything(rig: Rig) -> None:
    rig.leader.verdicts = [pb.ReportVerdict.VERDICT_FENCED]
    task, sandbox = await rig.running(workspace=EXCLUSIVE)
    sandbox.finish(0)
    await rig.gone(task)
    assert rig.workspaces.released == [(task.uid, None)]
    assert sandbox.phase is SlotPhase.IDLE


async def test_the_run_timeout_ends_an_attempt(rig: Rig) -> None:
    timeouts = task_pb2.Timeouts()
    timeouts.run.seconds = 5
    task, sandbox = await rig.running(timeouts=timeouts)
    await rig.pass_time(4.5)
    assert task.uid in rig.host.running()
    await rig.gone(task)
    assert sandbox.stops == [KillReason.RUN_TIMEOUT]
    assert rig.report_of(task).reason == task_pb2.END_REASON_RUN_TIMEOUT


async def test_output_postpones_the_silence_timeout(rig: Rig) -> None:
    timeouts = task_pb2.Timeouts()
    timeouts.silence.seconds = 3
    task, sandbox = await rig.running(timeouts=timeouts)
    for _ in range(4):
        await rig.pass_time(2)
        sandbox.write(b".")
    assert task.uid in rig.host.running()
    await rig.gone(task)
    assert rig.report_of(task).reason == task_pb2.END_REASON_SILENCE_TIMEOUT


# -- cancel and kill, in each phase --


@pytest.mark.parametrize("how", ["cancel", "kill"])
async def test_ended_while_the_workspace_is_restored_nothing_starts(rig: Rig, how: str) -> None:
    gate = rig.workspaces.gates["checkout"] = asyncio.Event()
    task = await rig.assign()
    await rig.until(lambda: "checkout" in rig.workspaces.waiting)
    _end(rig, task, how)
    await settle()
    gate.set()
    await rig.gone(task)
    assert all(not s.starts for s in rig.host.alive.values())
    assert [r.outcome.state for r in rig.leader.reports] == ([CANCELED] if how == "cancel" else [])
    assert rig.workspaces.released == [(task.uid, None)]
    assert rig.state.started == {}


@pytest.mark.parametrize("how", ["cancel", "kill"])
@pytest.mark.parametrize("phase", ["running", "frozen"])
async def test_ended_while_it_runs_its_processes_are_gone_first(rig: Rig, how: str, phase: str) -> None:
    task, sandbox = await rig.running(workspace=EXCLUSIVE)
    if phase == "frozen":
        rig.leader.up = False
        rig.leader.cut()
        rig.kv.outage = True
        await rig.until(lambda: sandbox.phase is SlotPhase.FROZEN)
        rig.leader.up = True
        await rig.until(lambda: rig.leader.connected)
    _end(rig, task, how)
    await rig.gone(task)
    assert rig.host.running() == []
    assert sandbox.stops == [KillReason.CANCELED if how == "cancel" else KillReason.FENCED]
    assert [r.outcome.state for r in rig.leader.reports] == ([CANCELED] if how == "cancel" else [])
    assert rig.workspaces.snapshots == []


@pytest.mark.parametrize("how", ["cancel", "kill"])
async def test_ended_while_its_files_are_kept(rig: Rig, how: str) -> None:
    gate = rig.workspaces.gates["snapshot"] = asyncio.Event()
    task, sandbox = await rig.running(workspace=EXCLUSIVE)
    sandbox.finish(0)
    await rig.until(lambda: "snapshot" in rig.workspaces.waiting)
    _end(rig, task, how)
    gate.set()
    await rig.gone(task)
    # A cancel came too late for the node; the leader makes CANCELED of whatever it reports.
    assert [r.outcome.state for r in rig.leader.reports] == ([SUCCEEDED] if how == "cancel" else [])
    assert sandbox.stops == []


async def test_killed_while_it_reports_it_is_forgotten(rig: Rig) -> None:
    rig.leader.decides = False
    task, sandbox = await rig.running()
    sandbox.finish(0)
    await rig.until(lambda: bool(rig.leader.reports))
    _end(rig, task, "kill")
    await rig.gone(task)
    assert sandbox.phase is SlotPhase.IDLE


async def test_canceled_before_it_arrived_it_never_starts(rig: Rig) -> None:
    task = await rig.assign(cancel_requested=True)
    await rig.gone(task)
    assert rig.report_of(task).state == CANCELED
    assert all(not s.starts for s in rig.host.alive.values())


async def test_a_cancel_of_another_attempt_changes_nothing(rig: Rig) -> None:
    task, sandbox = await rig.running()
    rig.leader.say(cancel=pb.CancelAttempt(tenant=TENANT, task_id=task.task_id, token=task.token + 1))
    rig.leader.say(kill=pb.KillAttempt(tenant="other", task_id=task.task_id, token=task.token))
    await rig.pass_time(1)
    assert sandbox.stops == []


async def test_a_later_attempt_of_the_same_task_ends_the_earlier_one(rig: Rig) -> None:
    first, old = await rig.running(task="task-x")
    await rig.unclaim("task-x")
    second = await rig.assign(task="task-x", number=2)
    await rig.gone(first)
    assert old.stops == [KillReason.FENCED]
    await rig.until(lambda: second.uid in rig.host.running())
    rig.leader.say(assignment=first)  # a message that was late
    await settle()
    assert rig.host.running() == [second.uid]


# -- what cannot be run --


async def test_an_attempt_that_finds_no_slot_is_rejected(rig: Rig) -> None:
    for _ in range(2):
        await rig.running()
    third = await rig.assign()
    await rig.until(lambda: bool(rig.leader.rejects))
    assert (rig.leader.rejects[0].task_id, rig.leader.rejects[0].token) == (third.task_id, third.token)
    assert not rig.leader.reports
    assert len(rig.host.running()) == 2


async def test_an_attempt_waits_for_a_slot_that_comes_free(rig: Rig) -> None:
    _, sandbox = await rig.running()
    await rig.running()
    third = await rig.assign()
    sandbox.finish(0)
    await rig.until(lambda: third.uid in rig.host.running(), within=1.0)
    assert not rig.leader.rejects


async def test_an_unknown_pool_is_rejected_and_an_unknown_runtime_fails(rig: Rig) -> None:
    await rig.assign(pool="gpu")
    await rig.until(lambda: bool(rig.leader.rejects))
    assert "gpu" in rig.leader.rejects[0].message
    task = await rig.assign(runtime="opencode")
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert outcome.reason == task_pb2.END_REASON_START_FAILED
    assert "opencode" in outcome.message


async def test_a_fault_in_a_runtime_fails_its_attempt_and_not_the_node(rig: Rig) -> None:
    def judge(*_: object) -> None:
        raise ZeroDivisionError("a third party's bug")

    rig.runtimes["command"].judge = judge  # type: ignore[method-assign,assignment]
    task, sandbox = await rig.running()
    sandbox.finish(0)
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert outcome.reason == task_pb2.END_REASON_INTERNAL
    assert "third party" in outcome.message
    await rig.running()


def _end(rig: Rig, task: pb.Assignment, how: str) -> None:
    if how == "cancel":
        rig.leader.say(cancel=pb.CancelAttempt(tenant=TENANT, task_id=task.task_id, token=task.token))
    else:
        rig.leader.say(kill=pb.KillAttempt(tenant=TENANT, task_id=task.task_id, token=task.token))
