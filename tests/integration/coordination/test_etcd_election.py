"""Election and node lease on a real etcd that is killed, and over connections that break."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from cloudclaw.clock import SystemClock
from cloudclaw.coordination.election import Election, Leadership
from cloudclaw.coordination.etcd import EtcdKeyValue
from cloudclaw.coordination.lease import NodeLease
from cloudclaw.coordination.port import KeyValue, Put
from tests.integration.coordination.breaking_proxy import BreakingProxy
from tests.support.etcd_server import EtcdServer
from tests.support.kv import WITHIN

pytestmark = pytest.mark.etcd

TTL = 2


@contextlib.asynccontextmanager
async def candidate(
    kv: KeyValue, address: str
) -> AsyncIterator[tuple[Election, asyncio.Queue[Leadership], asyncio.Task[None]]]:
    election = Election(kv, SystemClock(), "scheduler", address, ttl=TTL)
    terms: asyncio.Queue[Leadership] = asyncio.Queue()

    async def lead(leadership: Leadership) -> None:
        terms.put_nowait(leadership)
        await leadership.lost.wait()

    task = asyncio.create_task(election.run(lead))
    try:
        yield election, terms, task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_leader_that_is_cut_off_is_replaced_and_can_write_nothing() -> None:
    async with EtcdServer() as server, BreakingProxy(server.endpoint) as proxy, asyncio.timeout(60):
        cut, whole = EtcdKeyValue([proxy.address], None, SystemClock()), server.open()
        async with candidate(cut, "a:1") as (_, a_terms, _), contextlib.AsyncExitStack() as stack:
            first = await a_terms.get()
            b, b_terms, _ = await stack.enter_async_context(candidate(whole, "b:1"))
            while b.leader() != ("a:1", first.term):
                await b.changed()
            await proxy.shut()
            second = await b_terms.get()
            assert second.term > first.term
            assert b.leader() == ("b:1", second.term)
            await first.lost.wait()
            proxy.open()
            assert not (await whole.txn([first.guard()], [Put("k", b"")])).succeeded
            assert (await whole.txn([second.guard()], [Put("k", b"")])).succeeded
        await cut.close()
        await whole.close()


async def test_a_leader_goes_on_after_etcd_was_killed_and_started() -> None:
    async with EtcdServer() as server, asyncio.timeout(60):
        kv = server.open()
        async with candidate(kv, "a:1") as (election, terms, _):
            first = await terms.get()
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            assert (await txn_once_possible(kv, first)) or (await terms.get()).term > first.term
            assert election.leader() is not None
        await kv.close()


async def test_a_stopped_leader_is_followed_at_once() -> None:
    async with EtcdServer() as server, asyncio.timeout(60):
        kv = server.open()
        async with candidate(kv, "a:1") as (_, a_terms, a_task), contextlib.AsyncExitStack() as stack:
            first = await a_terms.get()
            b, b_terms, _ = await stack.enter_async_context(candidate(kv, "b:1"))
            while b.leader() is None:
                await b.changed()
            began = SystemClock().boottime()
            a_task.cancel()
            assert (await b_terms.get()).term > first.term
            assert SystemClock().boottime() - began < TTL
        await kv.close()


async def test_a_leader_killed_at_the_same_address_leads_again_within_a_second() -> None:
    async with EtcdServer() as server, asyncio.timeout(60):
        dead, kv = server.open(), server.open()
        # What a leader leaves behind that was killed: its key, on a lease with much time left.
        abandoned = Election(dead, SystemClock(), "scheduler", "a:1", ttl=60)
        leading = asyncio.Event()

        async def lead(_: Leadership) -> None:
            leading.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(abandoned.run(lead))
        await leading.wait()
        await dead.close()
        began = SystemClock().boottime()
        async with candidate(kv, "a:1") as (_, terms, _):
            await terms.get()
            assert SystemClock().boottime() - began < 1
        task.cancel()
        await asyncio.wait([task])
        await kv.close()


async def test_a_node_lease_outlives_breaks_shorter_than_its_ttl() -> None:
    async with EtcdServer() as server, BreakingProxy(server.endpoint) as proxy, asyncio.timeout(60):
        kv = EtcdKeyValue([proxy.address], None, SystemClock())
        lease = NodeLease(kv, SystemClock(), ttl=5)
        await lease.acquire(None)
        renewing = asyncio.create_task(lease.run())
        await proxy.shut()
        broken_at = lease.last_renewal_sent
        proxy.open()
        while lease.last_renewal_sent == broken_at:
            await kv_answers(kv)
        assert not lease.lost.is_set()
        renewing.cancel()
        await asyncio.wait([renewing])
        again = NodeLease(kv, SystemClock(), ttl=5)
        assert await again.acquire(lease.lease_id) is True
        await again.release()
        third = NodeLease(kv, SystemClock(), ttl=5)
        assert await third.acquire(lease.lease_id) is False
        await kv.close()


async def kv_answers(kv: KeyValue) -> None:
    """One answer, whatever it takes."""
    async with asyncio.timeout(WITHIN):
        while True:
            with contextlib.suppress(Exception):
                await kv.get("k")
                return


async def txn_once_possible(kv: KeyValue, leadership: Leadership) -> bool:
    """Whether the leadership's guard still holds, as soon as the store answers."""
    await kv_answers(kv)
    return (await kv.txn([leadership.guard()], [Put("k", b"")])).succeeded
