"""A node's lease: taken over, renewed, lost, and never lost by an outage alone (rules 2 and 3)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from cloudclaw.coordination.lease import NodeLease
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.coordination.port import Put
from cloudclaw.errors import UnavailableError
from tests.support.kv import WITHIN, ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def kv(clock: ManualClock) -> MemoryKeyValue:
    return MemoryKeyValue(clock)


@contextlib.asynccontextmanager
async def renewing(lease: NodeLease) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(lease.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_node_without_a_memory_gets_a_new_lease(kv: MemoryKeyValue, clock: ManualClock) -> None:
    lease = NodeLease(kv, clock)
    assert await lease.acquire(None) is False
    assert lease.lease_id
    assert lease.last_renewal_sent == clock.now


async def test_a_remembered_lease_that_lives_is_taken_over(kv: MemoryKeyValue, clock: ManualClock) -> None:
    remembered = await kv.grant(10)
    await clock.advance(8)
    lease = NodeLease(kv, clock)
    assert await lease.acquire(remembered) is True
    assert lease.lease_id == remembered
    await clock.advance(8)
    assert await kv.keep_alive(remembered) == 10


async def test_a_remembered_lease_that_ended_is_replaced_by_a_new_id(kv: MemoryKeyValue, clock: ManualClock) -> None:
    remembered = await kv.grant(10)
    await clock.advance(11)
    lease = NodeLease(kv, clock)
    assert await lease.acquire(remembered) is False
    assert lease.lease_id not in (0, remembered)


async def test_an_outage_at_start_changes_nothing_and_may_be_tried_again(
    kv: MemoryKeyValue, clock: ManualClock
) -> None:
    remembered = await kv.grant(10)
    lease = NodeLease(kv, clock)
    kv.fail_next("keep_alive")
    with pytest.raises(UnavailableError):
        await lease.acquire(remembered)
    assert lease.lease_id == 0
    assert await lease.acquire(remembered) is True


async def test_it_is_renewed_every_fifth_of_its_ttl(kv: MemoryKeyValue, clock: ManualClock) -> None:
    lease = NodeLease(kv, clock, ttl=10)
    await lease.acquire(None)
    async with renewing(lease):
        for _ in range(20):
            await clock.asleep()
            assert lease.last_renewal_sent == clock.now
            await clock.advance(2)
        await clock.asleep()
    assert not lease.lost.is_set()


async def test_a_short_lease_is_renewed_sooner(kv: MemoryKeyValue, clock: ManualClock) -> None:
    lease = NodeLease(kv, clock, ttl=2)
    await lease.acquire(None)
    async with renewing(lease):
        for _ in range(20):
            await clock.asleep()
            await clock.advance(0.4)
        await clock.asleep()
        assert lease.last_renewal_sent == clock.now
        assert not lease.lost.is_set()


async def test_an_outage_is_retried_soon_and_loses_nothing(kv: MemoryKeyValue, clock: ManualClock) -> None:
    lease = NodeLease(kv, clock, ttl=10)
    await lease.acquire(None)
    started = clock.now
    async with renewing(lease):
        await clock.asleep()
        kv.outage = True
        await clock.advance(2)
        for _ in range(4):
            await clock.asleep()
            assert lease.last_renewal_sent == started
            assert not lease.lost.is_set()
            await clock.advance(0.5)
        await clock.asleep()
        kv.outage = False
        await clock.advance(0.5)
        await clock.asleep()
        assert lease.last_renewal_sent == clock.now


async def test_what_counts_is_when_a_renewal_was_sent_not_when_it_was_answered(clock: ManualClock) -> None:
    class SlowKeyValue(MemoryKeyValue):
        async def keep_alive(self, lease: int) -> int:
            left = await super().keep_alive(lease)
            clock.now += 0.7
            return left

    lease = NodeLease(SlowKeyValue(clock), clock, ttl=10)
    await lease.acquire(None)
    async with renewing(lease):
        await clock.asleep()
        await clock.advance(2)
        sent = clock.now
        await clock.asleep()
        assert lease.last_renewal_sent == sent == clock.now - 0.7


async def test_a_lease_that_the_store_ended_is_lost_and_renewal_ends(kv: MemoryKeyValue, clock: ManualClock) -> None:
    lease = NodeLease(kv, clock, ttl=10)
    await lease.acquire(None)
    async with renewing(lease) as task:
        await clock.asleep()
        kv.expire(lease.lease_id)
        await clock.advance(2)
        async with asyncio.timeout(WITHIN):
            await lease.lost.wait()
            await task


async def test_after_a_loss_it_goes_on_with_a_new_id(kv: MemoryKeyValue, clock: ManualClock) -> None:
    lease = NodeLease(kv, clock, ttl=10)
    await lease.acquire(None)
    old = lease.lease_id
    kv.expire(old)
    lease.lost.set()
    await lease.acquire(None)
    assert lease.lease_id != old
    assert not lease.lost.is_set()


async def test_a_released_lease_takes_its_keys_along(kv: MemoryKeyValue, clock: ManualClock) -> None:
    lease = NodeLease(kv, clock)
    await lease.acquire(None)
    await kv.txn([], [Put("k", b"", lease.lease_id)])
    await lease.release()
    assert await kv.get("k") is None
