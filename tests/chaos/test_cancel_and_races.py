"""Cancels at every moment, and clients and tasks that race."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cloudclaw.errors import AlreadyExistsError, PreconditionError
from cloudclaw.v1 import scheduler_pb2, task_pb2
from tests.support.processes import eventually
from tests.support.stack import Stack, seconds, task_pids

RUNNING, QUEUED = task_pb2.TASK_STATE_RUNNING, task_pb2.TASK_STATE_QUEUED
SUCCEEDED, CANCELED = task_pb2.TASK_STATE_SUCCEEDED, task_pb2.TASK_STATE_CANCELED

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with Stack(tmp_path_factory.mktemp("races"), nodes=2, slots=1) as stack:
        yield stack


async def test_a_queued_task_is_canceled_at_once(stack: Stack) -> None:
    tenant = stack.tenant("cancel-queued")
    blockers = [await tenant.shell("echo up; sleep 60") for _ in range(2)]
    for task_id in blockers:
        await tenant.wait_output(task_id, b"up\n")
    task_id = await tenant.shell("echo never")
    assert (await tenant.get(task_id)).state == QUEUED
    task = (await tenant.scheduler.CancelTask(scheduler_pb2.CancelTaskRequest(task_id=task_id))).task
    assert task.state == CANCELED
    assert not task.attempts
    result = await tenant.result(task_id)
    assert (result.state, result.reason) == (CANCELED, task_pb2.END_REASON_CANCELED)
    for blocker in blockers:
        await tenant.scheduler.CancelTask(scheduler_pb2.CancelTaskRequest(task_id=blocker))
        assert (await tenant.wait(blocker)).state == CANCELED


async def test_a_running_task_is_canceled_when_its_processes_are_gone(stack: Stack) -> None:
    tenant = stack.tenant("cancel-running")
    await tenant.create_workspace("ws")
    task_id = await tenant.shell(
        "trap '' TERM; echo x > file; echo up; sleep 60 & wait; sleep 60",
        workspace=task_pb2.WorkspaceSelection(name="ws"),
    )
    await tenant.wait_output(task_id, b"up\n")
    assert task_pids(task_id)
    await tenant.scheduler.CancelTask(scheduler_pb2.CancelTaskRequest(task_id=task_id))
    task = await tenant.wait(task_id)
    assert task.state == CANCELED
    assert not task_pids(task_id)
    from cloudclaw.v1 import workspace_pb2

    workspace = await tenant.workspaces.GetWorkspace(workspace_pb2.GetWorkspaceRequest(name="ws"))
    assert workspace.workspace.head_snapshot_id == ""
    assert workspace.workspace.writer == ""


async def test_a_task_canceled_in_its_backoff_never_runs_again(stack: Stack) -> None:
    tenant = stack.tenant("cancel-backoff")
    retry = task_pb2.RetryPolicy(
        max_attempts=5, initial_backoff=seconds(30), retry_on=[task_pb2.END_REASON_NONZERO_EXIT]
    )
    task_id = await tenant.shell("exit 1", retry=retry)

    async def waits() -> bool:
        task = await tenant.get(task_id)
        return task.state == QUEUED and task.wait_reason == task_pb2.WAIT_REASON_BACKOFF

    await eventually("it waits for its backoff", waits)
    task = (await tenant.scheduler.CancelTask(scheduler_pb2.CancelTaskRequest(task_id=task_id))).task
    assert (task.state, len(task.attempts)) == (CANCELED, 1)
    assert (await tenant.result(task_id)).state == CANCELED


async def test_a_canceled_task_stays_canceled_when_it_is_canceled_again(stack: Stack) -> None:
    tenant = stack.tenant("cancel-twice")
    task_id = await tenant.shell("echo hi")
    assert (await tenant.wait(task_id)).state == SUCCEEDED
    task = (await tenant.scheduler.CancelTask(scheduler_pb2.CancelTaskRequest(task_id=task_id))).task
    assert task.state == SUCCEEDED


async def test_two_submits_with_one_request_id_make_one_task(stack: Stack) -> None:
    one, two = stack.tenant("same"), stack.tenant("same")
    for round_number in range(10):
        request_id = f"req-{round_number}"
        first, second = await asyncio.gather(
            one.submit("echo", "hi", request_id=request_id), two.submit("echo", "hi", request_id=request_id)
        )
        assert first == second
    with pytest.raises(AlreadyExistsError, match="request"):
        await one.submit("echo", "other", request_id="req-0")
    listed = await one.scheduler.ListTasks(scheduler_pb2.ListTasksRequest(page_size=1000))
    assert len(listed.tasks) == 10


async def test_forty_claims_in_one_exclusive_workspace_never_overlap(stack: Stack) -> None:
    tenant = stack.tenant("exclusive")
    await tenant.create_workspace("ws")
    retry = task_pb2.RetryPolicy(
        max_attempts=10, initial_backoff=seconds(0.01), backoff_multiplier=1.0,
        retry_on=[task_pb2.END_REASON_NONZERO_EXIT],
    )  # fmt: skip
    script = "echo $CLAW_TASK_ID $CLAW_ATTEMPT >> claims; [ $CLAW_ATTEMPT = 10 ]"
    tasks = [
        await tenant.shell(script, workspace=task_pb2.WorkspaceSelection(name="ws"), retry=retry) for _ in range(4)
    ]
    # Others compete for the same slots, so that claims of the four come in any order.
    others = [await stack.tenant("noise").shell("sleep 0.05") for _ in range(20)]
    ended = [await tenant.wait(t, timeout=120) for t in tasks]
    assert all(t.state == SUCCEEDED and len(t.attempts) == 10 for t in ended)
    spans = sorted(
        (a.start_time.ToNanoseconds(), a.end_time.ToNanoseconds(), t.task_id) for t in ended for a in t.attempts
    )
    assert len(spans) == 40
    for (_, end, _), (start, _, _) in itertools.pairwise(spans):
        assert end <= start, "two attempts ran in one exclusive workspace at once"
    # A task keeps the workspace from its first claim to its end: its ten attempts are neighbours.
    owners = [task_id for _, _, task_id in spans]
    assert sum(a != b for a, b in itertools.pairwise(owners)) == 3
    claims = (await tenant.read_file("ws", "claims")).decode().split("\n")[:-1]
    assert sorted(claims) == sorted(f"{t} 10" for t in tasks), "exactly the committed attempts left a line"
    for task_id in others:
        await stack.tenant("noise").wait(task_id)


async def test_a_result_is_asked_for_before_there_is_one(stack: Stack) -> None:
    tenant = stack.tenant("early")
    task_id = await tenant.shell("echo up; sleep 60")
    await tenant.wait_output(task_id, b"up\n")
    with pytest.raises(PreconditionError, match="not ended"):
        await tenant.result(task_id)
    await tenant.scheduler.CancelTask(scheduler_pb2.CancelTaskRequest(task_id=task_id))
    await tenant.wait(task_id)


@pytest.mark.asyncio(loop_scope="function")
async def test_a_task_canceled_while_it_is_being_requeued_never_runs_again(tmp_path: Path) -> None:
    async with Stack(tmp_path, nodes=2, slots=1, restart=False) as stack:
        tenant = stack.tenant("acme")
        task_id = await tenant.shell("echo up; sleep 60")
        await tenant.wait_output(task_id, b"up\n")
        await stack.kill_node((await tenant.get(task_id)).attempts[0].node)
        await tenant.scheduler.CancelTask(scheduler_pb2.CancelTaskRequest(task_id=task_id))
        task = await tenant.wait(task_id)
        assert task.state == CANCELED
        assert len(task.attempts) == 1
        await eventually("nothing of it runs", lambda: not task_pids(task_id), 10)
