"""The server around servicers: who is asking, context, malformed and vanished clients, health, reflection, metrics."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY

from cloudclaw.clock import SystemClock
from cloudclaw.config import MetricsSettings, ServerSettings
from cloudclaw.errors import InvalidArgumentError, UnauthenticatedError, UnavailableError
from cloudclaw.rpc.auth import Authenticator
from cloudclaw.rpc.metrics_server import serve_metrics
from cloudclaw.rpc.server import RpcServer
from cloudclaw.v1 import scheduler_pb2, scheduler_pb2_grpc, workspace_pb2, workspace_pb2_grpc
from tests.integration.rpc.conftest import Loopback, Start
from tests.integration.rpc.servicers import SCHEDULER, WORKSPACE
from tests.integration.rpc.test_errors_travel import (
    KINDS,
    Kind,
    stream_unary,
    unary_stream,
    unary_unary,
)
from tests.support.processes import eventually
from tests.support.proxy import Proxy

METHOD = "/cloudclaw.v1.SchedulerService/GetTask"


@pytest.mark.parametrize("kind", KINDS)
async def test_without_a_token_nothing_is_served(loopback: Loopback, kind: Kind) -> None:
    for token in ("", "garbage"):
        with pytest.raises(UnauthenticatedError):
            await kind(loopback.channel(token=token))
    assert not loopback.scheduler.seen.tenants
    assert not loopback.workspaces.seen.tenants


@pytest.mark.parametrize("headers", [["Basic x"], ["Bearer"], ["Bearer "], [" "], ["TOKEN", "Bearer TOKEN"]])
async def test_other_ways_to_authenticate_are_refused(loopback: Loopback, headers: list[str]) -> None:
    metadata = [("authorization", header.replace("TOKEN", loopback.token())) for header in headers]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        call: Any = loopback.raw().unary_unary(METHOD)
        await call(b"", metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("kind", [unary_unary, unary_stream, stream_unary])
async def test_the_callers_tenant_and_request_id_reach_the_servicer(loopback: Loopback, kind: Kind) -> None:
    await kind(loopback.channel(token=loopback.token("tenant-a")))
    seen = loopback.workspaces.seen if kind is stream_unary else loopback.scheduler.seen
    assert set(seen.tenants) == {"tenant-a"}
    assert {(bound["tenant"], bound["request_id"][:4]) for bound in seen.bound} == {("tenant-a", "req-")}


async def test_calls_at_the_same_time_do_not_mix_their_callers(loopback: Loopback) -> None:
    async def call(tenant: str) -> None:
        for _ in range(10):
            await unary_stream(loopback.channel(token=loopback.token(tenant)))

    await asyncio.gather(*(call(f"tenant-{i}") for i in range(5)))
    tenants = loopback.scheduler.seen.tenants
    assert {tenant: tenants.count(tenant) for tenant in set(tenants)} == {f"tenant-{i}": 20 for i in range(5)}
    assert all(b["tenant"] == t for b, t in zip(loopback.scheduler.seen.bound, tenants, strict=True))


@pytest.mark.parametrize(("sent", "kept"), [("abc-1", True), ("has space", False), ("x" * 65, False)])
async def test_a_well_formed_request_id_is_the_clients(loopback: Loopback, sent: str, kept: bool) -> None:
    stub = scheduler_pb2_grpc.SchedulerServiceStub(loopback.channel())
    await stub.GetTask(scheduler_pb2.GetTaskRequest(), metadata=(("x-request-id", sent),))
    (bound,) = loopback.scheduler.seen.bound
    assert (bound["request_id"] == sent) is kept


@pytest.mark.parametrize("method", [METHOD, "/cloudclaw.v1.SchedulerService/TailLogs"])
async def test_malformed_protobuf_is_an_invalid_argument(loopback: Loopback, method: str) -> None:
    metadata = (("authorization", f"Bearer {loopback.token()}"),)
    channel: Any = loopback.raw()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if method == METHOD:
            await channel.unary_unary(method)(b"\xff\xff garbage", metadata=metadata)
        else:
            await channel.unary_stream(method)(b"\xff\xff garbage", metadata=metadata).read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not loopback.scheduler.seen.tenants


async def test_malformed_protobuf_within_a_stream_is_an_invalid_argument(loopback: Loopback) -> None:
    metadata = (("authorization", f"Bearer {loopback.token()}"),)
    good = workspace_pb2.WriteFilesRequest(remove="a").SerializeToString()
    upload: Any = loopback.raw().stream_unary("/cloudclaw.v1.WorkspaceService/WriteFiles")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await upload(iter([good, b"\xff\xff"]), metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await loopback.workspaces.ended == InvalidArgumentError.__name__
    both: Any = loopback.raw().stream_stream("/cloudclaw.v1.SchedulerService/StreamLogs")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in both(iter([b"\xff\xff"]), metadata=metadata):
            pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_upload_ends_whole_only_when_its_client_said_so(loopback: Loopback) -> None:
    stub = workspace_pb2_grpc.WorkspaceServiceStub(loopback.channel())
    response = await stub.WriteFiles(iter([workspace_pb2.WriteFilesRequest(remove=str(i)) for i in range(3)]))
    assert response.snapshot.snapshot_id == "3"
    assert await loopback.workspaces.ended == "whole"


@pytest.mark.parametrize("way", ["cancel", "connection"])
async def test_an_upload_whose_client_vanishes_is_not_taken_for_a_shorter_one(loopback: Loopback, way: str) -> None:
    hold = asyncio.Event()

    async def requests() -> AsyncIterator[workspace_pb2.WriteFilesRequest]:
        yield workspace_pb2.WriteFilesRequest(remove="only")
        await hold.wait()

    async with Proxy(loopback.address) as network:
        channel = loopback.channel(target=network.address)
        call = workspace_pb2_grpc.WorkspaceServiceStub(channel).WriteFiles(requests())
        await asyncio.wait_for(loopback.workspaces.first.wait(), 20)
        if way == "cancel":
            call.cancel()
    ended = await asyncio.wait_for(loopback.workspaces.ended, 20)
    assert ended in ("AbortedError", "CancelledError")


@pytest.mark.parametrize("way", ["cancel", "connection"])
async def test_a_client_that_vanishes_ends_its_streams_handler(loopback: Loopback, way: str) -> None:
    loopback.scheduler.endless = True
    async with Proxy(loopback.address) as network:
        channel = loopback.channel(target=network.address)
        call = scheduler_pb2_grpc.SchedulerServiceStub(channel).TailLogs(scheduler_pb2.TailLogsRequest())
        await call.read()
        await asyncio.wait_for(loopback.scheduler.started.wait(), 20)
        assert not loopback.scheduler.left.is_set()
        if way == "cancel":
            call.cancel()
    await asyncio.wait_for(loopback.scheduler.left.wait(), 20)


async def test_a_client_that_vanishes_ends_a_waiting_handler(loopback: Loopback) -> None:
    call = scheduler_pb2_grpc.SchedulerServiceStub(loopback.channel()).ListTasks(scheduler_pb2.ListTasksRequest())
    waiting = asyncio.ensure_future(_answer(call))
    await asyncio.wait_for(loopback.scheduler.started.wait(), 20)
    waiting.cancel()
    await asyncio.wait_for(loopback.scheduler.left.wait(), 20)


async def _answer(call: Any) -> Any:
    return await call


async def test_a_deadline_that_passes_is_unavailable_and_ends_the_handler(loopback: Loopback) -> None:
    stub = scheduler_pb2_grpc.SchedulerServiceStub(loopback.channel())
    with pytest.raises(UnavailableError) as caught:
        await stub.ListTasks(scheduler_pb2.ListTasksRequest(), timeout=0.2)
    assert caught.value.reason == "DEADLINE_EXCEEDED"
    await asyncio.wait_for(loopback.scheduler.left.wait(), 20)


async def test_health_and_reflection_need_no_token(loopback: Loopback) -> None:
    channel = loopback.raw()
    health = health_pb2_grpc.HealthStub(channel)
    assert (await _check(health, SCHEDULER)) == "NOT_SERVING"
    loopback.server.set_serving(SCHEDULER, True)
    assert (await _check(health, SCHEDULER)) == "SERVING"
    assert (await _check(health, "")) == "NOT_SERVING"
    loopback.server.set_serving(WORKSPACE, True)
    assert (await _check(health, "")) == "SERVING"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _check(health, "no.such.Service")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    (listed,) = [r async for r in reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(requests)]
    names = {service.name for service in listed.list_services_response.service}
    assert {SCHEDULER, WORKSPACE, "grpc.health.v1.Health"} <= names


async def _check(health: Any, service: str) -> str:
    response = await health.Check(health_pb2.HealthCheckRequest(service=service))
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


async def test_watchers_of_health_hear_of_a_drain_and_it_is_for_good(loopback: Loopback) -> None:
    loopback.server.set_serving(SCHEDULER, True)
    call = health_pb2_grpc.HealthStub(loopback.raw()).Watch(health_pb2.HealthCheckRequest(service=SCHEDULER))
    assert (await call.read()).status == health_pb2.HealthCheckResponse.SERVING
    await loopback.server.drain()
    assert (await asyncio.wait_for(call.read(), 20)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    loopback.server.set_serving(SCHEDULER, True)
    assert await _check(health_pb2_grpc.HealthStub(loopback.raw()), SCHEDULER) == "NOT_SERVING"
    # Draining is a word to balancers; who is here is still served.
    await unary_unary(loopback.channel())
    call.cancel()


async def test_a_taken_port_is_refused_clearly(loopback: Loopback) -> None:
    settings = ServerSettings(listen=loopback.address)
    second = RpcServer(settings, Authenticator([loopback.key]), clock=SystemClock())
    with pytest.raises(UnavailableError, match=loopback.address) as caught:
        await second.start()
    assert caught.value.reason == "ADDRESS_IN_USE"
    await second.stop(0)


async def test_a_unix_socket_serves_too(start: Start, tmp_path: Any) -> None:
    loopback = await start(ServerSettings(listen=f"unix:{tmp_path / 's'}"))
    await unary_unary(loopback.channel())
    assert loopback.scheduler.seen.tenants == ["acme"]


async def test_a_channel_finds_a_service_that_was_restarted(loopback: Loopback) -> None:
    channel = loopback.channel()
    await unary_unary(channel)
    await loopback.server.stop(0)
    with pytest.raises(UnavailableError):
        await unary_unary(channel)
    again = Loopback(loopback.key)
    await again.start(ServerSettings(listen=loopback.address))
    async with asyncio.timeout(20):
        await scheduler_pb2_grpc.SchedulerServiceStub(channel).GetTask(
            scheduler_pb2.GetTaskRequest(), wait_for_ready=True
        )
    await again.close()


async def test_messages_over_the_limit_are_refused(loopback: Loopback) -> None:
    stub = scheduler_pb2_grpc.SchedulerServiceStub(loopback.raw())
    metadata = (("authorization", f"Bearer {loopback.token()}"),)
    await stub.GetTask(scheduler_pb2.GetTaskRequest(task_id="x" * (3 << 20)), metadata=metadata)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetTask(scheduler_pb2.GetTaskRequest(task_id="x" * (9 << 20)), metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def _sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"service": SCHEDULER, **labels}) or 0.0


async def test_calls_of_every_kind_are_counted_by_their_end(loopback: Loopback) -> None:
    def handled(method: str, code: str) -> float:
        return _sample("cloudclaw_rpc_handled_total", method=method, code=code)

    before = {(m, c): handled(m, c) for m in ("GetTask", "TailLogs") for c in ("OK", "UNAUTHENTICATED", "CANCELLED")}
    await unary_unary(loopback.channel())
    await unary_stream(loopback.channel())
    with pytest.raises(UnauthenticatedError):
        await unary_unary(loopback.channel(token=""))
    loopback.scheduler.endless = True
    call = scheduler_pb2_grpc.SchedulerServiceStub(loopback.channel()).TailLogs(scheduler_pb2.TailLogsRequest())
    loopback.scheduler.left.clear()
    await call.read()
    assert _sample("cloudclaw_rpc_running", method="TailLogs") == 1
    call.cancel()
    await asyncio.wait_for(loopback.scheduler.left.wait(), 20)
    await eventually("the call is counted", lambda: not _sample("cloudclaw_rpc_running", method="TailLogs"), 20)
    for key in (("GetTask", "OK"), ("TailLogs", "OK"), ("GetTask", "UNAUTHENTICATED"), ("TailLogs", "CANCELLED")):
        assert handled(*key) == before[key] + 1, key


async def test_metrics_are_served_over_http() -> None:
    # Port 0 cannot be told from outside, so this one is chosen first.
    import socket

    with closing(socket.create_server(("127.0.0.1", 0))) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
    stop = serve_metrics(MetricsSettings(listen=address))
    try:
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://{address}/metrics").read())
        with pytest.raises(UnavailableError, match=address):
            serve_metrics(MetricsSettings(listen=address))
    finally:
        stop()
    assert b"cloudclaw_rpc_handled_total" in page
    serve_metrics(MetricsSettings())()


async def test_streams_in_both_directions_go_on_while_both_want(loopback: Loopback) -> None:
    call: Any = scheduler_pb2_grpc.SchedulerServiceStub(loopback.channel()).StreamLogs()
    for i in range(5):
        await call.write(scheduler_pb2.StreamLogsRequest(uid=str(i)))
        assert (await call.read()).uid == str(i)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


class BrokenSourceError(Exception):
    """What the requests themselves raised."""


@pytest.mark.parametrize("kind", ["upload", "both"])
async def test_an_error_of_the_requests_is_the_calls_error(loopback: Loopback, kind: str) -> None:
    async def requests() -> AsyncIterator[Any]:
        yield workspace_pb2.WriteFilesRequest() if kind == "upload" else scheduler_pb2.StreamLogsRequest()
        raise BrokenSourceError

    channel = loopback.channel()
    with pytest.raises(BrokenSourceError):
        if kind == "upload":
            await workspace_pb2_grpc.WorkspaceServiceStub(channel).WriteFiles(requests())
        else:
            async for _ in scheduler_pb2_grpc.SchedulerServiceStub(channel).StreamLogs(requests()):
                pass
    if kind == "upload":
        assert await asyncio.wait_for(loopback.workspaces.ended, 20) != "whole"


async def test_requests_are_let_go_when_their_call_ends_first(loopback: Loopback) -> None:
    closed = asyncio.Event()

    async def requests() -> AsyncIterator[workspace_pb2.WriteFilesRequest]:
        try:
            yield workspace_pb2.WriteFilesRequest()
            await asyncio.Event().wait()
        finally:
            closed.set()

    def fail() -> None:
        raise InvalidArgumentError("no", field="f")

    loopback.workspaces.fail = fail
    with pytest.raises(InvalidArgumentError):
        await workspace_pb2_grpc.WorkspaceServiceStub(loopback.channel()).WriteFiles(requests())
    await asyncio.wait_for(closed.wait(), 20)
