"""The contract of `KeyValue`: watches and leases, over the memory store and a real etcd."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from cloudclaw.coordination.port import (
    CompactedError,
    Delete,
    LeaseLostError,
    Op,
    Put,
)
from tests.support.etcd_server import running_etcd
from tests.support.kv import WITHIN, Store, collect, put, store_on

etcd_server = pytest.fixture(scope="module")(running_etcd)


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.etcd)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    async with store_on(request) as store:
        yield store


# -- watches --


async def test_a_watch_shows_every_change_after_its_revision_once_and_in_order(store: Store) -> None:
    before = await put(store, "p/before")
    revisions = [
        await put(store, "p/a", value=b"1"),
        await put(store, "p/a", value=b"2"),
        (await store.kv.txn([], [Delete("p/a")])).revision,
        await put(store, "p/a", value=b"3"),
    ]
    events = await collect(store.kv, "p/", before, 4)
    assert [(event.op, event.entry.value, event.entry.mod_revision) for event in events] == [
        (Op.PUT, b"1", revisions[0]),
        (Op.PUT, b"2", revisions[1]),
        (Op.DELETE, b"", revisions[2]),
        (Op.PUT, b"3", revisions[3]),
    ]
    assert [event.entry.create_revision for event in events if event.op is Op.PUT] == [
        revisions[0],
        revisions[0],
        revisions[3],
    ]


async def test_a_watch_waits_for_changes_to_come_and_ignores_other_keys(store: Store) -> None:
    now = await put(store, "p/old")
    async with asyncio.TaskGroup() as group:
        seen = group.create_task(collect(store.kv, "p/", now, 2))
        for name in ("q", "p/1", "p0", "p/2"):
            await put(store, name)
    assert [event.entry.key for event in seen.result()] == ["p/1", "p/2"]


async def test_a_batch_holds_whole_revisions_of_a_long_backlog(store: Store) -> None:
    start = await put(store, "start")
    revisions = [await put(store, *(f"p/{n}" for n in range(3))) for _ in range(1500)]
    seen: list[int] = []
    async with asyncio.timeout(WITHIN), contextlib.aclosing(store.kv.watch("p/", start)) as batches:
        async for batch in batches:
            in_batch = [event.entry.mod_revision for event in batch.events]
            assert batch.events
            assert in_batch[-1] == batch.revision
            for revision in set(in_batch):
                assert in_batch.count(revision) == 3
            seen.extend(sorted(set(in_batch)))
            if seen[-1] == revisions[-1]:
                break
    assert seen == revisions


async def test_two_watches_see_the_same(store: Store) -> None:
    start = await put(store, "p/0")
    async with asyncio.TaskGroup() as group:
        both = [group.create_task(collect(store.kv, "p/", start, 10)) for _ in range(2)]
        for n in range(10):
            await put(store, f"p/{n}")
    assert both[0].result() == both[1].result()


async def test_a_watch_from_before_a_compaction_says_so(store: Store) -> None:
    start = await put(store, "p/a")
    for _ in range(5):
        last = await put(store, "p/a")
    await store.compact(last)
    with pytest.raises(CompactedError) as refused:
        await collect(store.kv, "p/", start, 1)
    assert refused.value.compact_revision == last


async def test_a_watch_that_is_up_to_date_outlives_a_compaction(store: Store) -> None:
    start = await put(store, "p/a")
    async with asyncio.timeout(WITHIN), contextlib.aclosing(store.kv.watch("p/", start)) as batches:
        second = await put(store, "p/a", value=b"2")
        assert (await anext(batches)).revision == second
        await store.compact(second)
        third = await put(store, "p/a", value=b"3")
        batch = await anext(batches)
        while not batch.events:
            batch = await anext(batches)
        assert [event.entry.mod_revision for event in batch.events] == [third]


# -- leases --


async def test_keys_on_a_lease_go_when_it_is_revoked(store: Store) -> None:
    lease = await store.kv.grant(60)
    await put(store, "a", "b", lease=lease)
    durable = await put(store, "c")
    entry = await store.kv.get("a")
    assert entry is not None
    assert entry.lease == lease
    await store.kv.revoke(lease)
    events = await collect(store.kv, "", durable, 2)
    assert sorted((event.op, event.entry.key) for event in events if event.op is Op.DELETE) == [
        (Op.DELETE, "a"),
        (Op.DELETE, "b"),
    ]
    assert [entry.key for entry in (await store.kv.range("")).entries] == ["c"]


async def test_keys_on_a_lease_go_when_it_runs_out(store: Store) -> None:
    lease = await store.kv.grant(1)
    await put(store, "a", lease=lease)
    await store.lapse(lease)
    assert await store.kv.get("a") is None
    with pytest.raises(LeaseLostError):
        await store.kv.keep_alive(lease)


async def test_a_renewed_lease_has_its_time_again(store: Store) -> None:
    lease = await store.kv.grant(60)
    assert await store.kv.keep_alive(lease) == 60


async def test_a_lease_that_is_gone_cannot_be_renewed_and_is_revoked_without_error(store: Store) -> None:
    lease = await store.kv.grant(60)
    await store.kv.revoke(lease)
    with pytest.raises(LeaseLostError):
        await store.kv.keep_alive(lease)
    await store.kv.revoke(lease)


async def test_a_write_on_a_lease_that_is_gone_writes_nothing(store: Store) -> None:
    lease = await store.kv.grant(60)
    await store.kv.revoke(lease)
    with pytest.raises(LeaseLostError):
        await store.kv.txn([], [Put("other", b""), Put("a", b"", lease)])
    assert not (await store.kv.range("")).entries


async def test_a_key_put_again_without_its_lease_outlives_it(store: Store) -> None:
    lease = await store.kv.grant(60)
    created = await put(store, "a", "b", lease=lease)
    await put(store, "a")
    await store.kv.revoke(lease)
    [entry] = (await store.kv.range("")).entries
    assert (entry.key, entry.lease, entry.create_revision) == ("a", 0, created)


async def test_a_key_moves_from_lease_to_lease(store: Store) -> None:
    first, second = await store.kv.grant(60), await store.kv.grant(60)
    await put(store, "a", lease=first)
    await put(store, "a", lease=second)
    await store.kv.revoke(first)
    assert await store.kv.get("a") is not None
    await store.kv.revoke(second)
    assert await store.kv.get("a") is None


async def test_leases_differ(store: Store) -> None:
    assert len({await store.kv.grant(60) for _ in range(5)}) == 5
