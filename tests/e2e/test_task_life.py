"""A task's life through the public API, with real components."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

import pytest

from cloudclaw.errors import NotFoundError, OutOfRangeError
from cloudclaw.v1 import scheduler_pb2, task_pb2, workspace_pb2
from tests.support.stack import Stack, seconds

SUCCEEDED, FAILED = task_pb2.TASK_STATE_SUCCEEDED, task_pb2.TASK_STATE_FAILED
QUEUED, RUNNING = task_pb2.TASK_STATE_QUEUED, task_pb2.TASK_STATE_RUNNING

T = TypeVar("T")

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_task_runs_and_leaves_its_log_and_result(stack: Stack) -> None:
    tenant = stack.tenant("life")
    task_id = await tenant.submit(
        "sh", "-c", "echo out; echo err >&2; echo $GREETING $CLAW_TASK_ID $CLAW_ATTEMPT", env={"GREETING": 'it\'s "ok"'}
    )
    task = await tenant.wait(task_id)
    assert task.state == SUCCEEDED
    assert [e.state for e in task.events] == [QUEUED, RUNNING, SUCCEEDED]
    assert task.spec.argv[0] == "sh"
    log = await tenant.log(task_id)
    assert sorted(log.decode().splitlines()) == sorted(["out", "err", f'it\'s "ok" {task_id} 1'])
    streams = {r.chunk.data: r.chunk.stream async for r in tenant.tail(task_id) if r.chunk.data}
    assert task_pb2.LOG_STREAM_STDERR in streams.values()
    result = await tenant.result(task_id)
    assert (result.state, result.reason, result.exit_code) == (SUCCEEDED, task_pb2.END_REASON_COMPLETED, 0)
    assert not result.HasField("usage")
    order = result.timings
    times = [t.ToNanoseconds() for t in (order.queued, order.prepared, order.started, order.ended, order.committed)]
    assert times == sorted(times)
    assert times[0] > 0


@pytest.mark.parametrize(
    ("argv", "reason", "code"),
    [
        (("sh", "-c", "exit 3"), task_pb2.END_REASON_NONZERO_EXIT, 3),
        (("no-such-program",), task_pb2.END_REASON_START_FAILED, 127),
        (("/etc/passwd",), task_pb2.END_REASON_START_FAILED, 126),
        (("sh", "-c", "kill -9 $$"), task_pb2.END_REASON_KILLED_BY_SIGNAL, 137),
    ],
)
async def test_every_way_to_fail_has_its_reason(stack: Stack, argv: tuple[str, ...], reason: int, code: int) -> None:
    tenant = stack.tenant("reasons")
    task = await tenant.wait(await tenant.submit(*argv))
    result = await tenant.result(task.task_id)
    assert (task.state, result.reason, result.exit_code, len(task.attempts)) == (FAILED, reason, code, 1)
    assert result.message


async def test_files_are_made_with_the_usual_mode(stack: Stack) -> None:
    tenant = stack.tenant("umask")
    task_id = await tenant.shell("umask; touch f; stat -c %a f")
    await tenant.wait(task_id)
    assert await tenant.log(task_id) == b"0022\n644\n"


async def test_limits_end_an_attempt_with_the_reason_that_names_them(stack: Stack) -> None:
    tenant = stack.tenant("limits")
    quick = task_pb2.RetryPolicy(max_attempts=1)
    eat = "import os\nb = []\nwhile True: b.append(os.urandom(1 << 20))"
    cases = {
        task_pb2.END_REASON_RUN_TIMEOUT: await tenant.shell(
            "sleep 60", timeouts=task_pb2.Timeouts(run=seconds(0.5)), retry=quick
        ),
        task_pb2.END_REASON_SILENCE_TIMEOUT: await tenant.shell(
            "echo once; sleep 60", timeouts=task_pb2.Timeouts(silence=seconds(0.7)), retry=quick
        ),
        task_pb2.END_REASON_MEMORY_LIMIT: await tenant.submit(
            "python3", "-c", eat, resources=task_pb2.Resources(memory_bytes=64 << 20), retry=quick
        ),
        task_pb2.END_REASON_PIDS_LIMIT: await tenant.shell(
            "for i in $(seq 200); do sleep 30 & done; wait", resources=task_pb2.Resources(pids=20), retry=quick
        ),
        task_pb2.END_REASON_DISK_LIMIT: await tenant.shell(
            "for i in $(seq 40); do head -c 1000000 /dev/zero > f$i; sleep 0.1; done; sleep 30",
            resources=task_pb2.Resources(disk_bytes=8 << 20), retry=quick,
        ),
    }  # fmt: skip
    for reason, task_id in cases.items():
        task = await tenant.wait(task_id)
        result = await tenant.result(task_id)
        assert (task.state, task_pb2.EndReason.Name(result.reason)) == (FAILED, task_pb2.EndReason.Name(reason))


async def test_a_task_waits_no_longer_than_its_queue_timeout(stack: Stack) -> None:
    tenant = stack.tenant("queue-timeout")
    blockers = [await tenant.shell("echo up; sleep 60") for _ in range(4)]
    for blocker in blockers:
        await tenant.wait_output(blocker, b"up\n")
    task_id = await tenant.shell("echo never", timeouts=task_pb2.Timeouts(queue=seconds(0.5)))
    explained = await tenant.scheduler.ExplainTask(scheduler_pb2.ExplainTaskRequest(task_id=task_id))
    assert explained.task.wait_reason == task_pb2.WAIT_REASON_SLOT
    assert explained.reasons
    task = await tenant.wait(task_id)
    assert task.state == FAILED
    assert (await tenant.result(task_id)).reason == task_pb2.END_REASON_QUEUE_TIMEOUT
    for blocker in blockers:
        await tenant.scheduler.CancelTask(scheduler_pb2.CancelTaskRequest(task_id=blocker))
    for blocker in blockers:
        await tenant.wait(blocker)


async def test_a_workspace_persists_across_tasks_and_modes(stack: Stack) -> None:
    tenant = stack.tenant("persist")
    await tenant.create_workspace("ws")
    exclusive = task_pb2.WorkspaceSelection(name="ws")
    first = await tenant.shell(
        "mkdir d; echo one > d/f; ln -s d/f link; chmod 755 d/f; echo secret > ~/session", workspace=exclusive
    )
    assert (await tenant.wait(first)).state == SUCCEEDED
    result = await tenant.result(first)
    assert result.snapshot_id
    assert {(c.path, c.change) for c in result.changed_files} >= {("d/f", task_pb2.ChangedFile.CHANGE_ADDED)}
    second = await tenant.shell("cat link ~/session; [ -x d/f ]; echo two >> d/f", workspace=exclusive)
    assert (await tenant.wait(second)).state == SUCCEEDED
    assert await tenant.log(second) == b"one\nsecret\n"
    for mode in (task_pb2.WORKSPACE_MODE_FORK, task_pb2.WORKSPACE_MODE_EPHEMERAL):
        other = await tenant.shell(
            "cat d/f; echo lost > d/f", workspace=task_pb2.WorkspaceSelection(name="ws", mode=mode)
        )
        assert (await tenant.wait(other)).state == SUCCEEDED
        assert await tenant.log(other) == b"one\ntwo\n"
        assert bool((await tenant.result(other)).snapshot_id) == (mode == task_pb2.WORKSPACE_MODE_FORK)
    failed = await tenant.shell("echo broken > d/f; exit 1", workspace=exclusive)
    assert (await tenant.wait(failed)).state == FAILED
    assert await tenant.read_file("ws", "d/f") == b"one\ntwo\n"
    fresh = await tenant.shell("ls -A . ~ | wc -l")
    assert (await tenant.wait(fresh)).state == SUCCEEDED
    got = await tenant.workspaces.GetWorkspace(workspace_pb2.GetWorkspaceRequest(name="ws"))
    assert got.workspace.generation == 2
    assert got.workspace.writer == ""


async def test_a_binary_log_is_exact_from_any_offset(stack: Stack) -> None:
    tenant = stack.tenant("binary")
    blob = random.Random(7).randbytes(3_000_000)
    await tenant.create_workspace("ws")
    upload = [workspace_pb2.WriteFilesRequest(header=workspace_pb2.WriteHeader(workspace="ws"))]
    upload.append(workspace_pb2.WriteFilesRequest(file=workspace_pb2.FileHeader(path="blob")))
    upload += [workspace_pb2.WriteFilesRequest(data=blob[i : i + 200_000]) for i in range(0, len(blob), 200_000)]
    await tenant.workspaces.WriteFiles(iter_async(upload))
    task_id = await tenant.submit(
        "cat", "blob", workspace=task_pb2.WorkspaceSelection(name="ws", mode=task_pb2.WORKSPACE_MODE_EPHEMERAL)
    )
    live = b"".join([r.chunk.data async for r in tenant.tail(task_id)])
    assert hashlib.sha256(live).digest() == hashlib.sha256(blob).digest()
    assert (await tenant.wait(task_id)).attempts[0].log_end == len(blob)
    for offset in (0, 1, 65_535, 1 << 20, len(blob) - 1, len(blob)):
        assert await tenant.log(task_id, attempt=1, offset=offset) == blob[offset:]
    with pytest.raises(OutOfRangeError):
        await tenant.log(task_id, attempt=1, offset=len(blob) + 1)


async def test_a_slow_reader_of_a_fast_log_holds_up_nobody(stack: Stack) -> None:
    tenant = stack.tenant("slow")
    task_id = await tenant.shell(
        "i=0; while [ $i -lt 200 ]; do head -c 100000 /dev/zero; i=$((i+1)); done; echo; echo end"
    )
    slow = tenant.tail(task_id).__aiter__()
    first = await anext(slow)
    quick = await asyncio.wait_for(tenant.wait(task_id), 60)
    assert quick.state == SUCCEEDED
    total = len(first.chunk.data)
    async for response in slow:
        total += len(response.chunk.data)
    assert total == 200 * 100_000 + len("\nend\n")


async def test_a_client_that_vanishes_mid_stream_leaves_the_task_alone(stack: Stack) -> None:
    tenant = stack.tenant("vanish")
    task_id = await tenant.shell("for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done")
    tail = tenant.tail(task_id)
    await anext(tail)
    await tail.aclose()
    assert (await tenant.wait(task_id)).state == SUCCEEDED
    assert await tenant.log(task_id) == b"1\n2\n3\n4\n5\n6\n"


async def test_changes_are_watched_from_any_revision(stack: Stack) -> None:
    tenant = stack.tenant("watch")
    listed = await tenant.scheduler.ListTasks(scheduler_pb2.ListTasksRequest())
    task_id = await tenant.shell("echo hi")
    await tenant.wait(task_id)
    states = []
    request = scheduler_pb2.WatchTasksRequest(after_revision=listed.revision)
    async for response in tenant.scheduler.WatchTasks(request):
        assert response.task.task_id == task_id
        states.append(response.task.state)
        if response.task.state == SUCCEEDED:
            break
    assert states == [QUEUED, RUNNING, SUCCEEDED]


async def test_lists_are_paged_filtered_and_newest_first(stack: Stack) -> None:
    tenant = stack.tenant("lists")
    ids = [await tenant.shell("true", labels={"n": str(i % 2)}) for i in range(7)]
    for task_id in ids:
        await tenant.wait(task_id)
    seen, token = [], ""
    while True:
        page = await tenant.scheduler.ListTasks(scheduler_pb2.ListTasksRequest(page_size=3, page_token=token))
        seen += [t.task_id for t in page.tasks]
        token = page.next_page_token
        if not token:
            break
    assert seen == ids[::-1]
    odd = await tenant.scheduler.ListTasks(scheduler_pb2.ListTasksRequest(labels={"n": "1"}, states=[SUCCEEDED]))
    assert {t.task_id for t in odd.tasks} == set(ids[1::2])


async def test_another_tenants_things_are_not_found(stack: Stack) -> None:
    owner, stranger = stack.tenant("owner"), stack.tenant("stranger")
    await owner.create_workspace("private")
    task_id = await owner.shell("echo private", workspace=task_pb2.WorkspaceSelection(name="private"))
    await owner.wait(task_id)
    for call in (
        stranger.get(task_id),
        stranger.result(task_id),
        stranger.log(task_id),
        stranger.scheduler.CancelTask(scheduler_pb2.CancelTaskRequest(task_id=task_id)),
        stranger.read_file("private", "x"),
        stranger.shell("true", workspace=task_pb2.WorkspaceSelection(name="private")),
        stranger.workspaces.DeleteWorkspace(workspace_pb2.DeleteWorkspaceRequest(name="private")),
    ):
        with pytest.raises(NotFoundError):
            await call
    listed = await stranger.scheduler.ListTasks(scheduler_pb2.ListTasksRequest())
    assert not listed.tasks


async def iter_async(items: Iterable[T]) -> AsyncIterator[T]:
    """The items as an asynchronous iterator."""
    for item in items:
        yield item
