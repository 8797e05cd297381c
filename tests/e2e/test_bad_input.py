"""Bad input gets a precise status and detail, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from cloudclaw.errors import (
    CloudClawError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from cloudclaw.rpc.channel import open_channel
from cloudclaw.v1 import pool_manager_pb2, pool_manager_pb2_grpc, scheduler_pb2, scheduler_pb2_grpc, task_pb2
from tests.support.stack import Stack, seconds

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"argv": []}, "spec.argv"),
        ({"argv": [""]}, "spec.argv"),
        ({"argv": ["x" * 70_000]}, "spec.argv"),
        ({"argv": ["a\0b"]}, "spec.argv"),
        ({"prompt": "x" * ((1 << 20) + 1)}, "spec.prompt"),
        ({"env": {"bad-name": "x"}}, "spec.env"),
        ({"env": {"CLAW_TASK_ID": "x"}}, "spec.env"),
        ({"timeouts": task_pb2.Timeouts(run=seconds(-1))}, "spec.timeouts.run"),
        ({"timeouts": task_pb2.Timeouts(run=seconds(8 * 86_400))}, "spec.timeouts.run"),
        ({"resources": task_pb2.Resources(memory_bytes=1)}, "spec.resources.memory_bytes"),
        ({"resources": task_pb2.Resources(cpu_millis=1_000_000)}, "spec.resources.cpu_millis"),
        ({"retry": task_pb2.RetryPolicy(max_attempts=101)}, "spec.retry.max_attempts"),
        ({"retry": task_pb2.RetryPolicy(backoff_multiplier=-1)}, "spec.retry.backoff_multiplier"),
        ({"priority": 101}, "spec.priority"),
        ({"labels": {f"k{i}": "v" for i in range(33)}}, "spec.labels"),
        ({"workspace": task_pb2.WorkspaceSelection(name="../etc")}, "spec.workspace.name"),
        ({"workspace": task_pb2.WorkspaceSelection(name="a/b")}, "spec.workspace.name"),
        ({"workspace": task_pb2.WorkspaceSelection(mode=task_pb2.WORKSPACE_MODE_EXCLUSIVE)}, "spec.workspace.name"),
        ({"pool": "No Such"}, "spec.pool"),
        ({"artifacts": ["x"] * 65}, "spec.artifacts"),
    ],
)
async def test_a_bad_spec_names_its_field(stack: Stack, spec: dict[str, Any], field: str) -> None:
    tenant = stack.tenant("bad-spec")
    whole: dict[str, Any] = {"argv": ["true"], **spec}
    request = scheduler_pb2.SubmitTaskRequest(spec=task_pb2.TaskSpec(**whole))
    with pytest.raises(InvalidArgumentError) as caught:
        await tenant.scheduler.SubmitTask(request)
    assert caught.value.field.startswith(field)
    listed = await tenant.scheduler.ListTasks(scheduler_pb2.ListTasksRequest())
    assert not listed.tasks


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ({"runtime": "no-such-runtime"}, PreconditionError),
        ({"pool": "no-such-pool"}, PreconditionError),
        ({"workspace": task_pb2.WorkspaceSelection(name="no-such-workspace")}, NotFoundError),
    ],
)
async def test_unknown_things_are_named(stack: Stack, spec: dict[str, Any], error: type[CloudClawError]) -> None:
    tenant = stack.tenant("unknown")
    with pytest.raises(error, match="no-such"):
        await tenant.submit("true", **spec)


async def test_ids_and_tokens_that_are_not_ours_are_refused(stack: Stack) -> None:
    tenant = stack.tenant("ids")
    with pytest.raises(NotFoundError):
        await tenant.get("task-0000000000000000")
    for bad in ("", "../../tasks/other/x", "x" * 5000, "a/b"):
        with pytest.raises((NotFoundError, InvalidArgumentError)):
            await tenant.get(bad)
    with pytest.raises(InvalidArgumentError):
        await tenant.submit("true", request_id="has space")
    with pytest.raises(InvalidArgumentError):
        await tenant.scheduler.ListTasks(scheduler_pb2.ListTasksRequest(page_token="garbage"))
    with pytest.raises(InvalidArgumentError):
        await tenant.scheduler.ListTasks(scheduler_pb2.ListTasksRequest(page_size=-1))


@pytest.mark.parametrize("token", ["", "garbage", "eyJhbGciOiJub25lIn0.eyJ0ZW5hbnQiOiJhIn0."])
async def test_without_a_good_token_nothing_is_served(stack: Stack, token: str) -> None:
    channel = open_channel(stack.endpoints["scheduler"], None, token)
    stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
    with pytest.raises(UnauthenticatedError):
        await stub.ListTasks(scheduler_pb2.ListTasksRequest())
    await channel.close()


async def test_operators_and_nodes_calls_are_denied_to_users(stack: Stack) -> None:
    tenant = stack.tenant("user")
    channel = open_channel(stack.endpoints["pool-manager@node-1"], None, tenant.token)
    with pytest.raises(PermissionDeniedError):
        await pool_manager_pb2_grpc.PoolManagerServiceStub(channel).DrainNode(pool_manager_pb2.DrainNodeRequest())
    await channel.close()
    with pytest.raises(PermissionDeniedError):
        async for _ in tenant.scheduler.Connect(iter([scheduler_pb2.ConnectRequest()])):
            raise AssertionError("a user was answered as a node")
    status = await tenant.scheduler.GetClusterStatus(scheduler_pb2.GetClusterStatusRequest())
    assert not status.nodes


async def test_malformed_protobuf_is_an_invalid_argument(stack: Stack) -> None:
    tenant = stack.tenant("malformed")
    channel = grpc.aio.insecure_channel(stack.endpoints["scheduler"])
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
        "/cloudclaw.v1.SchedulerService/SubmitTask"
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\xff\xff\xff\xff garbage", metadata=(("authorization", f"Bearer {tenant.token}"),))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await channel.close()
    assert (await tenant.wait(await tenant.shell("true"))).state == task_pb2.TASK_STATE_SUCCEEDED
