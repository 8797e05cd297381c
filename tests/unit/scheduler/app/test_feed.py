"""Followers of changes."""

from __future__ import annotations

import asyncio

import pytest

from cloudclaw.clock import SystemClock
from cloudclaw.coordination import life
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.coordination.records import Plan
from cloudclaw.coordination.transactions import Transactions
from cloudclaw_scheduler.app import feed as module
from cloudclaw_scheduler.app.feed import Feed
from cloudclaw_scheduler.app.mirror import Mirror
from tests.unit.scheduler.plane import soon


async def test_a_slow_stream_goes_on_from_etcd_and_misses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKLOG", 3)
    monkeypatch.setattr(module, "RING", 3)
    kv = MemoryKeyValue(SystemClock())
    mirror = Mirror(kv, SystemClock())
    feed = Feed(mirror, kv)
    work = asyncio.create_task(mirror.run())
    await soon(mirror.loaded.wait())
    transactions = Transactions(kv)

    async def submit(task: str, tenant: str = "acme") -> int:
        record = life.queued(tenant=tenant, task=task, plan=Plan(), now=1.0, op_id=task)
        return (await transactions.submit(record, b"s")).task.mod_revision

    start = mirror.state.revision
    stream = feed.watch("acme", "", start)
    await mirror.reach(await submit("task-0"))
    seen = [(await soon(anext(stream))).record.task]
    for index in range(1, 20):
        await submit("task-x" + str(index), tenant="other")
        await mirror.reach(await submit(f"task-{index}"))
    seen += [(await soon(anext(stream))).record.task for _ in range(19)]
    assert seen == [f"task-{i}" for i in range(20)]
    later = feed.watch("acme", "task-5", start)
    assert (await soon(anext(later))).record.task == "task-5"
    await stream.aclose()
    await later.aclose()
    assert not feed._streams
    work.cancel()
