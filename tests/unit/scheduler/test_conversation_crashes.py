"""Conversations beside everything else that happens to a task: each step just before, just after, or beside another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from cloudclaw.clock import SystemClock
from cloudclaw.coordination import keys, life
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.coordination.records import TaskRecord
from cloudclaw.coordination.transactions import Versioned
from cloudclaw.errors import PreconditionError
from cloudclaw.v1 import task_pb2
from tests.support.kv import FaultyKeyValue
from tests.unit.scheduler.failing import FailingObjects
from tests.unit.scheduler.plane import Plane, duration, soon, until
from tests.unit.scheduler.talking import COMMITTED, Host, Talker, keys_of, parked, texts

SUCCEEDED, CANCELED = task_pb2.TASK_STATE_SUCCEEDED, task_pb2.TASK_STATE_CANCELED
FAILED_ATTEMPT = task_pb2.ATTEMPT_STATE_FAILED
SNAPSHOT = task_pb2.SnapshotRef(snapshot_id="c-1", manifest_digest="d")


@pytest_asyncio.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    plane = Plane(FaultyKeyValue(MemoryKeyValue(SystemClock())), FailingObjects(), tmp_path, grace=0.5)
    await plane.start()
    yield plane
    await plane.stop()


async def _is_there(read: Awaitable[object]) -> bool:
    return await read is not None


# -- a message, beside the end of an attempt --


async def test_a_message_in_the_moment_an_attempt_expires_is_for_the_next(
    kv: FaultyKeyValue, host: Host, talker: Talker, speak: Callable[[str], None]
) -> None:
    task = await talker.talk()
    await host.next()
    await host.disconnect()
    speak(task)
    assert isinstance(kv.inner, MemoryKeyValue)
    kv.inner.expire(host.lease)
    other = Host(host.plane, "node-2")
    await other.connect()
    assert texts((await other.next()).inputs) == [(1, "m1")]


async def test_a_message_in_the_moment_of_an_early_requeue_is_for_the_next_attempt(
    host: Host, talker: Talker, speak: Callable[[str], None]
) -> None:
    task = await talker.talk()
    await host.next()
    other = Host(host.plane, "node-2")
    await other.connect()
    speak(task)
    await host.disconnect()
    assert texts((await other.next()).inputs) == [(1, "m1")]


async def test_a_message_in_the_moment_of_an_unclaim_is_kept(
    host: Host, talker: Talker, speak: Callable[[str], None]
) -> None:
    task = await talker.talk()
    first = await host.next()
    speak(task)
    await host.reject(first)
    second = await host.next()
    assert (second.attempt, texts(second.inputs)) == (1, [(1, "m1")])


async def test_a_message_in_the_moment_of_a_hand_over_is_for_the_next_attempt(
    host: Host, talker: Talker, speak: Callable[[str], None]
) -> None:
    task = await talker.talk()
    first = await host.next()
    assert await host.checkpoint(first, "c-1", session_id="session-1") == COMMITTED
    other = Host(host.plane, "node-2")
    await other.connect()
    speak(task)
    assert await host.finish(first, state=FAILED_ATTEMPT, reason=task_pb2.END_REASON_DRAINED) == COMMITTED
    second = await other.next()
    assert (second.base.snapshot_id, texts(second.inputs)) == ("c-1", [(1, "m1")])


async def test_a_message_in_the_moment_of_a_failure_is_for_the_next_attempt(
    host: Host, talker: Talker, speak: Callable[[str], None]
) -> None:
    task = await talker.talk()
    first = await host.next()
    speak(task)
    assert await host.finish(first, state=FAILED_ATTEMPT, reason=task_pb2.END_REASON_INTERNAL) == COMMITTED
    assert texts((await host.next()).inputs) == [(1, "m1")]


async def test_a_message_in_the_moment_of_a_claim_comes_with_the_attempt(
    host: Host, talker: Talker, speak: Callable[[str], None]
) -> None:
    blocker = await talker.submit()
    running = await host.next()
    task = await talker.talk()
    speak(task)
    assert running.task_id == blocker
    await host.finish(running)
    assignment = await host.next()
    assert texts(assignment.inputs) == [(1, "m1")]


async def test_a_message_to_a_task_in_backoff_waits_with_it(plane: Plane, host: Host, talker: Talker) -> None:
    task = await talker.talk(retry=task_pb2.RetryPolicy(max_attempts=3, initial_backoff=duration(3600)))
    await host.finish(await host.next(), state=FAILED_ATTEMPT, reason=task_pb2.END_REASON_INTERNAL)
    (waits,) = await keys_of(plane, keys.DELAYED)
    await talker.say(task, "m1")
    await talker.say(task, "soon", delay=0.05)

    async def due() -> Versioned[TaskRecord] | None:
        found = await plane.transactions.get_task("acme", task)
        return found if found is not None and found.record.inputs == 2 else None

    await until("the delayed one is due", lambda: _is_there(due()))
    assert not await keys_of(plane, keys.QUEUE), "nothing shortens the backoff"
    assert await keys_of(plane, keys.DELAYED) == [waits]
    found, term = await due(), plane.scheduler.leader.term
    assert found is not None
    assert term is not None
    after = life.became_due(found.record, plane.clock.wall(), op_id="op-due")
    await plane.transactions.due(term.leading.guard(), found, after)
    assert texts((await host.next()).inputs) == [(1, "m1"), (2, "soon")]


# -- the end of a conversation --


async def test_an_end_in_the_moment_of_a_message_refuses_it(
    kv: FaultyKeyValue, host: Host, talker: Talker, elsewhere: Talker
) -> None:
    task = await parked(host, talker)

    async def close() -> None:
        await soon(elsewhere.say(task, "bye", end=True))

    kv.before_txn = close
    with pytest.raises(PreconditionError) as refused:
        await talker.say(task, "m1")
    assert refused.value.reason == "CONVERSATION_CLOSED"
    assert await keys_of(host.plane, keys.input_("acme", task, "")) == [keys.input_("acme", task, "bye")]
    second = await host.next()
    assert (second.closing, len(second.inputs)) == (True, 0)


async def test_a_message_in_the_moment_of_an_end_is_answered_before_it(
    host: Host, talker: Talker, speak: Callable[[str], None]
) -> None:
    task = await parked(host, talker)
    host.draining = True  # so that the task stays queued
    await host.heard(2)
    speak(task)
    assert (await talker.say(task, "bye", end=True)).accepted
    host.draining = False
    second = await host.next()
    assert (second.closing, texts(second.inputs)) == (True, [(1, "m1")])


async def test_an_end_in_the_moment_of_parking_ends_it(kv: FaultyKeyValue, host: Host, talker: Talker) -> None:
    task = await talker.talk()
    first = await host.next()

    async def close() -> None:
        await talker.say(task, "bye", end=True)

    kv.before_txn = close
    assert await host.park(first, "c-1", final_message="hello") == COMMITTED
    second = await host.next()
    assert (second.closing, len(second.inputs)) == (True, 0)
    await host.finish(second)
    result = await talker.result(task)
    assert (result.state, result.final_message) == (SUCCEEDED, "hello")


async def test_a_cancel_in_the_moment_of_parking_wins(kv: FaultyKeyValue, host: Host, talker: Talker) -> None:
    task = await talker.talk()
    first = await host.next()

    async def cancel() -> None:
        await talker.cancel(task)

    kv.before_txn = cancel
    assert await host.park(first, "c-1", final_message="hello") == COMMITTED
    result = await talker.result(task)
    assert (result.state, result.final_message) == (CANCELED, "hello")


async def test_a_success_does_not_end_what_is_still_to_be_told(host: Host, talker: Talker) -> None:
    task = await talker.talk()
    first = await host.next()
    await talker.say(task, "later", delay=0.3)
    assert await host.finish(first, snapshot=SNAPSHOT) == COMMITTED
    second = await host.next()
    assert (second.base.snapshot_id, texts(second.inputs)) == ("c-1", [(1, "later")])
