"""Ends of attempts: one commit, or none."""

from __future__ import annotations

import asyncio

import pytest

from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.coordination.records import SnapshotPointer, WorkspaceRecord
from cloudclaw.errors import PreconditionError
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from tests.unit.scheduler.failing import FailingObjects
from tests.unit.scheduler.node import Node
from tests.unit.scheduler.plane import Plane, User, duration, soon, until

QUEUED, RUNNING = task_pb2.TASK_STATE_QUEUED, task_pb2.TASK_STATE_RUNNING
SUCCEEDED, FAILED, CANCELED = (
    task_pb2.TASK_STATE_SUCCEEDED,
    task_pb2.TASK_STATE_FAILED,
    task_pb2.TASK_STATE_CANCELED,
)
COMMITTED = pb.ReportVerdict.VERDICT_COMMITTED
FENCED = pb.ReportVerdict.VERDICT_FENCED
RETRY = pb.ReportVerdict.VERDICT_RETRY
AGENT_FAILED = task_pb2.END_REASON_AGENT_FAILED
SNAPSHOT = task_pb2.SnapshotRef(snapshot_id="snap-2", manifest_digest="d2", parent_id="snap-1", files=1, bytes=2)


async def workspace(plane: Plane, head: str = "snap-1") -> None:
    record = WorkspaceRecord(
        name="ws", created=1.0, updated=1.0, op_id="op", head=SnapshotPointer(id=head, manifest="d1")
    )
    await plane.transactions.create_workspace("acme", record, snapshot=record.head)


async def head(plane: Plane) -> tuple[str, int]:
    found = await plane.transactions.get_workspace("acme", "ws")
    assert found is not None
    assert found.record.head is not None
    return found.record.head.id, found.record.generation


def selection(mode: int = task_pb2.WORKSPACE_MODE_EXCLUSIVE) -> task_pb2.WorkspaceSelection:
    chosen = task_pb2.WorkspaceSelection(name="ws")
    chosen.mode = mode  # type: ignore[assignment]
    return chosen


async def test_a_success_moves_the_head_and_frees_the_writer(plane: Plane, user: User) -> None:
    await workspace(plane)
    node = await Node(plane).connect()
    task_id = await user.submit(workspace=selection())
    assignment = await node.next()
    assert assignment.base.snapshot_id == "snap-1"
    assert plane.scheduler.mirror.state.writers == {("acme", "ws"): task_id}
    changed = [task_pb2.ChangedFile(path="f", change=task_pb2.ChangedFile.CHANGE_ADDED, new_size=2)]
    assert await node.finish(assignment, snapshot=SNAPSHOT, changed_files=changed) == COMMITTED
    assert await head(plane) == ("snap-2", 1)
    result = await user.result(task_id)
    assert (result.snapshot_id, result.changed_files[0].path) == ("snap-2", "f")
    await until("the writer is free", lambda: not plane.scheduler.mirror.state.writers)


@pytest.mark.parametrize(
    ("mode", "kept"),
    [(task_pb2.WORKSPACE_MODE_FORK, "snap-2"), (task_pb2.WORKSPACE_MODE_EPHEMERAL, "")],
)
async def test_other_modes_leave_the_head_alone(plane: Plane, user: User, mode: int, kept: str) -> None:
    await workspace(plane)
    node = await Node(plane).connect()
    task_id = await user.submit(workspace=selection(mode))
    assert await node.finish(await node.next(), snapshot=SNAPSHOT) == COMMITTED
    assert await head(plane) == ("snap-1", 0)
    assert (await user.result(task_id)).snapshot_id == kept


async def test_a_failure_keeps_nothing(plane: Plane, user: User) -> None:
    await workspace(plane)
    node = await Node(plane).connect()
    task_id = await user.submit(workspace=selection())
    await node.finish(
        await node.next(),
        state=task_pb2.ATTEMPT_STATE_FAILED,
        reason=task_pb2.END_REASON_NONZERO_EXIT,
        exit_code=3,
        snapshot=SNAPSHOT,
    )
    assert await head(plane) == ("snap-1", 0)
    result = await user.result(task_id)
    assert (result.state, result.exit_code, result.snapshot_id) == (FAILED, 3, "")


async def test_a_cancel_before_the_report_wins_and_keeps_nothing(plane: Plane, user: User) -> None:
    await workspace(plane)
    node = await Node(plane).connect()
    task_id = await user.submit(workspace=selection())
    assignment = await node.next()
    task = await user.cancel(task_id)
    assert (task.state, task.cancel_requested) == (RUNNING, True)
    assert (await soon(node.cancels.get())).token == assignment.token
    assert await node.finish(assignment, snapshot=SNAPSHOT) == COMMITTED
    task = await user.get(task_id)
    assert (task.state, task.attempts[0].state) == (CANCELED, task_pb2.ATTEMPT_STATE_CANCELED)
    assert await head(plane) == ("snap-1", 0)
    result = await user.result(task_id)
    assert (result.state, result.reason, result.snapshot_id) == (CANCELED, task_pb2.END_REASON_CANCELED, "")


async def test_a_cancel_is_repeated_until_the_attempt_ends(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    await user.cancel(task_id)
    tokens = {(await soon(node.cancels.get())).token for _ in range(3)}
    assert tokens == {assignment.token}


async def test_a_finish_before_the_cancel_stays(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    await node.finish(await node.next())
    assert (await user.cancel(task_id)).state == SUCCEEDED


async def test_cancel_and_finish_at_once_have_one_outcome(plane: Plane, user: User) -> None:
    await workspace(plane)
    node = await Node(plane).connect()
    for _ in range(10):
        before = await head(plane)
        task_id = await user.submit(workspace=selection())
        assignment = await node.next()
        snapshot = task_pb2.SnapshotRef(snapshot_id=f"s-{task_id}", manifest_digest="d", parent_id=before[0])
        await asyncio.gather(user.cancel(task_id), node.finish(assignment, snapshot=snapshot))
        task = await user.get(task_id)
        moved = await head(plane) != before
        assert (task.state, moved) in ((SUCCEEDED, True), (CANCELED, False))


async def test_a_queued_task_is_canceled_at_once(plane: Plane, user: User) -> None:
    task_id = await user.submit()
    assert (await user.cancel(task_id)).state == CANCELED
    result = await user.result(task_id)
    assert (result.state, result.reason) == (CANCELED, task_pb2.END_REASON_CANCELED)
    assert (await user.cancel(task_id)).state == CANCELED


async def test_a_repeated_report_gets_the_same_verdict(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    await user.submit()
    assignment = await node.next()
    assert [await node.finish(assignment) for _ in range(3)] == [COMMITTED] * 3


async def test_a_report_with_another_token_is_fenced(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    forged = pb.Assignment()
    forged.CopyFrom(assignment)
    forged.token -= 1
    assert await node.finish(forged) == FENCED
    assert (await user.get(task_id)).state == RUNNING
    assert await node.finish(assignment) == COMMITTED


async def test_a_finish_waits_for_the_log(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    await node.report(assignment, log_end=5)
    await node.write(assignment, 0, b"hello", end=True)
    assert (await soon(node.verdicts.get())).verdict == COMMITTED
    assert await user.log(task_id) == b"hello"


async def test_what_is_stored_of_a_log_outlives_its_spool(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    await node.write(assignment, 0, b"hello")
    lost = {"state": task_pb2.ATTEMPT_STATE_FAILED, "reason": task_pb2.END_REASON_SLOT_FAILED}
    assert await node.finish(assignment, retryable=True, **lost) == COMMITTED
    assert (await user.get(task_id)).attempts[0].log_end == 5
    assert await user.log(task_id, attempt=1) == b"hello"


async def test_a_lost_slots_report_that_overtakes_its_log_waits_for_it(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    lost = {"state": task_pb2.ATTEMPT_STATE_FAILED, "reason": task_pb2.END_REASON_SLOT_FAILED, "retryable": True}
    assert await node.finish(assignment, log_end=5, **lost) == RETRY
    await node.write(assignment, 0, b"hello", end=True)
    assert await node.finish(assignment, log_end=5, **lost) == COMMITTED
    assert await user.log(task_id, attempt=1) == b"hello"


async def test_a_lost_slots_log_goes_on_when_its_finish_does_not(plane: Plane, user: User) -> None:
    assert isinstance(plane.objects, FailingObjects)
    node = await Node(plane).connect()
    await user.submit(retry=task_pb2.RetryPolicy(max_attempts=1))
    assignment = await node.next()
    lost = {"state": task_pb2.ATTEMPT_STATE_FAILED, "reason": task_pb2.END_REASON_SLOT_FAILED}
    await node.write(assignment, 0, b"hello")
    await node.ack(lambda ack: ack.durable_offset == 5)
    plane.objects.away = True
    assert await node.finish(assignment, log_end=5, final_message="x" * 100_000, **lost) == RETRY
    plane.objects.away = False
    await node.write(assignment, 5, b" world", end=True)
    await node.ack(lambda ack: ack.durable_offset == 11)
    assert await node.finish(assignment, log_end=11, **lost) == COMMITTED


async def test_a_finish_whose_log_does_not_come_is_put_off(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    assert await node.finish(assignment, log_end=5) == RETRY
    assert (await user.get(task_id)).state == RUNNING
    await node.write(assignment, 0, b"hello", end=True)
    assert await node.finish(assignment, log_end=5) == COMMITTED


async def test_the_object_stores_outage_puts_a_finish_off(plane: Plane, user: User) -> None:
    assert isinstance(plane.objects, FailingObjects)
    node = await Node(plane).connect()
    await user.submit()
    assignment = await node.next()
    plane.objects.away = True
    await node.write(assignment, 0, b"hello", end=True)
    assert await node.finish(assignment, log_end=5) == RETRY
    plane.objects.away = False
    await node.ack(lambda ack: ack.durable_offset == 5)
    assert await node.finish(assignment, log_end=5) == COMMITTED


@pytest.mark.parametrize("trouble", ["away", "full"])
async def test_a_large_result_waits_for_the_object_store(plane: Plane, user: User, trouble: str) -> None:
    assert isinstance(plane.objects, FailingObjects)
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    said = "x" * 100_000
    setattr(plane.objects, trouble, True)
    assert await node.finish(assignment, final_message=said) == RETRY
    assert (await user.get(task_id)).state == RUNNING
    setattr(plane.objects, trouble, False)
    assert await node.finish(assignment, final_message=said) == COMMITTED
    answer = await user.stub.GetResult(pb.GetResultRequest(task_id=task_id))
    assert answer.result.final_message == said


async def test_etcds_silence_puts_a_finish_off_and_an_unknown_outcome_is_read_back(plane: Plane, user: User) -> None:
    assert isinstance(plane.kv, MemoryKeyValue)
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    plane.kv.fail_next("txn", applied=False)
    assert await node.finish(assignment) == RETRY
    plane.kv.fail_next("txn", applied=True)
    assert await node.finish(assignment) == COMMITTED
    task = await user.get(task_id)
    assert (task.state, len(task.events)) == (SUCCEEDED, 3)


async def test_a_large_result_is_kept_as_an_object(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    await node.finish(await node.next(), final_message="m" * 100_000)
    result = await user.result(task_id)
    assert result.final_message == "m" * 100_000
    found = await plane.transactions.get_task("acme", task_id)
    assert found is not None
    assert found.record.result_object
    assert not found.record.result


async def test_a_result_is_asked_for_before_there_is_one(plane: Plane, user: User) -> None:
    task_id = await user.submit()
    with pytest.raises(PreconditionError, match="not ended") as caught:
        await user.result(task_id)
    assert caught.value.reason == "TASK_NOT_ENDED"


async def test_usage_is_never_guessed(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    silent, telling = await user.submit(), await user.submit()
    await node.finish(await node.next())
    await node.finish(await node.next(), usage=task_pb2.Usage(input_tokens=0))
    assert not (await user.result(silent)).HasField("usage")
    usage = (await user.result(telling)).usage
    assert usage.HasField("input_tokens")
    assert not usage.HasField("cost_usd")


async def test_use_that_every_attempt_lies_about_can_still_be_told(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    most = task_pb2.Usage(input_tokens=2**63, output_tokens=2**63, cost_usd=1e300, turns=2**31 - 1)
    task_id = await user.submit(retry=task_pb2.RetryPolicy(max_attempts=8, initial_backoff=duration(0)))
    for _ in range(8):
        await node.finish(
            await node.next(), state=task_pb2.ATTEMPT_STATE_FAILED, reason=AGENT_FAILED, retryable=True, usage=most
        )
    assert (await user.result(task_id)).usage.turns == 2**32 - 1
    assert (await user.get(task_id)).state == FAILED


async def test_what_a_node_reports_without_sense_is_a_fault_of_cloudclaw(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit(retry=task_pb2.RetryPolicy(max_attempts=1))
    await node.finish(await node.next(), state=77, reason=99)
    task = await user.get(task_id)
    assert (task.state, task.attempts[0].reason) == (FAILED, task_pb2.END_REASON_INTERNAL)
