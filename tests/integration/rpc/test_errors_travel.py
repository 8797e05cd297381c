"""Every domain error arrives as what it was, from calls of all four kinds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from cloudclaw import errors
from cloudclaw.errors import CloudClawError
from cloudclaw.v1 import scheduler_pb2, scheduler_pb2_grpc, workspace_pb2, workspace_pb2_grpc
from tests.integration.rpc.conftest import Loopback


def _leaderless() -> CloudClawError:
    error = errors.PreconditionError("ask the leader", subject="replica", reason="NOT_LEADER")
    error.metadata["leader"] = "127.0.0.1:9"
    return error


ERRORS: list[Callable[[], CloudClawError]] = [
    lambda: CloudClawError("a fault", reason="FAULT", metadata={"a": "b"}),
    lambda: errors.InvalidArgumentError("must be positive", field="spec.timeouts.run", reason="NEGATIVE"),
    lambda: errors.NotFoundError("no such task", metadata={"task": "task-1"}),
    lambda: errors.AlreadyExistsError("the name is taken"),
    _leaderless,
    lambda: errors.OutOfRangeError("past the end"),
    lambda: errors.QuotaExceededError("too many tasks", subject="tenant:acme", reason="TASKS"),
    lambda: errors.UnavailableError("away", retry_after=2.5, reason="NO_LEADER"),
    lambda: errors.UnauthenticatedError("who are you", reason="TOKEN_EXPIRED"),
    lambda: errors.PermissionDeniedError("not you"),
    lambda: errors.AbortedError("lost a race", reason="WRITER_BUSY"),
    lambda: errors.FencedError("the token is old"),
    lambda: errors.DataLossError("segment 3 is short"),
    lambda: errors.UnimplementedError("later"),
    lambda: errors.NotFoundError("Ünïcödé ☃\nand a line\x00"),
]


def facts(error: CloudClawError) -> dict[str, Any]:
    """What must survive the way."""
    names = ("message", "reason", "field", "subject", "retry_after")
    metadata = {key: value for key, value in error.metadata.items() if key != "request_id"}
    return {name: getattr(error, name) for name in names if hasattr(error, name)} | {"metadata": metadata}


async def unary_unary(channel: grpc.aio.Channel) -> None:
    await scheduler_pb2_grpc.SchedulerServiceStub(channel).GetTask(scheduler_pb2.GetTaskRequest())


async def unary_stream(channel: grpc.aio.Channel) -> None:
    async for _ in scheduler_pb2_grpc.SchedulerServiceStub(channel).TailLogs(scheduler_pb2.TailLogsRequest()):
        pass


async def unary_stream_by_read(channel: grpc.aio.Channel) -> None:
    call = scheduler_pb2_grpc.SchedulerServiceStub(channel).TailLogs(scheduler_pb2.TailLogsRequest())
    while await call.read() is not grpc.aio.EOF:
        pass


async def stream_unary(channel: grpc.aio.Channel) -> None:
    await workspace_pb2_grpc.WorkspaceServiceStub(channel).WriteFiles(iter([workspace_pb2.WriteFilesRequest()]))


async def stream_stream(channel: grpc.aio.Channel) -> None:
    async def requests() -> AsyncIterator[scheduler_pb2.StreamLogsRequest]:
        yield scheduler_pb2.StreamLogsRequest()
        await asyncio.Event().wait()

    async for _ in scheduler_pb2_grpc.SchedulerServiceStub(channel).StreamLogs(requests()):
        pass


KINDS = [unary_unary, unary_stream, unary_stream_by_read, stream_unary, stream_stream]
Kind = Callable[[grpc.aio.Channel], Coroutine[Any, Any, None]]


def failing(loopback: Loopback, make: Callable[[], BaseException]) -> None:
    def fail() -> None:
        raise make()

    loopback.scheduler.fail = loopback.workspaces.fail = fail


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", ERRORS)
async def test_an_error_arrives_as_what_it_was(
    loopback: Loopback, kind: Kind, make: Callable[[], CloudClawError]
) -> None:
    failing(loopback, make)
    with pytest.raises(CloudClawError) as caught:
        await asyncio.wait_for(kind(loopback.channel()), 20)
    assert type(caught.value) is type(make())
    assert facts(caught.value) == facts(make())
    assert caught.value.metadata["request_id"].startswith("req-")


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unexpected_exception_tells_nothing_but_its_incident(loopback: Loopback, kind: Kind) -> None:
    failing(loopback, lambda: RuntimeError("secret: hunter2"))
    with pytest.raises(CloudClawError) as caught:
        await asyncio.wait_for(kind(loopback.channel()), 20)
    assert caught.value.code == "INTERNAL"
    assert caught.value.metadata["incident"] in caught.value.message
    assert "hunter2" not in str(caught.value.message)


async def test_an_error_out_of_a_task_group_is_unwrapped(loopback: Loopback) -> None:
    failing(loopback, lambda: ExceptionGroup("g", [ExceptionGroup("h", [errors.NotFoundError("inner")])]))
    with pytest.raises(errors.NotFoundError, match="inner"):
        await unary_unary(loopback.channel())


async def test_what_a_group_hides_beside_a_domain_error_stays_internal(loopback: Loopback) -> None:
    failing(loopback, lambda: ExceptionGroup("g", [errors.NotFoundError("inner"), ValueError("bug")]))
    with pytest.raises(CloudClawError) as caught:
        await unary_unary(loopback.channel())
    assert caught.value.code == "INTERNAL"


async def test_a_method_that_is_not_served_yet_says_so(loopback: Loopback) -> None:
    stub = scheduler_pb2_grpc.SchedulerServiceStub(loopback.channel())
    with pytest.raises(errors.UnimplementedError):
        await stub.SendInput(scheduler_pb2.SendInputRequest())
    with pytest.raises(errors.UnimplementedError):
        async for _ in stub.WatchEvents(scheduler_pb2.WatchEventsRequest()):
            pass


@pytest.mark.parametrize(
    ("make", "kind", "check"),
    [
        (ERRORS[1], error_details_pb2.BadRequest, lambda d: d.field_violations[0].field == "spec.timeouts.run"),
        (_leaderless, error_details_pb2.PreconditionFailure, lambda d: d.violations[0].type == "NOT_LEADER"),
        (ERRORS[6], error_details_pb2.QuotaFailure, lambda d: d.violations[0].subject == "tenant:acme"),
        (ERRORS[7], error_details_pb2.RetryInfo, lambda d: d.retry_delay.ToMilliseconds() == 2500),
        (ERRORS[7], error_details_pb2.RequestInfo, lambda d: d.request_id == "my-request"),
        (ERRORS[2], error_details_pb2.ErrorInfo, lambda d: d.domain == "cloudclaw" and d.metadata["task"] == "task-1"),
    ],
)
async def test_clients_in_other_languages_find_the_standard_details(
    loopback: Loopback, make: Callable[[], CloudClawError], kind: Any, check: Callable[[Any], bool]
) -> None:
    failing(loopback, make)
    call: Any = loopback.raw().unary_unary("/cloudclaw.v1.SchedulerService/GetTask")
    metadata = (("authorization", f"Bearer {loopback.token()}"), ("x-request-id", "my-request"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"", metadata=metadata)
    trailers = dict(caught.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == caught.value.code().value[0]
    (packed,) = [detail for detail in status.details if detail.Is(kind.DESCRIPTOR)]
    detail = kind()
    packed.Unpack(detail)
    assert check(detail)
