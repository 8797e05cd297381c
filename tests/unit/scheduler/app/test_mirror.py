"""The image of etcd."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from cloudclaw.clock import SystemClock
from cloudclaw.coordination import keys, life
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.coordination.port import Put
from cloudclaw.coordination.records import NodeRecord, Plan, PoolSlots, TaskState, WorkspaceRecord
from cloudclaw.coordination.transactions import Transactions
from cloudclaw.errors import UnavailableError
from cloudclaw_scheduler.app import mirror as module
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.state import Change, Kind
from tests.unit.scheduler.plane import soon, until


class Seen:
    """A listener that remembers."""

    def __init__(self, mirror: Mirror) -> None:
        self.kinds: list[Kind] = []
        self.reloads = 0
        mirror.subscribe(self)

    def changed(self, changes: Sequence[Change]) -> None:
        self.kinds += [change.kind for change in changes]

    def reloaded(self) -> None:
        self.reloads += 1


@pytest_asyncio.fixture
async def kv() -> MemoryKeyValue:
    return MemoryKeyValue(SystemClock())


@contextlib.asynccontextmanager
async def running(kv: MemoryKeyValue) -> AsyncIterator[Mirror]:
    mirror = Mirror(kv, SystemClock())
    work = asyncio.create_task(mirror.run())
    await soon(mirror.loaded.wait())
    yield mirror
    assert not work.done()
    work.cancel()


async def submit(kv: MemoryKeyValue, task: str, tenant: str = "acme", **plan: object) -> int:
    record = life.queued(tenant=tenant, task=task, plan=Plan(**plan), now=1.0, op_id=task)  # type: ignore[arg-type]
    return (await Transactions(kv).submit(record, b"spec")).task.mod_revision


async def test_what_was_there_and_what_comes_are_shown_alike(kv: MemoryKeyValue) -> None:
    await submit(kv, "task-a", priority=3)
    async with running(kv) as mirror:
        seen = Seen(mirror)
        await mirror.reach(await submit(kv, "task-b"))
        state = mirror.state
        assert [t.record.task for t in state.tenants["acme"].newest()] == ["task-b", "task-a"]
        assert (state.queue["acme", "task-a"].priority, state.queued_by["default", "acme"]) == (3, 2)
        assert state.queue["acme", "task-b"].order == state.tenants["acme"].records["task-b"].create_revision
        assert state.spec(("acme", "task-b")) == b"spec"
        assert set(seen.kinds) == {Kind.TASK, Kind.QUEUED}


async def test_a_transaction_is_seen_whole(kv: MemoryKeyValue) -> None:
    transactions = Transactions(kv)
    async with running(kv) as mirror:

        class Check(Seen):
            def changed(self, changes: Sequence[Change]) -> None:
                super().changed(changes)
                for key in mirror.state.queue:
                    task = mirror.state.task(*key)
                    assert task is not None
                    assert task.record.state is TaskState.QUEUED

        seen = Check(mirror)
        for index in range(10):
            await submit(kv, f"task-{index}")
            task = await transactions.get_task("acme", f"task-{index}")
            assert task is not None
            done = await transactions.cancel(task, life.canceled(task.record, 2.0, op_id=f"op-{index}"))
            await mirror.reach(done.mod_revision)
        assert seen.kinds.count(Kind.UNQUEUED) == 10
        assert not mirror.state.queue
        assert not mirror.state.queued_by


async def test_a_compaction_in_a_gap_makes_it_load_again(kv: MemoryKeyValue) -> None:
    async with running(kv) as mirror:
        seen = Seen(mirror)
        kv.outage = True
        kv._outage = False  # write behind the watch's back: it stands still until it is woken
        last = 0
        for index in range(5):
            last = await submit(kv, f"task-{index}")
        kv.compact(last)
        kv.outage = False
        await mirror.reach(last)
        assert len(mirror.state.tenants["acme"].records) == 5
        assert seen.reloads <= 1


async def test_an_outage_at_the_start_is_waited_for(kv: MemoryKeyValue) -> None:
    kv.outage = True
    mirror = Mirror(kv, SystemClock())
    work = asyncio.create_task(mirror.run())
    await asyncio.sleep(0)
    assert not mirror.loaded.is_set()
    kv.outage = False
    await soon(mirror.loaded.wait())
    work.cancel()


async def test_an_unreadable_value_is_left_out_and_stops_nothing(kv: MemoryKeyValue) -> None:
    async with running(kv) as mirror:
        await kv.txn([], [Put(keys.task("acme", "task-bad"), b"{")])
        await kv.txn([], [Put(keys.ROOT + "something/else", b"x")])
        await mirror.reach(await submit(kv, "task-good"))
        assert list(mirror.state.tenants["acme"].records) == ["task-good"]


async def test_nodes_workspaces_and_writers_come_and_go(kv: MemoryKeyValue) -> None:
    transactions = Transactions(kv)
    async with running(kv) as mirror:
        lease = await kv.grant(60)
        await transactions.register_node(
            NodeRecord(node="n", address="a", incarnation=0, pools=(PoolSlots(pool="gpu", slots=2, runtimes=("x",)),)),
            lease,
        )
        record = WorkspaceRecord(name="ws", created=1.0, updated=1.0, op_id="op")
        await transactions.create_workspace("acme", record)
        token = await transactions.acquire_writer("acme", "ws", "up", await kv.grant(60))
        await mirror.reach(token)
        assert mirror.state.nodes["n"].record.incarnation == 1
        assert mirror.state.writers == {("acme", "ws"): "user:up"}
        await transactions.release_writer("acme", "ws", token)
        kv.expire(lease)
        await until("they are gone", lambda: not mirror.state.nodes and not mirror.state.writers)
        assert mirror.state.pools == {"gpu": {"x"}}, "a pool that was once there stays known"


async def test_who_waits_too_long_is_told(kv: MemoryKeyValue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CATCH_UP", 0.05)
    async with running(kv) as mirror:
        with pytest.raises(UnavailableError):
            await mirror.reach(1000)
        mirror.wrote(await submit(kv, "task-a"))
        await mirror.caught_up()
        assert await mirror.sync(keys.task("acme", "task-a"))
        assert not await mirror.sync(keys.task("acme", "task-b"))
