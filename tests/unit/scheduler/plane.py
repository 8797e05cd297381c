"""A scheduler in this process, with nodes that the test plays, over real gRPC on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from prometheus_client import CollectorRegistry

from cloudclaw.clock import Clock, SystemClock
from cloudclaw.config import AuthSettings, ServerSettings
from cloudclaw.coordination.port import KeyValue
from cloudclaw.coordination.transactions import Transactions
from cloudclaw.lifecycle import Stack
from cloudclaw.objects.port import ObjectStore
from cloudclaw.rpc.auth import Minter
from cloudclaw.rpc.channel import open_channel
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw.v1.scheduler_pb2_grpc import SchedulerServiceStub
from cloudclaw_scheduler.__main__ import Scheduler, run
from cloudclaw_scheduler.config import SchedulerSettings

if TYPE_CHECKING:
    from cloudclaw.v1.scheduler_pb2_grpc import SchedulerServiceAsyncStub

DEADLINE = 15.0
T = TypeVar("T")


async def until(what: str, holds: Callable[[], bool | Awaitable[bool]], deadline: float = DEADLINE) -> None:
    """Return as soon as `holds`; fail after `deadline` seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    while True:
        value = holds()
        if not isinstance(value, bool):
            value = await value
        if value:
            return
        assert loop.time() < end, f"not within {deadline} s: {what}"
        await asyncio.sleep(0.005)


async def soon(awaitable: Awaitable[T], deadline: float = DEADLINE) -> T:
    """The result, or a failure after `deadline` seconds."""
    async with asyncio.timeout(deadline):
        return await awaitable


class JumpingClock(SystemClock):
    """The machine's, but that its wall clock can be set forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def wall(self) -> float:
        return super().wall() + self.ahead


class Plane:
    """One replica of the scheduler, and those who call it."""

    def __init__(self, kv: KeyValue, objects: ObjectStore, folder: Path, clock: Clock | None = None, **settings: Any):
        self.kv = kv
        self.objects = objects
        self.clock = clock or JumpingClock()
        self.transactions = Transactions(kv)
        self._key = folder / "dev.key"
        if not self._key.exists():
            self._key.write_bytes(b"k" * 64)
        self._settings = SchedulerSettings(
            auth=AuthSettings(keys=[self._key]),
            server=ServerSettings(listen="127.0.0.1:0"),
            drain_timeout=0.2,
            **settings,
        )
        self._minter = Minter(self._key)
        self._channels: list[grpc.aio.Channel] = []
        self._work: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self.scheduler: Scheduler
        self.address = ""

    async def start(self, *, leads: bool = True) -> None:
        """Start a replica; wait until it leads."""
        self._stop = asyncio.Event()
        registry = CollectorRegistry()
        self.scheduler = Scheduler(self._settings, self.kv, self.objects, self.clock, registry)
        self._work = asyncio.create_task(self._run(self.scheduler))
        await until("it listens", lambda: bool(self.address))
        if leads:
            await until("it leads", lambda: self.scheduler.leader.term is not None)

    async def _run(self, scheduler: Scheduler) -> None:
        async with Stack() as stack:
            start = scheduler.server.start

            async def bound() -> str:
                self.address = await start()
                return self.address

            scheduler.server.start = bound  # type: ignore[method-assign]
            await run(scheduler, self._settings, self._stop, stack)

    def jump(self, seconds: float) -> None:
        """What is due within `seconds` is due now; the leader sees it at its next look at the clock."""
        assert isinstance(self.clock, JumpingClock)
        self.clock.ahead += seconds

    async def stop(self) -> None:
        """Stop the replica in order."""
        for channel in self._channels:
            await channel.close()
        self._channels.clear()
        self._stop.set()
        if self._work is not None:
            await soon(self._work)
        self.address = ""

    def stub(self, tenant: str = "acme", roles: tuple[str, ...] = ("user",)) -> SchedulerServiceAsyncStub:
        """A client of the replica."""
        channel = open_channel(self.address, None, self._minter.mint(tenant, roles))
        self._channels.append(channel)
        return SchedulerServiceStub(channel)


class User:
    """A tenant's client, with short forms."""

    def __init__(self, plane: Plane, tenant: str = "acme") -> None:
        self.stub = plane.stub(tenant)

    async def submit(self, *argv: str, request_id: str = "", **spec: Any) -> str:
        spec.setdefault("retry", task_pb2.RetryPolicy(initial_backoff=duration(0.01)))
        whole = task_pb2.TaskSpec(argv=argv or ("true",), **spec)
        done = await self.stub.SubmitTask(pb.SubmitTaskRequest(spec=whole, request_id=request_id))
        return done.task.task_id

    async def get(self, task: str) -> task_pb2.Task:
        return (await self.stub.GetTask(pb.GetTaskRequest(task_id=task))).task

    async def result(self, task: str) -> task_pb2.Result:
        return (await self.stub.GetResult(pb.GetResultRequest(task_id=task))).result

    async def cancel(self, task: str) -> task_pb2.Task:
        return (await self.stub.CancelTask(pb.CancelTaskRequest(task_id=task))).task

    async def wait(self, task: str, *states: int) -> task_pb2.Task:
        """The task once it is in one of `states`, by default ended."""
        wanted = states or (
            task_pb2.TASK_STATE_SUCCEEDED,
            task_pb2.TASK_STATE_FAILED,
            task_pb2.TASK_STATE_CANCELED,
        )
        async with asyncio.timeout(DEADLINE):
            request = pb.WatchTasksRequest(task_id=task, after_revision=1)
            now = await self.get(task)
            if now.state in wanted:
                return now
            request.after_revision = now.revision
            async for change in self.stub.WatchTasks(request):
                if change.task.state in wanted:
                    return await self.get(task)
        raise AssertionError("the watch ended")

    def tail(
        self, task: str, attempt: int = 0, offset: int = 0, follow: bool = True
    ) -> grpc.aio.UnaryStreamCall[pb.TailLogsRequest, pb.TailLogsResponse]:
        request = pb.TailLogsRequest(task_id=task, attempt=attempt, offset=offset, follow=follow)
        return self.stub.TailLogs(request)

    async def log(self, task: str, attempt: int = 0, offset: int = 0, follow: bool = False) -> bytes:
        parts = [r.chunk.data async for r in self.tail(task, attempt, offset, follow)]
        return b"".join(parts)


def duration(seconds: float) -> Any:
    """A protobuf duration."""
    from google.protobuf.duration_pb2 import Duration

    value = Duration()
    value.FromMilliseconds(round(seconds * 1000))
    return value
