"""What the memory store has beyond the contract: outages and leases that a test controls."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from cloudclaw.clock import SystemClock
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.coordination.port import Op, Put
from cloudclaw.errors import UnavailableError
from tests.support.kv import WITHIN, ManualClock, collect


async def test_every_call_fails_in_an_outage_and_nothing_happens() -> None:
    kv = MemoryKeyValue(ManualClock())
    lease = await kv.grant(10)
    kv.outage = True
    for call in (
        lambda: kv.get("k"),
        lambda: kv.range(""),
        lambda: kv.txn([], [Put("k", b"")]),
        lambda: kv.grant(1),
        lambda: kv.keep_alive(lease),
        lambda: kv.revoke(lease),
        kv.database_size,
    ):
        with pytest.raises(UnavailableError):
            await call()
    kv.outage = False
    assert await kv.get("k") is None
    assert await kv.keep_alive(lease) == 10


async def test_a_watch_stands_still_in_an_outage_and_misses_nothing() -> None:
    clock = ManualClock()
    kv = MemoryKeyValue(clock)
    lease = await kv.grant(10)
    start = (await kv.txn([], [Put("p/k", b"", lease)])).revision
    watching = asyncio.create_task(collect(kv, "p/", start, 1))
    kv.outage = True
    await clock.advance(11)
    kv.tick()
    kv.outage = False
    [event] = await watching
    assert event.op is Op.DELETE


async def test_one_call_fails_done_or_not() -> None:
    kv = MemoryKeyValue(ManualClock())
    kv.fail_next("txn")
    with pytest.raises(UnavailableError):
        await kv.txn([], [Put("a", b"")])
    kv.fail_next("txn", applied=True)
    with pytest.raises(UnavailableError):
        await kv.txn([], [Put("b", b"")])
    assert [entry.key for entry in (await kv.range("")).entries] == ["b"]


async def test_leases_end_by_the_clock_it_is_given() -> None:
    clock = ManualClock()
    kv = MemoryKeyValue(clock)
    lease = await kv.grant(10)
    await kv.txn([], [Put("k", b"", lease)])
    await clock.advance(9)
    assert await kv.get("k") is not None
    await kv.keep_alive(lease)
    await clock.advance(9)
    assert await kv.get("k") is not None
    await clock.advance(2)
    assert await kv.get("k") is None


async def test_a_waiting_watch_sees_a_lease_end_by_itself() -> None:
    kv = MemoryKeyValue(SystemClock())
    lease = await kv.grant(1)
    start = (await kv.txn([], [Put("k", b"", lease)])).revision
    async with asyncio.timeout(WITHIN), contextlib.aclosing(kv.watch("k", start)) as batches:
        batch = await anext(batches)
    assert [event.op for event in batch.events] == [Op.DELETE]
