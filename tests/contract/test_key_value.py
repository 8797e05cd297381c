"""The contract of `KeyValue`: reads, transactions and ranges, over the memory store and a real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cloudclaw.coordination.port import (
    MAX_OPERATIONS,
    Absent,
    CompactedError,
    CreateIs,
    Delete,
    Exists,
    Guard,
    ModIs,
    Put,
    ValueIs,
)
from cloudclaw.errors import OutOfRangeError
from tests.support.etcd_server import running_etcd
from tests.support.kv import WITHIN, Store, put, store_on

etcd_server = pytest.fixture(scope="module")(running_etcd)


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.etcd)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    async with store_on(request) as store:
        yield store


# -- get and revisions --


async def test_a_key_that_is_not_there_is_none(store: Store) -> None:
    assert await store.kv.get("nothing") is None


async def test_a_key_shows_where_it_was_created_and_last_changed(store: Store) -> None:
    created = await put(store, "k", value=b"1")
    changed = await put(store, "k", value=b"2")
    entry = await store.kv.get("k")
    assert entry is not None
    assert (entry.key, entry.value, entry.create_revision, entry.mod_revision, entry.lease) == (
        "k",
        b"2",
        created,
        changed,
        0,
    )
    assert changed > created


async def test_a_key_made_again_has_a_higher_create_revision(store: Store) -> None:
    first = await put(store, "k")
    await store.kv.txn([], [Delete("k")])
    second = await put(store, "k")
    entry = await store.kv.get("k")
    assert entry is not None
    assert entry.create_revision == second > first


# -- transactions --


async def test_writes_of_one_transaction_share_its_revision(store: Store) -> None:
    await put(store, "gone")
    result = await store.kv.txn([], [Put("a", b""), Put("b", b""), Delete("gone")])
    a, b = await store.kv.get("a"), await store.kv.get("b")
    assert a is not None
    assert b is not None
    assert a.mod_revision == b.mod_revision == result.revision
    assert await store.kv.get("gone") is None


async def guards_of(store: Store, *, holding: bool) -> list[Guard]:
    """One guard of each kind; each holds, or each does not, for "k" (there) and "none" (not)."""
    await put(store, "k", value=b"1")
    await put(store, "k", value=b"2")
    entry = await store.kv.get("k")
    assert entry is not None
    if holding:
        return [
            Exists("k"),
            Absent("none"),
            ModIs("k", entry.mod_revision),
            ModIs("none", 0),
            CreateIs("k", entry.create_revision),
            CreateIs("none", 0),
            ValueIs("k", b"2"),
        ]
    return [
        Exists("none"),
        Absent("k"),
        ModIs("k", entry.create_revision),
        ModIs("k", 0),
        ModIs("none", entry.mod_revision),
        CreateIs("k", entry.mod_revision),
        CreateIs("none", entry.create_revision),
        ValueIs("k", b"1"),
        ValueIs("none", b""),
    ]


async def test_guards_of_every_kind_let_the_writes_through(store: Store) -> None:
    guards = await guards_of(store, holding=True)
    assert (await store.kv.txn(guards, [Put("written", b"")])).succeeded
    assert await store.kv.get("written") is not None


async def test_a_violated_guard_of_any_kind_lets_nothing_through(store: Store) -> None:
    holding = await guards_of(store, holding=True)
    for guard in await guards_of(store, holding=False):
        # The values of the keys moved on between the two calls, so only what holds by name is beside it.
        result = await store.kv.txn([holding[0], holding[1], guard], [Put("written", b""), Delete("k")])
        assert not result.succeeded, guard
    assert await store.kv.get("written") is None
    assert await store.kv.get("k") is not None


async def test_a_refused_transaction_reads_what_was_asked_for(store: Store) -> None:
    revision = await put(store, "a", value=b"1")
    result = await store.kv.txn([Absent("a")], [Put("a", b"2")], read_on_failure=["none", "a"])
    assert not result.succeeded
    assert [(entry.key, entry.value, entry.mod_revision) for entry in result.read] == [("a", b"1", revision)]
    assert result.revision == revision


async def test_a_transaction_that_changes_nothing_makes_no_revision(store: Store) -> None:
    before = await put(store, "a")
    assert (await store.kv.txn([Exists("a")], [])).revision == before
    assert (await store.kv.txn([], [Delete("none")])).revision == before
    assert await put(store, "a") == before + 1


async def test_one_of_two_transactions_at_once_wins(store: Store) -> None:
    results = await asyncio.gather(*(store.kv.txn([Absent("k")], [Put("k", b"%d" % n)]) for n in range(20)))
    assert [result.succeeded for result in results].count(True) == 1
    entry = await store.kv.get("k")
    assert entry is not None
    assert results[int(entry.value)].succeeded


async def test_a_key_written_twice_is_refused(store: Store) -> None:
    with pytest.raises(ValueError):
        await store.kv.txn([], [Put("a", b""), Delete("a")])
    with pytest.raises(ValueError):
        await store.kv.txn([], [Put("a", b""), Put("a", b"")])
    assert await store.kv.get("a") is None


async def test_a_transaction_of_the_largest_size_goes_through_and_a_larger_one_does_not(store: Store) -> None:
    await put(store, *(f"k{n:03}" for n in range(MAX_OPERATIONS)))
    assert len((await store.kv.range("k")).entries) == MAX_OPERATIONS
    with pytest.raises(ValueError):
        await put(store, *(f"l{n:03}" for n in range(MAX_OPERATIONS + 1)))
    assert not (await store.kv.range("l")).entries


# -- ranges --


async def test_a_range_is_what_begins_with_the_prefix_by_key(store: Store) -> None:
    for name in ("p/b", "p/a", "p", "p/", "q", "o", "p0"):
        await put(store, name)
    result = await store.kv.range("p/")
    assert [entry.key for entry in result.entries] == ["p/", "p/a", "p/b"]
    assert not result.more
    last = await store.kv.get("p0")
    assert last is not None
    assert result.revision == last.mod_revision


async def test_an_empty_prefix_is_everything(store: Store) -> None:
    await put(store, "a", "z", "ü")
    assert [entry.key for entry in (await store.kv.range("")).entries] == ["a", "z", "ü"]


async def test_a_limited_range_says_whether_there_is_more(store: Store) -> None:
    await put(store, "p/1", "p/2", "p/3")
    first = await store.kv.range("p/", limit=2)
    assert [entry.key for entry in first.entries] == ["p/1", "p/2"]
    assert first.more
    rest = await store.kv.range("p/", start_after="p/2", limit=2)
    assert [entry.key for entry in rest.entries] == ["p/3"]
    assert not rest.more
    assert not (await store.kv.range("p/", limit=3)).more
    assert not (await store.kv.range("p/", start_after="p/3")).entries
    assert len((await store.kv.range("p/", start_after="a")).entries) == 3


async def test_a_range_of_many_pages_is_whole_and_at_one_revision(store: Store) -> None:
    names = [f"p/{n:05}" for n in range(1200)]
    for begin in range(0, len(names), 100):
        await put(store, *names[begin : begin + 100])
    result = await store.kv.range("p/")
    assert [entry.key for entry in result.entries] == names
    assert [entry.key for entry in (await store.kv.range("p/", limit=1100)).entries] == names[:1100]
    assert result.revision == max(entry.mod_revision for entry in result.entries)
    newest = await store.kv.range("p/", newest_first=True)
    assert sorted(entry.key for entry in newest.entries) == names
    assert newest.entries[0].create_revision > newest.entries[-1].create_revision


async def test_a_range_of_the_past_shows_what_was(store: Store) -> None:
    then = await put(store, "p/a", "p/b", value=b"1")
    await put(store, "p/a", value=b"2")
    await store.kv.txn([], [Delete("p/b"), Put("p/c", b"")])
    past = await store.kv.range("p/", revision=then)
    assert [(entry.key, entry.value) for entry in past.entries] == [("p/a", b"1"), ("p/b", b"1")]
    assert past.revision == then


async def test_a_range_of_the_future_is_refused(store: Store) -> None:
    now = await put(store, "a")
    with pytest.raises(OutOfRangeError):
        await store.kv.range("a", revision=now + 1000)


async def test_a_range_from_before_a_compaction_is_refused(store: Store) -> None:
    first = await put(store, "a", value=b"1")
    await put(store, "a", value=b"2")
    third = await put(store, "a", value=b"3")
    await store.compact(third)
    with pytest.raises(CompactedError) as refused:
        await store.kv.range("a", revision=first)
    assert first < refused.value.compact_revision <= third
    assert (await store.kv.range("a", revision=third)).entries[0].value == b"3"


async def test_newest_first_sorts_by_creation_and_pages_backwards(store: Store) -> None:
    created = {name: await put(store, name) for name in ("p/b", "p/c", "p/a")}
    await put(store, "p/b", value=b"changed")
    newest = await store.kv.range("p/", newest_first=True)
    assert [entry.key for entry in newest.entries] == ["p/a", "p/c", "p/b"]
    page = await store.kv.range("p/", newest_first=True, limit=2)
    assert [entry.key for entry in page.entries] == ["p/a", "p/c"]
    assert page.more
    rest = await store.kv.range("p/", newest_first=True, limit=2, created_before=created["p/c"])
    assert [entry.key for entry in rest.entries] == ["p/b"]
    assert not rest.more
    assert not (await store.kv.range("p/", created_before=1)).entries


async def test_keys_alone_come_without_values(store: Store) -> None:
    revision = await put(store, "a", value=b"large")
    [entry] = (await store.kv.range("a", keys_only=True)).entries
    assert (entry.key, entry.value, entry.mod_revision) == ("a", b"", revision)


async def test_the_size_grows_with_what_is_stored(store: Store) -> None:
    before, _ = await store.kv.database_size()
    for n in range(20):
        await put(store, f"a{n}", value=b"x" * 50_000)
    async with asyncio.timeout(WITHIN):
        while (await store.kv.database_size())[0] < before + 500_000:
            await put(store, "etcd counts its pages from time to time, when it writes")
