"""What many finished tasks leave in etcd once they are archived, and how long they take to find.

Records as a finished task has them are written to a real etcd; then a scheduler of this process, over files, archives
them all with no retention; etcd is compacted, as it does by itself every few minutes, and then defragmented.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from etcd3aio._protobuf import CompactionRequest, DefragmentRequest, KVStub, MaintenanceStub, StatusRequest
from grpc import aio

from cloudclaw import logging
from cloudclaw.config import LogSettings
from cloudclaw.coordination import keys
from cloudclaw.coordination.port import KeyValue, Put
from cloudclaw.coordination.records import (
    AttemptEnd,
    AttemptState,
    EndReason,
    Plan,
    RequestRecord,
    TaskRecord,
    TaskState,
    Transition,
    encode,
)
from cloudclaw.errors import NotFoundError, UnavailableError
from cloudclaw.objects.filesystem import FilesystemObjects
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_scheduler.config import HistorySettings
from tests.bench.report import Row, percentile
from tests.support.etcd_server import EtcdServer
from tests.unit.scheduler.plane import Plane, User, until

TENANT = "bench"
BUDGET_MIB = 64.0
SAMPLES = 1000
PAGES = 300
AT_ONCE = 8
LONGEST = 60.0
"""Seconds that a task took."""
WITHIN = 600.0
SHARE_WITH_REQUEST = 0.1
"""Of the tasks, with a request id; those stay in etcd for a day."""
_TASKS_A_TRANSACTION = 40
_QUOTA = 2 << 30
_MIB = 1024.0 * 1024.0


async def measure(directory: Path, tasks: int) -> list[Row]:
    """Rows for etcd's size, the bundles' and the latencies of reads."""
    logging.configure(LogSettings(level="error"), service="bench")
    gc.set_threshold(50_000, 20, 100)  # as the scheduler's process does
    async with EtcdServer(quota_bytes=_QUOTA) as etcd:
        kv = etcd.open()
        ids = await _finish(kv, tasks)
        full = await _size(etcd)
        objects = FilesystemObjects(directory / "objects")
        settings = HistorySettings(retention=0.0, batch_window=0.0)
        plane = Plane(kv, objects, directory, history=settings)
        started = time.perf_counter()
        await plane.start(leads=False)
        await until("it leads", lambda: plane.scheduler.leader.term is not None, WITHIN)
        loaded = time.perf_counter() - started
        async with _lag() as lags:
            await until("all are archived", lambda: not plane.scheduler.mirror.state.tenants, WITHIN)
        taken = time.perf_counter() - started - loaded
        await _compact(etcd, (await kv.range(keys.NODES)).revision)
        compacted = await _size(etcd)
        await _defragment(etcd)
        small = await _size(etcd)
        stored = [info.size async for info in objects.list("history/")]
        user = User(plane, TENANT)
        # As after a restart: names, preambles and indexes are read from the store.
        first = await _timed(lambda: user.get(ids[0]))
        gets = [await _timed(lambda task=task: user.get(task)) for task in random.Random(1).choices(ids, k=SAMPLES)]  # type: ignore[misc]
        missing = await _timed(lambda: _missing(user))
        lists = await _pages(user)
        await plane.stop()
        await kv.close()
    bundles = sum(stored)
    return [
        Row(
            f"etcd in use with {tasks:,} finished tasks archived", compacted.in_use / _MIB, "MiB", budget=BUDGET_MIB,
            note=f"before: {full.in_use / _MIB:.0f} MiB in use; by {len(stored)} bundles in {taken:.0f} s,"
            f" {tasks / taken:.0f} tasks/s, after {loaded:.0f} s of loading them",
        ),
        Row(
            "etcd's file, defragmented", small.file / _MIB, "MiB",
            note=f"before: {full.file / _MIB:.0f}, compacted only: {compacted.file / _MIB:.0f} MiB",
        ),
        Row("bundles", bundles / _MIB, "MiB", note=f"{bundles / tasks:.0f} bytes a task"),
        Row("event loop's delay while archiving, p99", percentile(lags, 0.99), "ms", note=f"most {max(lags):.0f} ms"),
        Row(
            "get an archived task by id, p50", percentile(gets, 0.5), "ms",
            note=f"the first, with nothing in memory: {first:.0f} ms; one that never was: {missing:.1f} ms",
        ),
        Row("get an archived task by id, p99", percentile(gets, 0.99), "ms"),
        Row("a page of 100 archived tasks, p50", percentile(lists, 0.5), "ms"),
        Row("a page of 100 archived tasks, p99", percentile(lists, 0.99), "ms"),
    ]  # fmt: skip


async def _finish(kv: KeyValue, count: int) -> list[str]:
    """Write `count` tasks as they are when they have succeeded; answers their ids."""
    chance = random.Random(0)
    alphabet = "0123456789abcdefghjkmnpqrstvwxyz"
    ids = ["task-" + "".join(chance.choices(alphabet, k=16)) for _ in range(count)]
    now = time.time() - count / 100 - LONGEST - 1  # a hundred a second, and all of them are over
    turns = asyncio.Semaphore(AT_ONCE)

    async def write(first: int) -> None:
        puts: list[Put] = []
        for number in range(first, min(count, first + _TASKS_A_TRANSACTION)):
            record = _record(ids[number], round(now + number / 100, 3), chance)
            spec = task_pb2.TaskSpec(argv=["sh", "-c", f"make target-{number}"], labels=record.plan.labels)
            puts += [
                Put(keys.task(TENANT, record.task), encode(record)),
                Put(keys.spec(TENANT, record.task), spec.SerializeToString()),
            ]
            if record.request:
                request = RequestRecord(task=record.task, digest="0" * 64)
                puts.append(Put(keys.request(TENANT, record.request), encode(request)))
        async with turns:
            await _put(kv, puts)

    for block in range(0, count, 50_000):
        async with asyncio.TaskGroup() as group:
            for first in range(block, min(count, block + 50_000), _TASKS_A_TRANSACTION):
                group.create_task(write(first))
    return ids


async def _put(kv: KeyValue, puts: list[Put]) -> None:
    """Write them, again until etcd answered: the disk may be busy."""
    while True:
        try:
            await kv.txn([], puts)
            return
        except UnavailableError as error:
            print(f"bench: {error.message}", flush=True)


def _record(task: str, created: float, chance: random.Random) -> TaskRecord:
    uid = f"att-{chance.randrange(1 << 60):x}"
    started, ended = created + 0.05, round(created + chance.uniform(0.1, LONGEST), 3)
    result = task_pb2.Result(final_message=f"built {task} in {ended - started:.3f} s", session_id=uid)
    result.timings.started.FromMicroseconds(round(started * 1e6))
    result.timings.ended.FromMicroseconds(round(ended * 1e6))
    end = AttemptEnd(
        number=1, uid=uid, node=f"node-{chance.randrange(20)}", token=chance.randrange(1 << 30),
        state=AttemptState.SUCCEEDED, reason=EndReason.COMPLETED, exit_code=0, started=started, ended=ended,
        log_end=chance.randrange(100_000),
    )  # fmt: skip
    return TaskRecord(
        tenant=TENANT,
        task=task,
        plan=Plan(labels={"team": f"team-{chance.randrange(50)}", "build": str(chance.randrange(10**6))}),
        created=created,
        updated=ended,
        queued=created,
        op_id=f"op-{chance.randrange(1 << 60):x}",
        state=TaskState.SUCCEEDED,
        attempt=1,
        attempts=(end,),
        events=(
            Transition(time=created, state=TaskState.QUEUED),
            Transition(time=started, state=TaskState.RUNNING, attempt=1, node=end.node),
            Transition(time=ended, state=TaskState.SUCCEEDED, attempt=1, node=end.node, reason=EndReason.COMPLETED),
        ),
        result=base64.b64encode(result.SerializeToString()).decode(),
        request=f"request-{task}" if chance.random() < SHARE_WITH_REQUEST else "",
    )


async def _pages(user: User) -> list[float]:
    """The times of consecutive pages, from the newest on."""
    taken: list[float] = []
    token = ""

    async def page() -> None:
        nonlocal token
        answer = await user.stub.ListTasks(pb.ListTasksRequest(page_size=100, page_token=token))
        assert answer.tasks
        token = answer.next_page_token

    for _ in range(PAGES):
        taken.append(await _timed(page))
        if not token:
            break
    return taken


async def _missing(user: User) -> None:
    with contextlib.suppress(NotFoundError):
        await user.get("task-0000000000000000")


async def _timed(call: Callable[[], Awaitable[object]]) -> float:
    start = time.perf_counter()
    await call()
    return (time.perf_counter() - start) * 1000


@contextlib.asynccontextmanager
async def _lag() -> AsyncIterator[list[float]]:
    """How much later than asked for the loop came back, in milliseconds."""
    lags: list[float] = []

    async def sample() -> None:
        while True:
            lags.append(max(0.0, await _timed(lambda: asyncio.sleep(0.005)) - 5.0))

    sampling = asyncio.create_task(sample())
    try:
        yield lags
    finally:
        sampling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sampling


@dataclass(frozen=True)
class _Size:
    file: int
    in_use: int


async def _size(etcd: EtcdServer) -> _Size:
    async with aio.insecure_channel(etcd.endpoint) as channel:
        status = await MaintenanceStub(channel).Status(StatusRequest(), timeout=30)
    return _Size(int(status.dbSize), int(status.dbSizeInUse))


async def _compact(etcd: EtcdServer, revision: int) -> None:
    async with aio.insecure_channel(etcd.endpoint) as channel:
        await KVStub(channel).Compact(CompactionRequest(revision=revision, physical=True), timeout=180)


async def _defragment(etcd: EtcdServer) -> None:
    async with aio.insecure_channel(etcd.endpoint) as channel:
        await MaintenanceStub(channel).Defragment(DefragmentRequest(), timeout=120)
