"""Artifacts: out of the result, byte for byte, or not at all."""

from __future__ import annotations

import base64
import hashlib
import os

import pytest
from msgspec.structs import replace

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Delete, Put
from cloudclaw.coordination.records import AttemptEnd, TaskRecord, TaskState, encode
from cloudclaw.coordination.records import Plan as TaskPlan
from cloudclaw.coordination.transactions import Versioned
from cloudclaw.errors import DataLossError, InvalidArgumentError, NotFoundError, PreconditionError
from cloudclaw.history.bundles import ArchivedTask, BundleName, encode_bundle
from cloudclaw.v1 import task_pb2
from cloudclaw.v1 import workspace_pb2 as pb
from tests.support.workspace_service import User, WorkspaceStack

TASK = "task-1"
CONTENT = os.urandom(700_001)
FILES = {"out/report.bin": CONTENT, "empty": b"", "caf%E9": b"not UTF-8 on disk"}


def result() -> bytes:
    made = task_pb2.Result(task_id=TASK)
    for path, content in FILES.items():
        made.artifacts.add(path=path, size=len(content), digest=hashlib.sha256(content).hexdigest())
    return made.SerializeToString()


async def end(stack: WorkspaceStack, *, inline: bool = True, state: TaskState = TaskState.SUCCEEDED) -> TaskRecord:
    """A task of two attempts, as the scheduler and the second attempt's node leave it."""
    attempts = tuple(AttemptEnd(number=n, uid=f"uid-{n}", node="node-1") for n in (1, 2))
    record = TaskRecord(
        tenant="acme", task=TASK, plan=TaskPlan(), created=1, op_id="op-1", state=state, attempts=attempts, attempt=2
    )
    if inline:
        record = replace(record, result=base64.b64encode(result()).decode())
    else:
        record = replace(record, result_object=f"results/acme/{TASK}/uid-2")
        await stack.objects.put(record.result_object, result())
    for content in FILES.values():
        await stack.objects.put(name(content), content)
    await stack.kv.txn([], [Put(keys.task("acme", TASK), encode(record))])
    return record


def name(content: bytes) -> str:
    return f"artifacts/acme/{TASK}/uid-2/{hashlib.sha256(content).hexdigest()}"


async def download(user: User, path: str, task: str = TASK) -> bytes:
    request = pb.DownloadArtifactRequest(task_id=task, path=path)
    pieces = [response.data async for response in user.stub.DownloadArtifact(request)]
    assert all(0 < len(piece) <= 256 << 10 for piece in pieces)
    return b"".join(pieces)


@pytest.mark.parametrize("inline", [True, False])
async def test_artifacts_come_as_the_task_left_them(stack: WorkspaceStack, inline: bool) -> None:
    await end(stack, inline=inline)
    user = stack.user()
    for path, content in FILES.items():
        assert await download(user, path) == content


async def test_what_the_result_does_not_list_is_not_there(stack: WorkspaceStack) -> None:
    await end(stack)
    user = stack.user()
    for path in ("out", "out/report.bin/", "../x", "", "report.bin"):
        with pytest.raises(NotFoundError):
            await download(user, path)
    with pytest.raises(NotFoundError):
        await download(user, "empty", task="task-2")
    with pytest.raises(NotFoundError):
        await download(stack.user("other"), "empty")
    with pytest.raises(InvalidArgumentError):
        await download(user, "empty", task="../acme/task-1")


async def test_a_task_that_runs_has_no_artifacts_yet(stack: WorkspaceStack) -> None:
    await end(stack, state=TaskState.RUNNING)
    with pytest.raises(PreconditionError) as refused:
        await download(stack.user(), "empty")
    assert refused.value.reason == "TASK_NOT_ENDED"


@pytest.mark.parametrize("inline", [True, False])
async def test_artifacts_outlive_their_tasks_stay_in_etcd(stack: WorkspaceStack, inline: bool) -> None:
    archived = ArchivedTask(Versioned(await end(stack, inline=inline), 1, 2), b"")
    await stack.objects.put(str(BundleName("acme", 1000, 1000, "hist-1")), encode_bundle([archived]))
    await stack.kv.txn([], [Delete(keys.task("acme", TASK))])
    user = stack.user()
    for path, content in FILES.items():
        assert await download(user, path) == content
    with pytest.raises(NotFoundError):
        await download(user, "empty", task="task-2")
    with pytest.raises(NotFoundError):
        await download(stack.user("other"), "empty")


@pytest.mark.parametrize("damage", ["missing", "altered", "longer", "shorter", "no result"])
async def test_damage_is_told_and_named(stack: WorkspaceStack, damage: str) -> None:
    record = await end(stack, inline=False)
    match damage:
        case "missing":
            await stack.objects.delete(name(CONTENT))
        case "altered":
            await stack.objects.put(name(CONTENT), CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
        case "longer":
            await stack.objects.put(name(CONTENT), CONTENT + bytes(3 << 20))
        case "shorter":
            await stack.objects.put(name(CONTENT), CONTENT[:-1])
        case _:
            await stack.objects.delete(record.result_object)
    with pytest.raises(DataLossError, match="result" if damage == "no result" else name(CONTENT).rpartition("/")[2]):
        await download(stack.user(), "out/report.bin")
