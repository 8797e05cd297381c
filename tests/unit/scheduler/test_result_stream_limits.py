"""Results for consumers: how much is out, what is refused, and how long results are held."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cloudclaw.clock import SystemClock
from cloudclaw.coordination import keys
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.errors import InvalidArgumentError, NotFoundError, QuotaExceededError
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw_scheduler.app import deliveries
from tests.support.kv import FaultyKeyValue, ManualClock
from tests.unit.scheduler.consuming import Consumer, canceled, ids
from tests.unit.scheduler.failing import FailingObjects
from tests.unit.scheduler.plane import Plane, User, duration, until


async def test_leases_without_deliveries_are_given_up(plane: Plane, user: User) -> None:
    await canceled(user, 3)
    assert isinstance(plane.kv, MemoryKeyValue)
    before = set(plane.kv._leases)
    consumer = Consumer(plane)
    stream = consumer.open()
    delivered = await stream.take(3)
    assert len(set(plane.kv._leases) - before) == 1
    await consumer.ack(*delivered)
    kv = plane.kv
    await until("no lease is left", lambda: set(kv._leases) == before)
    stream.close()


async def test_no_more_than_a_window_is_out_before_the_oldest_is_acknowledged(
    plane: Plane, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloudclaw_scheduler.domain.consumers.WINDOW", 10)
    tasks = await canceled(user, 25)
    consumer = Consumer(plane)
    delivered = await consumer.drain(max_outstanding=10)
    assert ids(delivered) == tasks[:10]
    assert await consumer.drain(max_outstanding=10) == []
    await consumer.ack(*delivered[1:])
    assert await consumer.drain(max_outstanding=10) == []
    record = (await plane.transactions.get_consumer("acme", "c")).record  # type: ignore[union-attr]
    assert len(record.acked) == 9
    await consumer.ack(delivered[0])
    record = (await plane.transactions.get_consumer("acme", "c")).record  # type: ignore[union-attr]
    assert record.acked == ()
    assert ids(await consumer.drain(max_outstanding=10)) == tasks[10:20]


async def test_more_than_one_batch_is_drained(plane: Plane, user: User) -> None:
    tasks = await canceled(user, 2 * deliveries.BATCH + 3)
    consumer = Consumer(plane)
    delivered = await consumer.drain(max_outstanding=1000)
    assert ids(delivered) == tasks
    assert await consumer.ack(*delivered) == []
    assert (await plane.kv.range(keys.DELIVERIES)).entries == []


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.StreamResultsRequest(), "consumer"),
        (pb.StreamResultsRequest(consumer="a/b"), "consumer"),
        (pb.StreamResultsRequest(consumer="A"), "consumer"),
        (pb.StreamResultsRequest(consumer="x" * 64), "consumer"),
        (pb.StreamResultsRequest(consumer="c", visibility_timeout=duration(4.9)), "visibility_timeout"),
        (pb.StreamResultsRequest(consumer="c", visibility_timeout=duration(43201)), "visibility_timeout"),
        (pb.StreamResultsRequest(consumer="c", visibility_timeout=duration(-1)), "visibility_timeout"),
        (pb.StreamResultsRequest(consumer="c", max_outstanding=-1), "max_outstanding"),
        (pb.StreamResultsRequest(consumer="c", max_outstanding=1001), "max_outstanding"),
    ],
)
async def test_streams_that_are_none_are_refused(
    plane: Plane, user: User, request_: pb.StreamResultsRequest, field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        async for _ in user.stub.StreamResults(request_):
            pass
    assert caught.value.field == field
    assert not plane.scheduler.mirror.state.consumers


@pytest.mark.parametrize("receipt", ["", "garbage", "cjE6", "é", "cjE6YzpiOjE6MQ==", "a" * 10_000])
async def test_receipts_that_are_none_are_refused(plane: Plane, user: User, receipt: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await user.stub.AckResults(pb.AckResultsRequest(consumer="c", receipts=[receipt]))
    assert caught.value.field == "receipts[0]"


async def test_too_many_receipts_are_refused(plane: Plane, user: User) -> None:
    with pytest.raises(InvalidArgumentError):
        await user.stub.AckResults(pb.AckResultsRequest(consumer="c", receipts=["x"] * 1001))


async def test_results_are_held_for_consumers_that_still_want_them(plane: Plane, user: User) -> None:
    consumers = plane.scheduler.consumers
    tasks = await canceled(user, 3)
    ends = [(await user.get(task)).revision for task in tasks]
    assert consumers.held("acme") is None
    consumer = Consumer(plane)
    delivered = await consumer.drain()
    assert consumers.held("acme") == ends[0] - 1
    await consumer.ack(delivered[0], delivered[2])
    await plane.scheduler.mirror.sync(keys.consumer("acme", "c"))
    assert consumers.held("acme") == ends[1] - 1
    assert consumers.held("stranger") is None
    await consumer.ack(delivered[1])
    await plane.scheduler.mirror.sync(keys.consumer("acme", "c"))
    assert consumers.held("acme") is None
    (later,) = await canceled(user)
    assert consumers.held("acme") == (await user.get(later)).revision - 1


async def test_an_idle_consumer_holds_nothing_for_ever(tmp_path: Path) -> None:
    clock = ManualClock(SystemClock().wall())
    plane = Plane(MemoryKeyValue(SystemClock()), FailingObjects(), tmp_path, history={"consumer_hold": 100.0})
    await plane.start()
    try:
        user, consumer = User(plane), Consumer(plane)
        await canceled(user)
        await consumer.drain()
        assert plane.scheduler.consumers.held("acme") is not None
        plane.scheduler.consumers._clock = clock
        await clock.advance(101.0)
        assert plane.scheduler.consumers.held("acme") is None
    finally:
        await plane.stop()


async def test_a_consumer_whose_next_result_was_archived_goes_on_with_the_one_after(plane: Plane, user: User) -> None:
    tasks = await canceled(user, 3)
    consumer = Consumer(plane)
    delivered = await consumer.drain()
    await consumer.ack(delivered[1])
    for task in tasks[:2]:
        found = await plane.transactions.get_task("acme", task)
        assert found is not None
        await plane.transactions.archive([found], await plane.kv.grant(60))
    await canceled(user)
    again = await consumer.drain()
    assert len(again) == 1
    assert await consumer.ack(delivered[2], *again) == []
    record = (await plane.transactions.get_consumer("acme", "c")).record  # type: ignore[union-attr]
    assert record.acked == ()
    assert (await consumer.standing()).backlog == 0


async def test_acknowledgements_that_come_at_once_go_in_one_transaction(tmp_path: Path) -> None:
    kv = FaultyKeyValue(MemoryKeyValue(SystemClock()))
    plane = Plane(kv, FailingObjects(), tmp_path)
    await plane.start()
    try:
        await canceled(User(plane), 30)
        consumer = Consumer(plane)
        delivered = await consumer.drain()
        held, going = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            going.set()
            await held.wait()

        kv.before_txn = hold
        acks = [asyncio.create_task(consumer.ack(delivered[0]))]
        await going.wait()
        sent = kv.sent["txn"]
        acks += [asyncio.create_task(consumer.ack(response)) for response in delivered[1:]]
        shared = plane.scheduler.consumers._shared["acme", "c"]
        await until("the others wait", lambda: len(shared.pending) == 29)
        # One of them gives up meanwhile; what it asked for may be done all the same, and the others' is.
        acks[5].cancel()
        held.set()
        answers = await asyncio.gather(*acks, return_exceptions=True)
        assert isinstance(answers.pop(5), asyncio.CancelledError)
        assert answers == [[]] * 29
        assert kv.sent["txn"] - sent <= 2
        assert await consumer.ack(*delivered) == []
        assert (await consumer.standing()).backlog == 0
    finally:
        await plane.stop()


async def test_names_of_consumers_that_are_none_are_not_kept(plane: Plane, user: User) -> None:
    consumer = Consumer(plane)
    await canceled(user)
    (delivered,) = await consumer.drain()
    await consumer.stub.DeleteConsumer(pb.DeleteConsumerRequest(consumer="c"))
    for _ in range(3):
        with pytest.raises(NotFoundError):
            await consumer.ack(delivered)
    assert not plane.scheduler.consumers._shared


async def test_a_tenant_has_a_hundred_consumers_at_most(plane: Plane, user: User) -> None:
    await asyncio.gather(*(Consumer(plane, f"c{n}").drain() for n in range(100)))
    with pytest.raises(QuotaExceededError):
        await Consumer(plane, "one-more").drain()
    assert await Consumer(plane, "c7").drain() == []
    assert await Consumer(plane, "c", "stranger").drain() == []
