"""Servicers with one method of each of the four kinds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog

from cloudclaw.rpc.auth import caller
from cloudclaw.v1 import scheduler_pb2, scheduler_pb2_grpc, workspace_pb2, workspace_pb2_grpc

SCHEDULER = "cloudclaw.v1.SchedulerService"
WORKSPACE = "cloudclaw.v1.WorkspaceService"

# The stubs' types call every method abstract; what a servicer leaves out is UNIMPLEMENTED.
_SchedulerBase: Any = scheduler_pb2_grpc.SchedulerServiceServicer
_WorkspaceBase: Any = workspace_pb2_grpc.WorkspaceServiceServicer


class Seen:
    """What servicers saw of a call's context."""

    def __init__(self) -> None:
        self.tenants: list[str] = []
        self.bound: list[dict[str, Any]] = []

    def note(self) -> None:
        self.tenants.append(caller().tenant)
        self.bound.append(dict(structlog.contextvars.get_contextvars()))


class Scheduler(_SchedulerBase):  # type: ignore[misc]
    """GetTask (unary, unary), TailLogs (unary, stream) and StreamLogs (stream, stream)."""

    def __init__(self) -> None:
        self.seen = Seen()
        self.fail: Callable[[], None] = lambda: None
        """Called once in each method, after its first response where it streams."""
        self.started = asyncio.Event()
        self.left = asyncio.Event()
        """A streaming call's handler has ended, however."""
        self.endless = False

    async def GetTask(self, request: scheduler_pb2.GetTaskRequest, context: Any) -> scheduler_pb2.GetTaskResponse:
        self.seen.note()
        self.fail()
        response = scheduler_pb2.GetTaskResponse()
        response.task.task_id = request.task_id
        return response

    async def TailLogs(
        self, request: scheduler_pb2.TailLogsRequest, context: Any
    ) -> AsyncIterator[scheduler_pb2.TailLogsResponse]:
        self.seen.note()
        try:
            yield scheduler_pb2.TailLogsResponse(durable_offset=request.offset)
            self.seen.note()
            self.fail()
            self.started.set()
            while self.endless:
                yield scheduler_pb2.TailLogsResponse()
                await asyncio.sleep(0)
            yield scheduler_pb2.TailLogsResponse(durable_offset=request.offset + 1)
        finally:
            self.left.set()

    async def StreamLogs(
        self, request_iterator: AsyncIterator[scheduler_pb2.StreamLogsRequest], context: Any
    ) -> AsyncIterator[scheduler_pb2.StreamLogsResponse]:
        self.seen.note()
        try:
            async for request in request_iterator:
                self.started.set()
                yield scheduler_pb2.StreamLogsResponse(uid=request.uid)
                self.fail()
        finally:
            self.left.set()

    async def ListTasks(self, request: scheduler_pb2.ListTasksRequest, context: Any) -> scheduler_pb2.ListTasksResponse:
        """Never answers."""
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()
        raise AssertionError("unreachable")


class Workspaces(_WorkspaceBase):  # type: ignore[misc]
    """WriteFiles (stream, unary)."""

    def __init__(self) -> None:
        self.seen = Seen()
        self.fail: Callable[[], None] = lambda: None
        self.received: list[str] = []
        self.first = asyncio.Event()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """How the request stream ended: `whole`, or the error's name."""

    async def WriteFiles(
        self, request_iterator: AsyncIterator[workspace_pb2.WriteFilesRequest], context: Any
    ) -> workspace_pb2.WriteFilesResponse:
        self.seen.note()
        self.fail()
        try:
            async for request in request_iterator:
                self.received.append(request.remove)
                self.first.set()
        except BaseException as error:
            self.ended.set_result(type(error).__name__)
            raise
        self.ended.set_result("whole")
        response = workspace_pb2.WriteFilesResponse()
        response.snapshot.snapshot_id = f"{len(self.received)}"
        return response
