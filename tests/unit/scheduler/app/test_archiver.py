"""When tasks move, in what batches, and what a failure at each step leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

from cloudclaw.clock import SystemClock
from cloudclaw.coordination import keys, life
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.coordination.port import Put
from cloudclaw.coordination.records import Plan, RequestRecord, encode
from cloudclaw.coordination.transactions import Transactions
from cloudclaw.errors import QuotaExceededError, UnavailableError
from cloudclaw.history import bundles
from cloudclaw.history.store import BundleStore
from cloudclaw_scheduler.app.archiver import Archiver, Rules
from cloudclaw_scheduler.app.history import History
from cloudclaw_scheduler.app.mirror import Mirror
from tests.support.kv import ManualClock
from tests.unit.scheduler.failing import FailingObjects
from tests.unit.scheduler.history_rig import archiver_of, end
from tests.unit.scheduler.plane import until

NOW = 10_000.0


class Scene:
    """A store, its mirror and an archiver, at a time that the test sets."""

    def __init__(self) -> None:
        self.clock = ManualClock(NOW)
        self.kv = MemoryKeyValue(self.clock)
        self.objects = FailingObjects()
        self.transactions = Transactions(self.kv)
        self.mirror = Mirror(self.kv, self.clock)
        self.history = History(BundleStore(self.objects), self.mirror, SystemClock())
        self.held: int | None = None
        self.archiver = self.replica()

    def replica(self, **rules: float) -> Archiver:
        whole = Rules(**{"retention": 100.0, "batch_window": 10.0, "request_retention": 3600.0, **rules})
        return archiver_of(self.kv, self.objects, self.mirror, self.clock, whole, lambda _: self.held)

    async def end(self, *tasks: str, tenant: str = "acme", at: float | None = None) -> None:
        for task in tasks:
            ended = self.clock.now if at is None else at
            done = await end(self.transactions, task, tenant=tenant, ended=ended)
            await self.mirror.reach(done.mod_revision)

    async def live(self, *tenants: str) -> list[str]:
        entries = [e for tenant in tenants or ("acme",) for e in (await self.kv.range(keys.task(tenant, ""))).entries]
        return [entry.key.rpartition("/")[2] for entry in entries]

    async def shown(self, *tasks: str, tenant: str = "acme") -> None:
        """Wait until the mirror holds exactly these tasks of a tenant."""
        held = self.mirror.state.tenants
        await until("the mirror shows it", lambda: set(held[tenant].records if tenant in held else ()) == set(tasks))

    async def stored(self) -> list[str]:
        return [info.name async for info in self.objects.list("history/")]


@pytest_asyncio.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    work = asyncio.create_task(scene.mirror.run())
    await scene.mirror.loaded.wait()
    yield scene
    assert not work.done()
    work.cancel()


async def test_tasks_wait_their_retention_and_then_for_a_batch(scene: Scene) -> None:
    await scene.end("task-a")
    await scene.clock.advance(99)
    assert await scene.archiver.sweep() == 0
    await scene.clock.advance(5)
    await scene.end("task-b")
    assert await scene.archiver.sweep() == 0  # due, and gathered for the window
    await scene.clock.advance(6)
    assert await scene.archiver.sweep() == 1
    assert await scene.live() == ["task-b"]
    assert await scene.kv.get(keys.spec("acme", "task-a")) is None
    found = await scene.history.find("acme", "task-a")
    assert found is not None
    assert b"task-a" in found.spec
    assert await scene.history.find("acme", "task-b") is None


async def test_a_full_bundle_goes_without_waiting(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudclaw_scheduler.app.archiver.MAX_TASKS", 3)
    await scene.end("task-a", "task-b")
    await scene.clock.advance(101)
    assert await scene.archiver.sweep() == 0
    await scene.end("task-c", "task-d", at=NOW + 1)
    assert await scene.archiver.sweep() == 3
    assert await scene.live() == ["task-d"]


async def test_tasks_that_have_not_ended_stay(scene: Scene) -> None:
    await scene.end("task-a")
    queued = life.queued(tenant="acme", task="task-b", plan=Plan(), now=1.0, op_id="b")
    await scene.mirror.reach((await scene.transactions.submit(queued, b"")).task.mod_revision)
    await scene.clock.advance(1e6)
    assert await scene.archiver.sweep() == 1
    assert await scene.live() == ["task-b"]


async def test_each_tenant_has_bundles_of_its_own(scene: Scene) -> None:
    await scene.end("task-a")
    await scene.end("task-b", tenant="globex")
    await scene.clock.advance(1000)
    assert await scene.archiver.sweep() == 2
    assert [name.split("/")[1] for name in await scene.stored()] == ["acme", "globex"]
    assert await scene.history.find("globex", "task-a") is None
    assert await scene.history.find("acme", "task-a") is not None


async def test_what_a_consumer_has_not_read_stays(scene: Scene) -> None:
    await scene.end("task-a", "task-b", "task-c")
    [first, *_] = scene.mirror.state.ended_after("acme", 0)
    await scene.clock.advance(1000)
    scene.held = first[0]
    assert await scene.archiver.sweep() == 1
    assert await scene.live() == ["task-b", "task-c"]
    assert await scene.archiver.sweep() == 0
    scene.held = None
    assert await scene.archiver.sweep() == 2


async def test_nothing_is_archived_twice_while_the_mirror_lags(scene: Scene) -> None:
    await scene.end("task-a")
    await scene.clock.advance(1000)
    assert await scene.archiver.sweep() == 1
    assert scene.mirror.state.task("acme", "task-a") is not None  # the delete has not been seen yet
    assert await scene.archiver.sweep() == 0
    await scene.shown()
    assert await scene.archiver.sweep() == 0
    assert len(await scene.stored()) == 1


async def test_while_the_object_store_is_away_tasks_stay_and_nothing_is_lost(scene: Scene) -> None:
    await scene.end("task-a")
    await scene.clock.advance(1000)
    scene.objects.away = True
    with pytest.raises(UnavailableError):
        await scene.archiver.sweep()
    assert await scene.live() == ["task-a"]
    scene.objects.away = False
    assert await scene.archiver.sweep() == 1


async def test_the_loop_waits_for_a_store_that_is_away(scene: Scene) -> None:
    await scene.end("task-a")
    await scene.clock.advance(1000)
    scene.objects.away = True
    work = asyncio.create_task(scene.archiver.run())
    for _ in range(4):
        await scene.clock.asleep()
        await scene.clock.advance(30)
    assert await scene.live() == ["task-a"]
    scene.objects.away = False
    await scene.clock.asleep()
    await scene.clock.advance(30)
    await scene.shown()
    assert not work.done()
    work.cancel()


async def test_a_full_store_of_one_tenant_keeps_nobody_else_waiting(scene: Scene) -> None:
    await scene.end("task-a")
    await scene.end("task-b", tenant="globex")
    await scene.clock.advance(1000)
    put = scene.objects.put

    async def full(name: str, data: bytes, *, if_absent: bool = False) -> bool:
        if name.startswith("history/acme/"):
            raise QuotaExceededError("full", reason="OBJECT_STORE_FULL")
        return await put(name, data, if_absent=if_absent)

    scene.objects.put = full  # type: ignore[method-assign]
    assert await scene.archiver.sweep() == 1
    assert await scene.live("acme", "globex") == ["task-a"]
    await scene.shown(tenant="globex")
    with pytest.raises(QuotaExceededError):
        await scene.archiver.sweep()


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("call", ["get", "txn", "grant"])
@pytest.mark.parametrize("skip", range(4))
async def test_a_failure_of_etcd_at_any_step_loses_no_task(scene: Scene, call: str, skip: int, applied: bool) -> None:
    """The `skip`th call fails, done or not; another leader then does the rest."""
    names = [f"task-{n:02d}" for n in range(30)]  # more than one transaction
    await scene.end(*names)
    await _give_requests(scene, names)
    await scene.clock.advance(1000)
    real = getattr(scene.kv, call)
    count = 0

    async def failing(*args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == skip + 1:
            scene.kv.fail_next(call, applied=applied)
        return await real(*args, **more)

    setattr(scene.kv, call, failing)
    try:
        await scene.archiver.sweep()
    except UnavailableError:
        await _each_is_found_once(scene, names)
    setattr(scene.kv, call, real)
    scene.kv.heal()
    left = await scene.live()
    await scene.shown(*left)
    await scene.replica().sweep()
    assert await scene.live() == []
    await scene.shown()
    await _each_is_found_once(scene, names)


async def _give_requests(scene: Scene, names: list[str]) -> None:
    """Tasks with request ids, as they are after a submit with one."""
    revision = 0
    for name in names:
        task = await scene.transactions.get_task("acme", name)
        assert task is not None
        record = replace(task.record, request=f"req-{name}")
        writes = [
            Put(keys.task("acme", name), encode(record)),
            Put(keys.request("acme", f"req-{name}"), encode(RequestRecord(task=name, digest="d"))),
        ]
        revision = (await scene.kv.txn([], writes)).revision
    await scene.mirror.reach(revision)


async def _each_is_found_once(scene: Scene, names: list[str]) -> None:
    """In etcd or in the history, with its spec."""
    live = set(await scene.live())
    history = History(BundleStore(scene.objects), scene.mirror, SystemClock())  # as another replica finds it
    rows = [row.task async for row in history.rows(await history.bundles("acme"), None, (0, 0))]
    assert live | set(rows) == set(names)
    assert len(rows) == len(set(rows))
    for name in set(names) - live:
        found = await history.find("acme", name)
        assert found is not None
        assert name.encode() in found.spec


async def test_a_bundle_that_came_to_nothing_does_no_harm(scene: Scene) -> None:
    await scene.end("task-a", "task-b")
    await scene.clock.advance(1000)
    # The first transaction of `archive` finds no etcd: what a leader that dies after its bundle leaves behind.
    txn = scene.kv.txn

    async def dies(*args: Any, **more: Any) -> Any:
        if args[1]:
            raise UnavailableError("killed here")
        return await txn(*args, **more)

    scene.kv.txn = dies  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        await scene.archiver.sweep()
    assert len(await scene.stored()) == 1
    assert await scene.live() == ["task-a", "task-b"]
    scene.kv.txn = txn  # type: ignore[method-assign]
    assert await scene.archiver.sweep() == 2
    assert len(await scene.stored()) == 2
    await _each_is_found_once(scene, ["task-a", "task-b"])


async def test_the_request_ids_of_archived_tasks_live_on_for_a_while(scene: Scene) -> None:
    await scene.end("task-a", "task-b")
    await _give_requests(scene, ["task-a"])
    await scene.clock.advance(1000)
    assert await scene.archiver.sweep() == 2
    entry = await scene.kv.get(keys.request("acme", "req-task-a"))
    assert entry is not None
    assert entry.lease
    await scene.clock.advance(3600)
    scene.kv.tick()
    assert await scene.kv.get(entry.key) is not None
    await scene.clock.advance(3700)
    scene.kv.tick()
    assert await scene.kv.get(entry.key) is None


async def test_one_lease_serves_the_requests_of_an_hour(scene: Scene) -> None:
    leases = []
    for number, wait in enumerate((1000, 1800, 1900)):
        name = f"task-{number}"
        await scene.end(name)
        await _give_requests(scene, [name])
        await scene.clock.advance(wait)
        assert await scene.archiver.sweep() == 1
        entry = await scene.kv.get(keys.request("acme", f"req-{name}"))
        assert entry is not None
        leases.append(entry.lease)
    assert leases[0] == leases[1] != leases[2]


async def test_a_lease_that_is_gone_is_replaced(scene: Scene) -> None:
    await scene.end("task-a")
    await _give_requests(scene, ["task-a"])
    await scene.clock.advance(1000)
    assert await scene.archiver.sweep() == 1
    entry = await scene.kv.get(keys.request("acme", "req-task-a"))
    assert entry is not None
    scene.kv.expire(entry.lease)
    await scene.end("task-b")
    await _give_requests(scene, ["task-b"])
    await scene.clock.advance(1000)
    await scene.shown("task-b")
    with pytest.raises(Exception, match="lease"):
        await scene.archiver.sweep()
    assert await scene.archiver.sweep() == 1
    assert await scene.live() == []


async def test_of_a_tenant_that_is_being_deleted_nothing_is_left_behind(scene: Scene) -> None:
    await scene.end("task-a")
    await scene.clock.advance(1000)
    put = scene.objects.put

    async def buried_meanwhile(name: str, data: bytes, *, if_absent: bool = False) -> bool:
        await scene.transactions.bury("acme", NOW)
        return await put(name, data, if_absent=if_absent)

    scene.objects.put = buried_meanwhile  # type: ignore[method-assign]
    assert await scene.archiver.sweep() == 0
    assert await scene.stored() == []
    assert await scene.live() == ["task-a"]
    await until("the mirror shows the tombstone", lambda: "acme" in scene.mirror.state.buried)
    assert await scene.archiver.sweep() == 0
    assert await scene.stored() == []


async def test_bundles_are_of_a_thousand_tasks_at_most(scene: Scene) -> None:
    await scene.end(*[f"task-{n:04d}" for n in range(1001)])
    await scene.clock.advance(1000)
    assert await scene.archiver.sweep() == bundles.MAX_TASKS
    [left] = await scene.live()
    await scene.shown(left)
    assert await scene.archiver.sweep() == 1
