"""The log hub by itself."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry

from cloudclaw.clock import SystemClock
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.v1 import task_pb2
from cloudclaw.v1.scheduler_pb2 import StreamLogsRequest, StreamLogsResponse
from cloudclaw_scheduler.app.attempt_log import KEPT, AttemptLog
from cloudclaw_scheduler.app.logs import LogHub
from cloudclaw_scheduler.app.metrics import Metrics
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.outbox import LIMIT, Outbox
from cloudclaw_scheduler.app.segments import Segments
from cloudclaw_scheduler.app.spawner import Spawner
from cloudclaw_scheduler.domain.logs import Frame
from tests.unit.scheduler.failing import FailingObjects
from tests.unit.scheduler.plane import until


def chunk(offset: int, data: bytes, *, uid: str = "u", end: bool = False) -> StreamLogsRequest:
    log = task_pb2.LogChunk(attempt=1, offset=offset, data=data, stream=task_pb2.LOG_STREAM_STDOUT)
    return StreamLogsRequest(tenant="t", task_id="task-a", uid=uid, token=1, chunk=log, end=end)


async def hub_in(group: asyncio.TaskGroup, objects: FailingObjects) -> LogHub:
    clock = SystemClock()
    mirror = Mirror(MemoryKeyValue(clock), clock)
    mirror.state.revision = 100
    return LogHub(mirror, Segments(objects), Spawner(group), clock, Metrics(CollectorRegistry()), 7)


async def test_small_writes_share_a_segment_and_the_end_flushes_at_once() -> None:
    objects = FailingObjects()
    async with asyncio.TaskGroup() as group:
        hub = await hub_in(group, objects)
        sink: Outbox[StreamLogsResponse] = Outbox()
        hub.expect("t", "task-a", "u", 1)
        for index in range(100):
            await hub.receive(chunk(index, b"x"), sink)
        await hub.receive(chunk(100, b"", end=True), sink)
        assert await hub.reached("t", "u", 100, 5)
    assert len(objects.puts) == 1
    assert hub.pending == 0


async def test_what_was_missed_is_closed_and_what_is_new_is_kept() -> None:
    async with asyncio.TaskGroup() as group:
        hub = await hub_in(group, FailingObjects())
        hub.expect("t", "task-a", "gone", 5)
        hub.expect("t", "task-b", "there", 6)
        hub.expect("t", "task-c", "newer than the mirror", 101)
        with hub.listen("gone") as woken:
            hub.retain({"there"})
            assert woken.is_set()
        assert hub.get("gone") is None
        assert hub.get("there")
        assert hub.get("newer than the mirror")


async def test_holding_a_log_fixes_its_end_and_releasing_goes_on() -> None:
    async with asyncio.TaskGroup() as group:
        hub = await hub_in(group, FailingObjects())
        sink: Outbox[StreamLogsResponse] = Outbox()
        hub.expect("t", "task-a", "u", 1)
        await hub.receive(chunk(0, b"abc"), sink)
        assert await hub.hold("t", "u") == 3
        await hub.receive(chunk(3, b"def"), sink)
        log = hub.get("u")
        assert log is not None
        assert log.end == 3
        hub.release("u")
        await hub.receive(chunk(3, b"def", end=True), sink)
        assert await hub.reached("t", "u", 6, 5)
        sink.close()
        assert any(answer.resend_from == 3 for answer in [a async for a in sink] if answer.HasField("resend_from"))


async def test_a_held_log_does_not_wait_for_ever_for_the_store() -> None:
    objects = FailingObjects()
    async with asyncio.TaskGroup() as group:
        hub = await hub_in(group, objects)
        sink: Outbox[StreamLogsResponse] = Outbox()
        hub.expect("t", "task-a", "u", 1)
        await hub.receive(chunk(0, b"abc", end=True), sink)
        assert await hub.reached("t", "u", 3, 5)
        objects.away = True
        await hub.receive(chunk(3, b"def"), sink)
        assert await hub.hold("t", "u") == 3
        hub.close("u")


async def test_an_unknown_logs_end_is_read_from_the_store() -> None:
    objects = FailingObjects()
    async with asyncio.TaskGroup() as group:
        hub = await hub_in(group, objects)
        await Segments(objects).write("t", "u", [Frame(0, 1, 0, b"abc")])
        await Segments(objects).write("t", "u", [Frame(2, 1, 0, b"cdef")])
        objects.away = True
        holding = asyncio.create_task(hub.hold("t", "u"))
        await asyncio.sleep(0)
        assert not holding.done()
        objects.away = False
        assert await holding == 6
        assert await hub.reached("t", "u", 6, 5)
        assert not await hub.reached("t", "u", 7, 0.05)


def test_the_window_keeps_what_is_not_durable_and_little_else() -> None:
    log = AttemptLog("t", "task-a", "u", 1, 0)
    piece = b"x" * 65536
    for index in range(64):
        log.append(Frame(index * len(piece), 1, 0, piece))
    assert log.base == 0
    assert log.read(0, 10) == [Frame(0, 1, 0, piece)]
    log.stored(log.end)
    assert log.end - log.base <= KEPT
    assert log.read(log.base - 1, 10) is None
    tail = log.read(log.base + 5, 1 << 30)
    assert tail is not None
    assert (tail[0].offset, tail[-1].end) == (log.base + 5, log.end)


async def test_a_node_that_does_not_read_loses_its_stream_not_our_memory() -> None:
    outbox: Outbox[int] = Outbox()
    for index in range(LIMIT + 10):
        outbox.put(index)
    assert outbox.closed
    await until("it was closed", lambda: outbox.closed)
