"""Conversations, when two things happen at once: nothing accepted is lost, answered twice, or refused for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from cloudclaw.clock import SystemClock
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.errors import PreconditionError, UnavailableError
from cloudclaw.v1 import task_pb2
from tests.support.kv import FaultyKeyValue
from tests.unit.scheduler.failing import FailingObjects
from tests.unit.scheduler.plane import Plane, duration, soon, until
from tests.unit.scheduler.talking import COMMITTED, Host, Talker, parked, texts

SUCCEEDED, CANCELED = task_pb2.TASK_STATE_SUCCEEDED, task_pb2.TASK_STATE_CANCELED


@pytest_asyncio.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    plane = Plane(FaultyKeyValue(MemoryKeyValue(SystemClock())), FailingObjects(), tmp_path)
    await plane.start()
    yield plane
    await plane.stop()


async def test_an_input_in_the_moment_of_parking_sends_the_task_on(
    kv: FaultyKeyValue, host: Host, talker: Talker
) -> None:
    task = await talker.talk()
    first = await host.next()

    async def meanwhile() -> None:
        await talker.say(task, "m1")

    kv.before_txn = meanwhile
    assert await host.park(first, "c-1") == COMMITTED
    second = await host.next()
    assert (second.base.snapshot_id, texts(second.inputs)) == ("c-1", [(1, "m1")])


async def test_an_input_in_the_moment_of_idling_keeps_the_conversation_open(
    plane: Plane, kv: FaultyKeyValue, host: Host, talker: Talker
) -> None:
    task = await parked(host, talker, idle=3600)

    async def meanwhile() -> None:
        await talker.say(task, "m1")

    kv.before_txn = meanwhile
    plane.jump(3600)
    second = await host.next()
    assert (texts(second.inputs), second.closing) == ([(1, "m1")], False)
    assert not (await talker.get(task)).closing


async def test_after_idling_no_input_is_taken(plane: Plane, host: Host, talker: Talker) -> None:
    task = await parked(host, talker, idle=3600)
    plane.jump(3600)
    second = await host.next()
    with pytest.raises(PreconditionError) as refused:
        await talker.say(task, "m1")
    assert refused.value.reason == "CONVERSATION_CLOSED"
    await host.finish(second)
    assert (await talker.get(task)).state == SUCCEEDED


async def test_a_cancel_in_the_moment_of_an_input_wins(kv: FaultyKeyValue, host: Host, talker: Talker) -> None:
    task = await parked(host, talker)

    async def meanwhile() -> None:
        await talker.say(task, "m1")

    kv.before_txn = meanwhile
    host.draining = True  # so that the task stays queued
    await host.heard(2)
    assert (await talker.cancel(task)).state == CANCELED


async def test_an_input_in_the_moment_of_a_cancel_is_refused(kv: FaultyKeyValue, host: Host, talker: Talker) -> None:
    task = await parked(host, talker)

    async def meanwhile() -> None:
        await talker.cancel(task)

    kv.before_txn = meanwhile
    with pytest.raises(PreconditionError) as refused:
        await talker.say(task, "m1")
    assert refused.value.reason == "TASK_ENDED"


async def test_an_input_in_the_moment_of_a_success_is_answered_by_another_attempt(
    kv: FaultyKeyValue, host: Host, talker: Talker
) -> None:
    task = await talker.talk()
    first = await host.next()

    async def meanwhile() -> None:
        await talker.say(task, "m1")

    kv.before_txn = meanwhile
    snapshot = task_pb2.SnapshotRef(snapshot_id="c-1", manifest_digest="d")
    assert await host.finish(first, snapshot=snapshot) == COMMITTED
    second = await host.next()
    assert (second.base.snapshot_id, texts(second.inputs)) == ("c-1", [(1, "m1")])
    await host.finish(second, inputs=1)
    assert (await talker.get(task)).state == SUCCEEDED


@pytest.mark.parametrize("applied", [True, False])
async def test_a_message_whose_answer_was_lost_can_be_sent_again(
    kv: FaultyKeyValue, host: Host, talker: Talker, applied: bool
) -> None:
    task = await talker.talk()
    await host.next()
    kv.fail_next("txn", applied=applied, then="get")
    with pytest.raises(UnavailableError):
        await talker.say(task, "m1")
    again = await talker.say(task, "m1")
    assert (again.accepted, again.number) == (not applied, 1)
    assert texts((await host.given()).inputs) == [(1, "m1")]


async def test_a_message_whose_answer_was_lost_is_read_back(kv: FaultyKeyValue, host: Host, talker: Talker) -> None:
    task = await talker.talk()
    await host.next()
    kv.fail_next("txn", applied=True)
    answer = await talker.say(task, "m1")
    assert (answer.accepted, answer.number) == (True, 1)


async def test_one_message_on_two_replicas_at_once_is_one(
    plane: Plane, host: Host, talker: Talker, another: Callable[[], Plane]
) -> None:
    other = another()
    await other.start(leads=False)
    task = await talker.talk()
    await host.next()
    talkers = [talker, Talker(other)]
    answers = await asyncio.gather(*(talkers[n % 2].say(task, "m1", "hi") for n in range(10)))
    assert sorted(answer.accepted for answer in answers) == [False] * 9 + [True]
    assert {answer.number for answer in answers} == {1}


async def test_many_messages_on_two_replicas_are_numbered_without_gaps(
    plane: Plane, host: Host, talker: Talker, another: Callable[[], Plane]
) -> None:
    other = another()
    await other.start(leads=False)
    task = await talker.talk()
    await host.next()
    talkers = [talker, Talker(other)]
    answers = await asyncio.gather(*(talkers[n % 2].say(task, f"m{n}") for n in range(40)))
    assert all(answer.accepted for answer in answers)
    assert sorted(answer.number for answer in answers) == list(range(1, 41))
    told: list[int] = []
    while len(told) < 40:
        told += [given.number for given in (await host.given()).inputs]
    assert told == list(range(1, 41))


async def test_a_leader_that_dies_between_the_input_and_its_delivery_loses_nothing(
    plane: Plane, host: Host, talker: Talker, another: Callable[[], Plane]
) -> None:
    follower = another()
    await follower.start(leads=False)
    await until("it has loaded", follower.scheduler.mirror.loaded.is_set)
    task = await talker.talk()
    await host.next()
    await host.disconnect()  # so nothing can be delivered
    await Talker(follower).say(task, "m1")
    await plane.stop()
    await until("the follower leads", lambda: follower.scheduler.leader.term is not None)
    host.plane = follower
    await host.connect()
    assert texts((await host.given()).inputs) == [(1, "m1")]


async def test_a_new_leader_wakes_what_the_old_one_parked(plane: Plane, host: Host, talker: Talker) -> None:
    task = await talker.talk(idle=3600)
    await host.park(await host.next(), "c-1")
    await talker.parked(task)
    await host.disconnect()
    await plane.stop()
    await plane.start()
    await host.connect()
    plane.jump(3600)
    second = await host.next()
    assert (second.task_id, second.closing) == (task, True)


async def test_a_new_leader_delivers_what_is_due_while_it_runs(plane: Plane, host: Host, talker: Talker) -> None:
    task = await talker.talk()
    await host.next()
    await talker.say(task, "later", delay=3600)
    await host.disconnect()
    await plane.stop()
    await plane.start()
    await host.connect()
    plane.jump(3600)
    assert texts((await host.given()).inputs) == [(1, "later")]


async def test_a_repeated_park_report_is_answered_as_before(plane: Plane, host: Host, talker: Talker) -> None:
    task = await talker.talk()
    first = await host.next()
    assert await host.park(first, "c-1") == COMMITTED
    await talker.parked(task)
    await talker.say(task, "m1")
    second = await host.next()
    host.take(first)
    assert await host.park(first, "c-1") == COMMITTED
    assert (await talker.get(task)).attempts[-1].uid == second.uid


async def test_inputs_that_cannot_be_read_wait_for_the_store(plane: Plane, host: Host, talker: Talker) -> None:
    assert isinstance(plane.objects, FailingObjects)
    task = await parked(host, talker)
    host.draining = True
    await host.heard(2)
    await talker.say(task, "m1", "x" * 10_000)
    plane.objects.away = True
    host.draining = False
    await host.heard(3)
    assert host.assignments.empty(), "not without its input"
    plane.objects.away = False
    assert [number for number, _ in texts((await host.next()).inputs)] == [1]


async def test_an_input_that_is_lost_ends_the_task_with_that(plane: Plane, host: Host, talker: Talker) -> None:
    task = await talker.talk(retry=task_pb2.RetryPolicy(max_attempts=3, initial_backoff=duration(0.01)))
    await host.next()
    await talker.say(task, "m1", "x" * 10_000)
    await soon(host.inputs.get())  # the node does not say that it has it
    for info in [info async for info in plane.objects.list("inputs/")]:
        await plane.objects.delete(info.name)
    await host.disconnect()
    await host.connect()
    ended = await talker.wait(task)
    assert "missing" in ended.events[-1].message
