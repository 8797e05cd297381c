"""Conversations at their limits, over changes of leaders, and when they are over."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec.structs import replace

from cloudclaw.clock import SystemClock
from cloudclaw.coordination import conversation, keys
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.coordination.port import Put
from cloudclaw.coordination.records import InputRecord, encode
from cloudclaw.errors import AbortedError, NotFoundError, PreconditionError, QuotaExceededError
from cloudclaw.v1 import task_pb2
from tests.support.kv import FaultyKeyValue
from tests.unit.scheduler.failing import FailingObjects
from tests.unit.scheduler.history_rig import archive
from tests.unit.scheduler.plane import Plane, until
from tests.unit.scheduler.talking import COMMITTED, Host, Talker, keys_of, parked, texts

CANCELED = task_pb2.TASK_STATE_CANCELED


@pytest_asyncio.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    plane = Plane(FaultyKeyValue(MemoryKeyValue(SystemClock())), FailingObjects(), tmp_path, grace=0.5)
    await plane.start()
    yield plane
    await plane.stop()


# -- delayed messages, and leaders --


async def test_a_new_leader_wakes_what_waits_for_a_delayed_message(plane: Plane, host: Host, talker: Talker) -> None:
    task = await parked(host, talker, idle=36_000)
    await talker.say(task, "later", delay=3600)
    await host.disconnect()
    await plane.stop()
    await plane.start()
    await host.connect()
    plane.jump(3600)
    assert texts((await host.next()).inputs) == [(1, "later")]


@pytest.mark.parametrize("applied", [True, False])
async def test_a_message_whose_time_came_in_doubt_is_delivered_once(
    kv: FaultyKeyValue, host: Host, talker: Talker, applied: bool
) -> None:
    task = await talker.talk()
    await host.next()
    await talker.say(task, "later", delay=0.3)
    kv.fail_next("txn", applied=applied, then="get")
    assert texts((await host.given()).inputs) == [(1, "later")]
    await host.heard(3)
    assert host.inputs.empty()


async def test_more_messages_than_one_transaction_takes_may_be_due_at_once(
    plane: Plane, host: Host, talker: Talker
) -> None:
    task = await talker.talk()
    await host.next()
    due = round(plane.clock.wall() + 0.5, 3)
    for number in range(120):
        sent = False
        while not sent:
            found = await plane.transactions.get_task("acme", task)
            assert found is not None
            after = conversation.sent(found.record, plane.clock.wall(), op_id=f"op-{number}", due=due)
            record = InputRecord(op_id=after.op_id, digest="d", created=1.0, due=due, text=f"m{number:03}")
            with contextlib.suppress(AbortedError):  # the first of them are due already
                sent = bool(await plane.transactions.send_input(found, after, f"m{number:03}", record))
    told: list[tuple[int, str]] = []
    while len(told) < 120:
        told += texts((await host.given()).inputs)
    assert told == [(number + 1, f"m{number:03}") for number in range(120)]


# -- limits --


async def test_of_two_messages_for_the_last_place_one_is_refused(
    plane: Plane, host: Host, talker: Talker, speak: Callable[[str], None]
) -> None:
    task = await talker.talk()
    await host.next()
    found = await plane.transactions.get_task("acme", task)
    assert found is not None
    full = replace(found.record, inputs=999, inputs_done=999)
    await plane.kv.txn([], [Put(keys.task("acme", task), encode(full))])
    speak(task)
    with pytest.raises(QuotaExceededError) as refused:
        await talker.say(task, "m2")
    assert refused.value.reason == "TOO_MANY_INPUTS"
    assert await keys_of(plane, keys.input_("acme", task, "")) == [keys.input_("acme", task, "m1")]


async def test_a_store_that_is_almost_full_takes_no_message_but_parks_and_wakes(
    plane: Plane, host: Host, talker: Talker
) -> None:
    task = await talker.talk(idle=0.3)
    first = await host.next()
    await talker.say(task, "m1")
    plane.scheduler.fullness.used, plane.scheduler.fullness.limit = 61, 100
    with pytest.raises(QuotaExceededError) as refused:
        await talker.say(task, "m2")
    assert refused.value.reason == "COORDINATION_FULL"
    assert not (await talker.say(task, "m1")).accepted, "it was accepted before"
    assert await host.park(first, "c-1", inputs=1) == COMMITTED
    assert (await host.next()).closing, "it idled out"


# -- what is over --


async def speaks_again(talker: Talker, task: str) -> None:
    for message in ("m1", "m2"):
        with pytest.raises(PreconditionError) as refused:
            await talker.say(task, message)
        assert refused.value.reason == "TASK_ENDED"


async def test_a_message_is_known_until_its_task_is_archived_and_refused_after_that(
    plane: Plane, host: Host, talker: Talker
) -> None:
    task = await parked(host, talker)
    await talker.say(task, "m1")
    assert await host.park(await host.next(), "c-2", inputs=1) == COMMITTED
    await talker.parked(task)
    again = await talker.say(task, "m1")
    assert (again.accepted, again.number) == (False, 1), "parked, and not woken by what it has answered"
    assert (await talker.get(task)).parked
    await talker.cancel(task)
    assert not (await talker.say(task, "m1")).accepted
    await archive(plane)
    await speaks_again(talker, task)
    assert await keys_of(plane, keys.INPUTS) == []


async def test_a_message_beside_the_archiving_of_its_task_leaves_nothing(
    plane: Plane, kv: FaultyKeyValue, host: Host, talker: Talker
) -> None:
    """Its inputs go first; what comes then finds an ended task."""
    task = await parked(host, talker)
    await talker.say(task, "later", delay=3600)
    await talker.cancel(task)
    await plane.scheduler.mirror.caught_up()

    said: list[bool] = []

    async def between() -> None:
        if await keys_of(plane, keys.INPUTS):
            kv.before_txn = between
            return
        said.append(bool(await keys_of(plane, keys.TASKS)))
        await speaks_again(talker, task)

    kv.before_txn = between
    await archive(plane)
    assert said == [True]
    assert await keys_of(plane, keys.INPUTS) == []


async def test_a_message_in_the_moment_of_its_tenant_s_deletion_leaves_nothing(
    plane: Plane, kv: FaultyKeyValue, host: Host, talker: Talker
) -> None:
    task = await parked(host, talker)
    with pytest.raises(PreconditionError) as busy:
        await plane.transactions.delete_tenant_keys("acme")
    assert busy.value.reason == "TENANT_BUSY", "one that waits for its user has not ended"

    async def meanwhile() -> None:
        await talker.cancel(task)
        await plane.transactions.delete_tenant_keys("acme")

    kv.before_txn = meanwhile
    with pytest.raises(NotFoundError):
        await talker.say(task, "m1")
    assert not [key for key in await keys_of(plane, keys.ROOT) if "/acme/" in key]


@pytest.mark.parametrize("archived", [False, True])
async def test_a_timer_of_what_is_over_does_nothing(plane: Plane, archived: bool) -> None:
    host, talker = Host(plane, slots=2), Talker(plane)
    await host.connect()
    tasks = [await talker.talk(idle=idle) for idle in (0.3, 0.6)]
    attempts = {attempt.task_id: attempt for attempt in (await host.next(), await host.next())}
    host.draining = True  # so that whatever wakes stays queued
    await host.heard(2)
    for number, task in enumerate(tasks):
        assert await host.park(attempts[task], f"c-{number}") == COMMITTED
    await talker.cancel(tasks[0])
    if archived:
        await archive(plane)
    host.draining = False
    last = await host.next()
    assert (last.task_id, last.closing) == (tasks[1], True), "its time came after that of the other"
    assert (await talker.get(tasks[0])).state == CANCELED


async def test_a_park_that_the_old_and_the_new_leader_both_judge_is_one(
    plane: Plane, host: Host, talker: Talker, another: Callable[[], Plane]
) -> None:
    """The token guards it, whoever leads."""
    follower = another()
    await follower.start(leads=False)
    await until("it has loaded", follower.scheduler.mirror.loaded.is_set)
    task = await talker.talk()
    first = await host.next()
    await host.disconnect()
    await plane.stop()
    await until("the follower leads", lambda: follower.scheduler.leader.term is not None)
    host.plane = follower
    await host.connect()
    assert await host.park(first, "c-1", final_message="hello") == COMMITTED
    talker = Talker(follower)
    await talker.parked(task)
    host.take(first)
    assert await host.park(first, "c-1", final_message="hello") == COMMITTED
    assert [end.reason for end in (await talker.get(task)).attempts] == [task_pb2.END_REASON_PARKED]
    assert (await talker.get(task)).parked
