"""The etcd store through kill -9, stops, resets, compactions and a full disk quota. Each test has its own server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from cloudclaw.clock import SystemClock
from cloudclaw.coordination.etcd import EtcdKeyValue
from cloudclaw.coordination.port import CompactedError, Exists, LeaseLostError, Put, ValueIs
from cloudclaw.errors import UnavailableError
from tests.integration.coordination.breaking_proxy import BreakingProxy
from tests.support.etcd_server import EtcdServer
from tests.support.kv import WITHIN, collect

pytestmark = pytest.mark.etcd


@contextlib.asynccontextmanager
async def opened(server: EtcdServer) -> AsyncIterator[EtcdKeyValue]:
    kv = server.open()
    try:
        yield kv
    finally:
        await kv.close()


async def put_again_and_again(kv: EtcdKeyValue, key: str, value: bytes) -> int:
    """Write until an answer comes; more than one of the tries may have arrived."""
    async with asyncio.timeout(WITHIN):
        while True:
            try:
                return (await kv.txn([], [Put(key, value)])).revision
            except UnavailableError:
                continue


async def test_a_watch_goes_on_through_kills_without_gap_or_repetition() -> None:
    async with EtcdServer() as server, opened(server) as kv:
        start = (await kv.txn([], [Put("p/start", b"")])).revision
        acknowledged: list[int] = []
        seen: list[int] = []
        written = asyncio.Event()

        async def write() -> None:
            for n in range(300):
                revision = await put_again_and_again(kv, "p/k", b"%d" % n)
                acknowledged.append(revision)
                written.set()

        async def watch() -> None:
            async with contextlib.aclosing(kv.watch("p/", start)) as batches:
                async for batch in batches:
                    seen.extend(event.entry.mod_revision for event in batch.events)
                    if any(event.entry.key == "p/end" for event in batch.events):
                        return

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            writing = group.create_task(write())
            for part in (60, 120, 180):
                while len(acknowledged) < part:
                    written.clear()
                    await written.wait()
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
            await writing
            end = await put_again_and_again(kv, "p/end", b"")
            await watching
        assert seen == sorted(set(seen)), "a revision came twice or out of order"
        assert set(acknowledged) <= set(seen), "an acknowledged write was not seen"
        assert seen[-1] == end


async def test_a_watch_whose_connection_breaks_in_its_backlog_resumes_where_it_was() -> None:
    async with EtcdServer() as server, opened(server) as direct:
        start = (await direct.txn([], [Put("start", b"")])).revision
        written = [(await direct.txn([], [Put("p/k", bytes(2000))])).revision for _ in range(3000)]
        async with BreakingProxy(server.endpoint, [900_000] * 6) as proxy:
            kv = EtcdKeyValue([proxy.address], None, SystemClock())
            events = await collect(kv, "p/", start, len(written))
            await kv.close()
        assert [event.entry.mod_revision for event in events] == written
        assert proxy.resets >= 3


async def test_revisions_are_whole_however_large_their_backlog() -> None:
    async with EtcdServer() as server, opened(server) as kv:
        start = (await kv.txn([], [Put("start", b"")])).revision
        for _ in range(60):
            await kv.txn([], [Put(f"p/{n}", bytes(40_000)) for n in range(20)])
        seen = 0
        async with asyncio.timeout(WITHIN), contextlib.aclosing(kv.watch("p/", start)) as batches:
            async for batch in batches:
                revisions = [event.entry.mod_revision for event in batch.events]
                assert all(revisions.count(revision) == 20 for revision in set(revisions))
                seen += len(set(revisions))
                if seen == 60:
                    break


async def test_a_watch_compacted_while_it_was_away_says_so() -> None:
    async with EtcdServer() as server, opened(server) as direct, BreakingProxy(server.endpoint) as proxy:
        start = (await direct.txn([], [Put("p/k", b"0")])).revision
        kv = EtcdKeyValue([proxy.address], None, SystemClock())
        async with asyncio.timeout(WITHIN), contextlib.aclosing(kv.watch("p/", start)) as batches:
            first = await direct.txn([], [Put("p/k", b"1")])
            assert (await anext(batches)).revision == first.revision
            await proxy.shut()
            for n in range(50):
                last = await direct.txn([], [Put("p/k", b"%d" % n)])
            await server.compact(last.revision)
            proxy.open()
            with pytest.raises(CompactedError) as refused:
                await anext(batches)
            assert refused.value.compact_revision == last.revision
        await kv.close()


async def test_progress_marks_come_to_a_watch_with_nothing_to_say() -> None:
    async with EtcdServer() as server, opened(server) as kv:
        start = (await kv.txn([], [Put("start", b"")])).revision
        other = (await kv.txn([], [Put("other", b"")])).revision
        async with asyncio.timeout(WITHIN), contextlib.aclosing(kv.watch("p/", start)) as batches:
            async for batch in batches:
                assert not batch.events
                if batch.revision == other:
                    break


async def test_a_stopped_etcd_is_unavailable_within_the_deadlines_and_useful_again_at_once() -> None:
    clock = SystemClock()
    async with EtcdServer() as server, opened(server) as kv:
        lease = await kv.grant(60)
        await kv.txn([], [Put("k", b"1")])
        server.pause()
        try:
            began = clock.boottime()
            with pytest.raises(UnavailableError):
                await kv.keep_alive(lease)
            assert clock.boottime() - began < 2
            began = clock.boottime()
            with pytest.raises(UnavailableError):
                await kv.get("k")
            assert clock.boottime() - began < 4
            with pytest.raises(UnavailableError):
                await kv.txn([ValueIs("k", b"1")], [Put("k", b"2")])
        finally:
            server.resume()
        async with asyncio.timeout(WITHIN):
            while True:
                with contextlib.suppress(UnavailableError):
                    entry = await kv.get("k")
                    break
        # Its outcome was unknown; whichever it is, it is one of the two and stays so.
        assert entry is not None
        assert entry.value in (b"1", b"2")
        assert await kv.keep_alive(lease) == 60


async def test_it_is_back_within_two_seconds_after_an_outage_of_any_length() -> None:
    clock = SystemClock()
    async with EtcdServer() as server, opened(server) as kv:
        await kv.txn([], [Put("k", b"")])
        await asyncio.to_thread(server.kill)
        for _ in range(4):
            with pytest.raises(UnavailableError):
                await kv.get("k")
        await asyncio.to_thread(server.start)
        began = clock.boottime()
        assert await kv.get("k") is not None
        assert clock.boottime() - began < 2


async def test_leases_and_their_keys_outlive_a_kill() -> None:
    async with EtcdServer() as server, opened(server) as kv:
        lease, short = await kv.grant(60), await kv.grant(60)
        await kv.txn([], [Put("k", b"", lease), Put("s", b"", short)])
        await kv.revoke(short)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(WITHIN):
            while True:
                with contextlib.suppress(UnavailableError):
                    assert await kv.keep_alive(lease) == 60
                    break
        assert await kv.get("k") is not None
        with pytest.raises(LeaseLostError):
            await kv.keep_alive(short)


async def test_a_full_etcd_refuses_writes_with_a_reason_and_still_reads() -> None:
    async with EtcdServer(quota_bytes=16 << 20) as server, opened(server) as kv:
        await kv.txn([], [Put("k", b"")])
        with pytest.raises(UnavailableError) as refused:
            for n in range(100):
                await kv.txn([], [Put(f"fill/{n}", bytes(1 << 20))])
        assert refused.value.reason == "COORDINATION_FULL"
        assert await kv.get("k") is not None
        used, limit = await kv.database_size()
        assert limit == 16 << 20
        assert used > 0


async def test_one_dead_endpoint_of_two_is_no_outage() -> None:
    async with EtcdServer() as server, EtcdServer() as dead:
        await asyncio.to_thread(dead.kill)
        kv = EtcdKeyValue([dead.endpoint, server.endpoint], None, SystemClock())
        try:
            for n in range(20):
                assert (await kv.txn([], [Put("k", b"%d" % n)])).succeeded
        finally:
            await kv.close()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_an_endpoint_may_be_a_name(host: str) -> None:
    async with EtcdServer() as server:
        kv = EtcdKeyValue([f"{host}:{server.endpoint.rpartition(':')[2]}"], None, SystemClock())
        try:
            assert (await kv.txn([], [Put("k", b"")])).succeeded
            assert (await kv.txn([Exists("k")], [])).succeeded
        finally:
            await kv.close()
