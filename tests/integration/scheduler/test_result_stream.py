"""Streams of results on a real etcd, whose leases decide when a delivery lapses."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cloudclaw.clock import SystemClock
from cloudclaw.config import EtcdSettings
from cloudclaw.coordination.etcd import open_etcd
from cloudclaw.coordination.port import Put
from cloudclaw.errors import NotFoundError, UnavailableError
from cloudclaw.v1 import scheduler_pb2 as pb
from tests.support.etcd_server import EtcdServer
from tests.support.proxy import Proxy
from tests.unit.scheduler.consuming import Consumer, canceled, ids
from tests.unit.scheduler.plane import Plane, User

pytestmark = pytest.mark.etcd

VISIBILITY = 5.0


async def test_what_a_dead_replica_and_a_dead_consumer_had_out_comes_again_after_the_timeout(
    plane: Plane, user: User, etcd: EtcdServer, tmp_path: Path
) -> None:
    async with Proxy(etcd.endpoint) as proxy:
        kv = open_etcd(EtcdSettings(endpoints=[proxy.address]), SystemClock())
        other = Plane(kv, plane.objects, tmp_path)
        await other.start(leads=False)
        tasks = await canceled(user, 40)
        there, here = Consumer(other), Consumer(plane)
        stream = there.open()
        delivered = await stream.take(40)
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert ids(delivered) == tasks
        assert await there.ack(*delivered[:10]) == []
        # Nobody says goodbye: from now on nothing of that replica arrives.
        proxy.cut()
        assert await here.ack(*delivered[10:20]) == []
        following = here.open()
        again = await following.take(20)
        assert set(ids(again)) == set(tasks[20:])  # of two leases: either may end first
        assert loop.time() - began > VISIBILITY - 1.0
        assert await here.ack(*again, *delivered[:20]) == []
        assert await here.ack(*delivered[20:]) == []  # acknowledged by their later deliveries
        assert await here.drain() == []
        assert (await here.standing()).backlog == 0
        following.close()
        proxy.mend()
        await other.stop()
        await kv.close()


async def test_streams_on_two_replicas_share_a_busy_consumer_without_a_double(
    plane: Plane, user: User, etcd: EtcdServer, tmp_path: Path
) -> None:
    kv = etcd.open()
    other = Plane(kv, plane.objects, tmp_path)
    await other.start(leads=False)
    consumers = [Consumer(plane), Consumer(plane), Consumer(other), Consumer(other)]
    seen: list[str] = []
    done = asyncio.Event()

    async def work(consumer: Consumer) -> None:
        stream = consumer.open(visibility_timeout=None, max_outstanding=20)
        while True:
            (response,) = await stream.take(1)
            seen.append(response.result.task_id)
            assert await consumer.ack(response) == []
            if len(seen) >= 200:
                done.set()

    workers = [asyncio.create_task(work(consumer)) for consumer in consumers]
    tasks = await canceled(user, 200)
    async with asyncio.timeout(30):
        await done.wait()
    for worker in workers:
        worker.cancel()
    results = await asyncio.gather(*workers, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results), results
    assert await consumers[0].drain() == []
    assert sorted(seen) == sorted(tasks)
    await other.stop()
    await kv.close()


async def test_everything_restarts_and_a_consumer_goes_on(plane: Plane, user: User, etcd: EtcdServer) -> None:
    tasks = await canceled(user, 6)
    consumer = Consumer(plane)
    stream = consumer.open(visibility_timeout=None)
    delivered = await stream.take(6)
    assert await consumer.ack(*delivered[::2]) == []
    await plane.stop()
    await asyncio.to_thread(etcd.kill)
    await asyncio.to_thread(etcd.start)
    await plane.start()
    consumer = Consumer(plane)
    assert (await consumer.standing()).backlog == 3
    assert await consumer.ack(*delivered) == []
    later = await canceled(User(plane), 2)
    assert ids(await consumer.drain()) == later
    assert set(tasks).isdisjoint(later)


async def test_an_outage_of_etcd_ends_acknowledgements_and_loses_none(
    plane: Plane, user: User, etcd: EtcdServer
) -> None:
    await canceled(user, 3)
    consumer = Consumer(plane)
    stream = consumer.open(visibility_timeout=None)
    delivered = await stream.take(3)
    await asyncio.to_thread(etcd.kill)
    with pytest.raises(UnavailableError):
        await consumer.ack(*delivered)
    await asyncio.to_thread(etcd.start)

    async def acked() -> bool:
        try:
            return await consumer.ack(*delivered) == []
        except UnavailableError:
            return False

    async with asyncio.timeout(30):
        while not await acked():
            pass
    assert (await consumer.standing()).backlog == 0


async def test_a_drain_ends_where_others_write_to_the_same_etcd(plane: Plane, user: User) -> None:
    (task,) = await canceled(user)
    await plane.kv.txn([], [Put("/somebody/else", b"x")])
    consumer = Consumer(plane)
    assert ids(await consumer.drain()) == [task]


async def test_a_deleted_consumers_deliveries_are_gone_at_once(plane: Plane, user: User) -> None:
    await canceled(user, 2)
    consumer = Consumer(plane)
    stream = consumer.open()
    delivered = await stream.take(2)
    await consumer.stub.DeleteConsumer(pb.DeleteConsumerRequest(consumer="c"))
    with pytest.raises(NotFoundError):
        await stream.rest()
    assert len(await consumer.drain()) == 2
    assert await consumer.ack(*delivered) == [response.receipt for response in delivered]
