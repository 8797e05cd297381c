"""Results for consumers: each at least once, oldest first, and again unless acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from cloudclaw.clock import SystemClock
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.errors import NotFoundError, UnavailableError
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from tests.support.kv import ManualClock
from tests.unit.scheduler.consuming import (
    VISIBILITY,
    Consumer,
    Response,
    Stream,
    canceled,
    counted,
    ids,
    lapse,
    out,
)
from tests.unit.scheduler.failing import FailingObjects
from tests.unit.scheduler.node import Node
from tests.unit.scheduler.plane import Plane, User, soon, until


@pytest.fixture
def clock() -> ManualClock:
    """Of the store alone: it decides when leases end."""
    return ManualClock()


@pytest_asyncio.fixture
async def plane(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Plane]:
    plane = Plane(MemoryKeyValue(clock), FailingObjects(), tmp_path, SystemClock())
    await plane.start()
    yield plane
    await plane.stop()


async def test_results_come_in_the_order_of_their_ends_with_all_they_hold(plane: Plane, user: User) -> None:
    node = await Node(plane, slots=2).connect()
    await user.submit()
    await user.submit()
    first, second = await node.next(), await node.next()
    await node.finish(second, final_message="well done")
    await node.finish(first, state=task_pb2.ATTEMPT_STATE_FAILED, reason=task_pb2.END_REASON_NONZERO_EXIT, exit_code=3)
    consumer = Consumer(plane)
    delivered = await consumer.drain()
    assert ids(delivered) == [second.task_id, first.task_id]
    for response in delivered:
        assert response.result == await user.result(response.result.task_id)
        assert response.visible_time.ToSeconds() > 0
    assert await consumer.ack(*delivered) == []
    assert await consumer.drain() == []
    assert out(plane) == 0


async def test_a_new_consumer_begins_with_the_next_task_that_ends(plane: Plane, user: User) -> None:
    await canceled(user, 3)
    consumer = Consumer(plane)
    assert await consumer.drain(from_oldest=False) == []
    (later,) = await canceled(user)
    # An old one stands where it stands, whatever is asked.
    assert ids(await consumer.drain(from_oldest=True)) == [later]
    oldest = Consumer(plane, "oldest")
    assert len(await oldest.drain()) == 4


async def test_an_open_stream_is_told_of_each_end_at_once(plane: Plane, user: User) -> None:
    consumer = Consumer(plane)
    stream = consumer.open(from_oldest=False)
    waiting = asyncio.create_task(stream.take(3))
    await until("it is there", lambda: ("acme", "c") in plane.scheduler.mirror.state.consumers)
    tasks = await canceled(user, 3)
    assert ids(await soon(waiting)) == tasks
    stream.close()


async def test_what_a_dead_consumer_left_unacknowledged_comes_again_after_the_timeout(
    plane: Plane, user: User, clock: ManualClock
) -> None:
    tasks = await canceled(user, 5)
    consumer = Consumer(plane)
    stream = consumer.open()
    delivered = await stream.take(5)
    await consumer.ack(delivered[1], delivered[3])
    stream.close()
    assert await consumer.drain() == []  # they are out
    left = [tasks[0], tasks[2], tasks[4]]
    again = consumer.open()
    await clock.advance(VISIBILITY - 0.5)
    assert out(plane) == 3
    await lapse(plane, clock)
    assert ids(await again.take(3)) == left
    assert counted(plane, "cloudclaw_result_deliveries_total", delivery="first") == 5
    assert counted(plane, "cloudclaw_result_deliveries_total", delivery="again") == 3
    again.close()


async def test_what_was_delivered_and_not_sent_is_given_back_at_once(plane: Plane, user: User) -> None:
    """A client that reads nothing: the results are large, so most of them wait in the stream when it breaks."""
    tasks = []
    node = await Node(plane).connect()
    for _ in range(20):
        tasks.append(await user.submit())
        await node.finish(await node.next(), final_message="x" * 200_000)
    consumer = Consumer(plane)
    stream = consumer.open()
    await until("they are out", lambda: out(plane) == 20)
    (first,) = await stream.take(1)
    stream.close()
    await until("what was not sent may be had by others", lambda: out(plane) < 20)
    again = await consumer.drain()
    assert again
    assert ids(again) == tasks[-len(again) :]
    assert ids([first]) == tasks[:1]


async def test_a_late_receipt_acknowledges_nothing(plane: Plane, user: User, clock: ManualClock) -> None:
    tasks = await canceled(user, 2)
    consumer = Consumer(plane)
    stream = consumer.open()
    late = await stream.take(2)
    await lapse(plane, clock)
    again = await stream.take(2)
    assert ids(again) == ids(late) == tasks
    assert await consumer.ack(*late) == [r.receipt for r in late]
    assert (await consumer.standing()).backlog == 2
    assert await consumer.ack(again[0]) == []
    # The late receipt's result is acknowledged by now, by its later delivery: nothing will come again.
    assert await consumer.ack(*late) == [late[1].receipt]
    assert await consumer.ack(again[1]) == []
    assert (await consumer.standing()).backlog == 0
    stream.close()
    assert counted(plane, "cloudclaw_result_acks_total", outcome="expired") == 3
    assert counted(plane, "cloudclaw_result_acks_total", outcome="repeated") == 1


async def test_acknowledging_twice_is_fine(plane: Plane, user: User) -> None:
    await canceled(user, 3)
    consumer = Consumer(plane)
    delivered = await consumer.drain()
    assert await consumer.ack(delivered[2], delivered[2]) == []
    assert await consumer.ack(delivered[2]) == []
    assert await consumer.ack(*delivered) == []
    assert await consumer.ack(*delivered) == []
    assert await consumer.ack() == []


async def test_two_streams_share_the_work(plane: Plane, user: User, another: Callable[[], Plane]) -> None:
    other = another()
    await other.start(leads=False)
    one, two = Consumer(plane), Consumer(other)
    streams = [one.open(max_outstanding=10), one.open(max_outstanding=10), two.open(max_outstanding=10)]
    delivered: list[Response] = []

    async def work(stream: Stream, consumer: Consumer) -> None:
        while True:
            (response,) = await stream.take(1)
            delivered.append(response)
            assert await consumer.ack(response) == []

    workers = [asyncio.create_task(work(s, c)) for s, c in zip(streams, (one, one, two), strict=True)]
    tasks = await canceled(user, 150)
    await until("all are delivered", lambda: len(delivered) >= 150)
    standing = one.standing

    async def empty() -> bool:
        return (await standing()).backlog == 0

    await until("all are acknowledged", empty)
    assert sorted(ids(delivered)) == sorted(tasks)
    for worker, stream in zip(workers, streams, strict=True):
        stream.close()
        await asyncio.gather(worker, return_exceptions=True)


async def test_a_stream_has_no_more_out_than_it_asked_for(plane: Plane, user: User) -> None:
    tasks = await canceled(user, 5)
    consumer = Consumer(plane)
    stream = consumer.open(max_outstanding=2)
    delivered = await stream.take(2)
    other = consumer.open(max_outstanding=1)
    delivered += await other.take(1)
    assert ids(delivered) == tasks[:3]
    assert out(plane) == 3
    await consumer.ack(delivered[0])
    delivered += await stream.take(1)
    await consumer.ack(delivered[2])
    delivered += await other.take(1)
    assert ids(delivered) == tasks
    for each in (stream, other):
        each.close()


async def test_a_replica_that_dies_loses_nothing(
    plane: Plane, user: User, another: Callable[[], Plane], clock: ManualClock
) -> None:
    other = another()
    await other.start(leads=False)
    tasks = await canceled(user, 4)
    there = Consumer(other)
    stream = there.open()
    delivered = await stream.take(4)
    await there.ack(delivered[0])
    await other.stop()
    here = Consumer(plane)
    # Receipts are good on any replica.
    assert await here.ack(delivered[1]) == []
    following = here.open()
    await lapse(plane, clock)
    assert ids(await following.take(2)) == tasks[2:]
    following.close()


async def test_where_a_consumer_stands_survives_everything(plane: Plane, user: User, clock: ManualClock) -> None:
    tasks = await canceled(user, 4)
    consumer = Consumer(plane)
    stream = consumer.open()
    delivered = await stream.take(4)
    await consumer.ack(delivered[0], delivered[2])
    await plane.stop()
    await plane.start()
    consumer = Consumer(plane)
    assert (await consumer.standing()).backlog == 2
    assert await consumer.drain() == []
    assert await consumer.ack(delivered[3]) == []
    stream = consumer.open()
    await lapse(plane, clock)
    assert ids(await stream.take(1)) == [tasks[1]]
    stream.close()


async def test_a_stopping_replica_sends_its_streams_elsewhere(plane: Plane, user: User) -> None:
    stream = Consumer(plane).open()
    await until("it is open", lambda: counted(plane, "cloudclaw_result_streams") == 1)
    ended = asyncio.create_task(stream.rest())
    await plane.scheduler.consumers.stop()
    with pytest.raises(UnavailableError):
        await soon(ended)


async def test_a_deleted_consumers_stream_ends(plane: Plane, user: User) -> None:
    await canceled(user)
    consumer = Consumer(plane)
    stream = consumer.open()
    delivered = await stream.take(1)
    await consumer.stub.DeleteConsumer(pb.DeleteConsumerRequest(consumer="c"))
    with pytest.raises(NotFoundError):
        await soon(stream.rest())
    with pytest.raises(NotFoundError):
        await consumer.ack(*delivered)
    with pytest.raises(NotFoundError):
        await consumer.ack()
    with pytest.raises(NotFoundError):
        await consumer.stub.DeleteConsumer(pb.DeleteConsumerRequest(consumer="c"))
    assert not (await consumer.stub.ListConsumers(pb.ListConsumersRequest())).consumers
    # Made anew, it begins anew, and an old receipt is nobody's.
    assert len(await consumer.drain()) == 1
    assert await consumer.ack(*delivered) == [delivered[0].receipt]


async def test_consumers_and_tenants_do_not_see_each_other(plane: Plane, user: User) -> None:
    (mine,) = await canceled(user)
    (theirs,) = await canceled(User(plane, "stranger"))
    one, two, stranger = Consumer(plane), Consumer(plane, "d"), Consumer(plane, "c", "stranger")
    first, second, third = await one.drain(), await two.drain(), await stranger.drain()
    assert (ids(first), ids(second), ids(third)) == ([mine], [mine], [theirs])
    assert await two.ack(*first) == [first[0].receipt]
    assert await stranger.ack(*first) == [first[0].receipt]
    assert (await one.standing()).backlog == 1
    assert await one.ack(*first) == []
    assert (await two.standing()).backlog == (await stranger.standing()).backlog == 1
    listed = await stranger.stub.ListConsumers(pb.ListConsumersRequest())
    assert [consumer.name for consumer in listed.consumers] == ["c"]


async def test_a_result_that_is_lost_does_not_hold_up_the_others(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    tasks = []
    for text in ("x" * 50_000, "small"):
        tasks.append(await user.submit())
        await node.finish(await node.next(), final_message=text)
    name = (await plane.transactions.get_task("acme", tasks[0])).record.result_object  # type: ignore[union-attr]
    await plane.objects.delete(name)
    lost, whole = await Consumer(plane).drain()
    assert ids([lost, whole]) == tasks
    assert lost.result.state == task_pb2.TASK_STATE_SUCCEEDED
    assert name in lost.result.message
    assert whole.result.final_message == "small"


async def test_the_object_store_away_ends_the_stream_and_loses_nothing(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    await user.submit()
    await node.finish(await node.next(), final_message="x" * 50_000)
    assert isinstance(plane.objects, FailingObjects)
    plane.objects.away = True
    consumer = Consumer(plane)
    with pytest.raises(UnavailableError):
        await consumer.drain()
    plane.objects.away = False
    (delivered,) = await consumer.drain()
    assert delivered.result.final_message == "x" * 50_000


async def test_a_lost_answer_of_etcd_delivers_again_and_never_loses(
    plane: Plane, user: User, clock: ManualClock
) -> None:
    tasks = await canceled(user, 3)
    consumer = Consumer(plane)
    assert isinstance(plane.kv, MemoryKeyValue)
    plane.kv.fail_next("txn", applied=True)
    plane.kv.fail_next("txn")
    seen: set[str] = set()
    for _ in range(3):
        try:
            seen |= set(ids(await consumer.drain()))
        except UnavailableError:
            continue
    await lapse(plane, clock)
    seen |= set(ids(await consumer.drain()))
    assert seen == set(tasks)
