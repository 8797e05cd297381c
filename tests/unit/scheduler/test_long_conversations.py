"""Conversations with more attempts than a task's record has room for."""

from __future__ import annotations

import pytest_asyncio

from cloudclaw.coordination import keys
from cloudclaw.coordination.records import MAX_TASK_BYTES, encode
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_workspace.adapters.census import CoordinationCensus
from tests.unit.scheduler.history_rig import archive
from tests.unit.scheduler.plane import Plane
from tests.unit.scheduler.talking import COMMITTED, Host, Talker

TURNS = 130
WORD = b"spoken\n"


@pytest_asyncio.fixture
async def task(plane: Plane) -> str:
    """It parked so often, and ended."""
    host, talker = Host(plane), Talker(plane)
    await host.connect()
    task = await talker.talk()
    for turn in range(TURNS):
        attempt = await host.next()
        assert attempt.log_limit == (256 << 20) - turn * len(WORD)
        await host.write(attempt, 0, WORD, end=True)
        assert await host.park(attempt, f"c-{turn}", inputs=turn, log_end=len(WORD)) == COMMITTED
        await talker.say(task, f"m{turn}", end=turn == TURNS - 1, text="go on" if turn < TURNS - 1 else "")
    await host.finish(await host.next(), inputs=TURNS - 1)
    return task


async def events_of(talker: Talker, task: str, first: int = 0) -> list[pb.RunEvent]:
    request = pb.WatchEventsRequest(task_id=task, from_sequence=first)
    return [response.event async for response in talker.stub.WatchEvents(request)]


async def test_every_attempt_and_its_log_can_be_found_before_and_after_archiving(plane: Plane, task: str) -> None:
    talker = Talker(plane)
    stored = await plane.transactions.get_task("acme", task)
    assert stored is not None
    assert len(encode(stored.record)) <= MAX_TASK_BYTES
    assert stored.record.earlier > 0
    assert len(stored.record.attempts) + stored.record.earlier == TURNS + 1
    before = await talker.get(task)
    assert [attempt.number for attempt in before.attempts] == list(range(1, TURNS + 2))
    assert all(attempt.reason == task_pb2.END_REASON_PARKED for attempt in before.attempts[:-1])
    result = await talker.result(task)
    assert len(result.attempts) == TURNS + 1
    log = await talker.log(task)
    assert log == WORD * TURNS
    events = await events_of(talker, task)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [event.attempt for event in events] == list(range(1, TURNS + 2))
    assert await events_of(talker, task, 70) == events[69:]
    assert await talker.log(task, attempt=2) == WORD

    await archive(plane)
    assert (await plane.kv.range(keys.EARLIER)).entries == []
    after = await talker.get(task)
    assert (after.archived, list(after.attempts)) == (True, list(before.attempts))
    assert await talker.log(task) == log
    assert await events_of(talker, task) == events
    assert len((await talker.result(task)).attempts) == TURNS + 1


async def test_a_new_replica_knows_them_all(plane: Plane, task: str) -> None:
    await plane.stop()
    await plane.start()
    assert len((await Talker(plane).get(task)).attempts) == TURNS + 1


async def test_garbage_collection_knows_their_logs(plane: Plane, task: str) -> None:
    shown = await Talker(plane).get(task)
    survey = await CoordinationCensus(plane.kv, plane.clock).survey("acme", outputs=True)
    assert all(survey.outputs.log(attempt.uid) for attempt in shown.attempts)
