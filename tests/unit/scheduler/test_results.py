"""A result for every end: complete, and nothing in it that nobody reported."""

from __future__ import annotations

import pytest

from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.coordination.records import WorkspaceRecord
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from tests.unit.scheduler.node import Node
from tests.unit.scheduler.plane import Plane, User, duration, until

FAILED, CANCELED = task_pb2.TASK_STATE_FAILED, task_pb2.TASK_STATE_CANCELED
ONCE = task_pb2.RetryPolicy(max_attempts=1)
ARTIFACT = task_pb2.Artifact(path="out/report.txt", size=3, digest="a" * 64)


def stamps(result: task_pb2.Result) -> list[str]:
    """Names of the timings that are there; they must be in order."""
    names = ["queued", "prepared", "started", "ended", "committed"]
    there = [name for name in names if result.timings.HasField(name)]
    times = [getattr(result.timings, name).ToMicroseconds() for name in there]
    assert times == sorted(times), f"out of order: {result.timings}"
    return there


@pytest.mark.parametrize("state", [task_pb2.ATTEMPT_STATE_SUCCEEDED, task_pb2.ATTEMPT_STATE_FAILED])
async def test_artifacts_are_kept_of_a_success_and_of_a_failure(
    plane: Plane, user: User, state: task_pb2.AttemptState
) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit(retry=ONCE, artifacts=["out/**"], checkpoint_interval=duration(1))
    assignment = await node.next()
    assert list(assignment.spec.artifacts) == ["out/**"]
    assert assignment.spec.checkpoint_interval == duration(1)
    await node.finish(
        assignment,
        state=state,
        reason=task_pb2.END_REASON_COMPLETED
        if state == task_pb2.ATTEMPT_STATE_SUCCEEDED
        else task_pb2.END_REASON_NONZERO_EXIT,
        artifacts=[ARTIFACT],
        artifacts_truncated=True,
    )
    result = await user.result(task_id)
    assert (list(result.artifacts), result.artifacts_truncated) == ([ARTIFACT], True)


async def test_a_failure_says_all_that_its_report_said(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit(retry=ONCE)
    assignment = await node.next()
    await node.finish(
        assignment,
        state=task_pb2.ATTEMPT_STATE_FAILED,
        reason=task_pb2.END_REASON_NONZERO_EXIT,
        message="exit code 3",
        exit_code=3,
        final_message="I gave up.",
        session_id="s-1",
        usage=task_pb2.Usage(input_tokens=7),
    )
    result = await user.result(task_id)
    assert (result.task_id, result.state, result.reason) == (task_id, FAILED, task_pb2.END_REASON_NONZERO_EXIT)
    assert (result.message, result.exit_code, result.final_message) == ("exit code 3", 3, "I gave up.")
    assert (result.session_id, result.usage.input_tokens, result.usage.HasField("output_tokens")) == ("s-1", 7, False)
    (attempt,) = result.attempts
    assert (attempt.uid, attempt.node, attempt.exit_code) == (assignment.uid, "node-1", 3)
    assert (result.snapshot_id, list(result.changed_files)) == ("", [])
    assert stamps(result) == ["queued", "started", "ended", "committed"]


async def test_a_lost_task_has_a_result(plane: Plane, user: User) -> None:
    assert isinstance(plane.kv, MemoryKeyValue)
    node = await Node(plane).connect()
    task_id = await user.submit(retry=ONCE)
    assignment = await node.next()
    await node.disconnect()
    plane.kv.expire(node.lease)
    await user.wait(task_id)
    result = await user.result(task_id)
    assert (result.state, result.reason) == (FAILED, task_pb2.END_REASON_NODE_LOST)
    assert "node-1" in result.message
    (attempt,) = result.attempts
    assert (attempt.state, attempt.uid) == (task_pb2.ATTEMPT_STATE_LOST, assignment.uid)
    assert not result.HasField("exit_code")
    assert not result.HasField("usage")
    assert stamps(result) == ["queued", "started", "ended", "committed"]


async def test_a_task_that_is_canceled_in_the_queue_has_a_result(plane: Plane, user: User) -> None:
    task_id = await user.submit()
    await user.cancel(task_id)
    result = await user.result(task_id)
    assert (result.task_id, result.state, result.reason) == (task_id, CANCELED, task_pb2.END_REASON_CANCELED)
    assert (list(result.attempts), result.HasField("usage"), result.HasField("exit_code")) == ([], False, False)
    assert stamps(result) == ["queued", "committed"]


async def test_a_task_that_is_canceled_while_it_runs_has_a_result(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    await user.cancel(task_id)
    await node.finish(assignment, state=task_pb2.ATTEMPT_STATE_CANCELED, reason=task_pb2.END_REASON_CANCELED)
    result = await user.result(task_id)
    assert (result.state, result.reason) == (CANCELED, task_pb2.END_REASON_CANCELED)
    assert [attempt.state for attempt in result.attempts] == [task_pb2.ATTEMPT_STATE_CANCELED]
    assert (result.HasField("usage"), result.HasField("exit_code")) == (False, False)
    assert stamps(result) == ["queued", "started", "ended", "committed"]


async def test_a_task_whose_node_was_lost_after_a_cancel_has_a_result(plane: Plane, user: User) -> None:
    assert isinstance(plane.kv, MemoryKeyValue)
    node = await Node(plane).connect()
    task_id = await user.submit()
    await node.next()
    await user.cancel(task_id)
    await node.disconnect()
    plane.kv.expire(node.lease)
    await user.wait(task_id)
    result = await user.result(task_id)
    assert (result.state, result.reason) == (CANCELED, task_pb2.END_REASON_CANCELED)
    assert [attempt.state for attempt in result.attempts] == [task_pb2.ATTEMPT_STATE_LOST]
    assert stamps(result) == ["queued", "started", "ended", "committed"]


async def test_a_task_that_could_not_start_again_has_the_result_of_its_end(plane: Plane, user: User) -> None:
    """It failed once, waited, and met the end of its workspace: the reason is that, and the attempt is still told."""
    record = WorkspaceRecord(name="ws", created=1.0, updated=1.0, op_id="op")
    await plane.transactions.create_workspace("acme", record)
    node = await Node(plane).connect()
    retry = task_pb2.RetryPolicy(
        max_attempts=2, initial_backoff=duration(0.3), retry_on=[task_pb2.END_REASON_NONZERO_EXIT]
    )
    fork = task_pb2.WorkspaceSelection(name="ws", mode=task_pb2.WORKSPACE_MODE_FORK)
    task_id = await user.submit(retry=retry, workspace=fork)
    await node.finish(
        await node.next(),
        state=task_pb2.ATTEMPT_STATE_FAILED,
        reason=task_pb2.END_REASON_NONZERO_EXIT,
        exit_code=3,
        usage=task_pb2.Usage(input_tokens=7),
    )
    found = await plane.transactions.get_workspace("acme", "ws")
    assert found is not None
    await plane.transactions.delete_workspace("acme", found)
    await user.wait(task_id)
    result = await user.result(task_id)
    assert (result.state, result.reason) == (FAILED, task_pb2.END_REASON_WORKSPACE_GONE)
    assert "ws" in result.message
    assert (len(result.attempts), result.usage.input_tokens) == (1, 7), "what it used is told too"
    assert stamps(result) == ["queued", "committed"], "the attempt was before it was queued for the last time"


async def test_an_explanation_says_how_far_the_files_are(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    running = node.running[assignment.token]

    async def said(words: str) -> bool:
        explained = await user.stub.ExplainTask(pb.ExplainTaskRequest(task_id=task_id))
        return any(words in reason for reason in explained.reasons)

    running.phase = pb.ATTEMPT_PHASE_PREPARING
    running.progress.CopyFrom(pb.TreeProgress(files=10, bytes=100, total_files=20, total_bytes=300))
    await until("it says so", lambda: said("being prepared: 10 of 20 files, 100 of 300 bytes"))
    running.phase = pb.ATTEMPT_PHASE_SAVING
    running.progress.CopyFrom(pb.TreeProgress(files=5, bytes=50))
    await until("it says so", lambda: said("being saved: 5 files, 50 bytes"))
    running.phase = pb.ATTEMPT_PHASE_RUNNING
    running.ClearField("progress")
    await node.heard(2)
    assert not await said("being")
