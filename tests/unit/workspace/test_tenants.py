"""Deleting a tenant: all of it, nothing of another, and nothing while it still works."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cloudclaw.coordination.records import Mode
from cloudclaw.errors import InvalidArgumentError, NotFoundError, PreconditionError, UnavailableError
from cloudclaw.snapshots.port import TreeLimits
from cloudclaw_workspace.adapters.census import CoordinationCensus
from cloudclaw_workspace.app.shelves import Shelves
from cloudclaw_workspace.app.tenants import Undertaker
from cloudclaw_workspace.domain import names
from tests.support.workspace_service import WatchedEngine
from tests.unit.workspace.garbage_world import (
    GRACE,
    TENANT,
    Watched,
    WatchedKeyValue,
    WatchedObjects,
    World,
    drive,
)

OTHERS = ("acme-2", "acme.x", "acm", "acme0")


class Trees(WatchedEngine):
    """Remembers whose trees were to be forgotten."""

    def __init__(self, objects: Any, folder: Path) -> None:
        super().__init__(objects, folder, TreeLimits())
        self.forgotten: list[str] = []
        self.ready: list[tuple[str, str]] = []
        self.told = asyncio.Event()

    def cached(self) -> Sequence[tuple[str, str]]:
        return self.ready

    async def forget(self, tenant: str) -> None:
        self.forgotten.append(tenant)
        self.ready = [ready for ready in self.ready if ready[0] != tenant]
        self.told.set()


@pytest.fixture
async def world() -> World:
    """A tenant with everything it can have, and some with names like its own."""
    made = World()
    await made.begin()
    await made.create("ws")
    for _ in range(3):
        await drive(made.write("ws"))
    token, task = await made.claim(await made.submit("ws", Mode.EXCLUSIVE))
    base = task.record.base
    assert base is not None
    snapshot = await made.store(task.record.uid, shared=made.packs[base.manifest])
    await made.succeed(token, task, snapshot)
    for tenant in (TENANT, *OTHERS):
        for prefix in names.everything(tenant):
            await made.objects.put(f"{prefix}x/y", b"1234")
    for tenant in OTHERS:
        await made.create("ws", tenant)
        await drive(made.write("ws", tenant=tenant))
    return made


def undertaker(world: World, folder: Path) -> tuple[Undertaker, Trees, Watched]:
    watched = Watched()
    kv, objects = WatchedKeyValue(world.kv, watched), WatchedObjects(world.objects, watched)
    census = CoordinationCensus(kv, world.clock)
    trees = Trees(world.objects, folder)
    return Undertaker(census, census, objects, trees), trees, watched


async def belongings(world: World, tenants: Sequence[str]) -> set[str]:
    """Every key and object with one of the tenants' names as a step of its own."""
    entries = (await world.kv.range("")).entries
    everything = {entry.key for entry in entries} | await world.names()
    return {name for name in everything if not set(name.split("/")).isdisjoint(tenants)}


async def test_nothing_of_the_tenant_is_left_and_all_of_the_others(world: World, tmp_path: Path) -> None:
    before, others = await belongings(world, [TENANT]), await belongings(world, OTHERS)
    work, trees, _ = undertaker(world, tmp_path)
    gone = await work.delete(TENANT)
    assert await belongings(world, [TENANT]) == set()
    assert await belongings(world, OTHERS) == others
    assert trees.forgotten == [TENANT]
    objects = {name for name in before if not name.startswith("/")}
    assert gone.objects == len(objects) >= 7 + 8
    # The tombstone came and went.
    assert gone.keys == len(before) - len(objects) + 1
    assert gone.bytes > 7 * 4
    # The name is free again.
    await world.create("ws")
    await drive(world.write("ws"))
    await world.check()


async def test_a_tenant_that_has_nothing_is_no_error(world: World, tmp_path: Path) -> None:
    work, _, _ = undertaker(world, tmp_path)
    gone = await work.delete("nobody")
    assert (gone.objects, gone.bytes) == (0, 0)
    assert not await world.tx.buried("nobody")
    with pytest.raises(InvalidArgumentError):
        await work.delete("../acme")


@pytest.mark.parametrize("busy", ["queued", "running", "writing"])
async def test_a_tenant_that_works_is_refused_and_goes_on_working(world: World, tmp_path: Path, busy: str) -> None:
    script = world.write("ws")
    if busy == "writing":
        await anext(script)
    else:
        task = await world.submit()
        if busy == "running":
            await world.claim(task)
    before = await belongings(world, [TENANT])
    work, _, _ = undertaker(world, tmp_path)
    with pytest.raises(PreconditionError) as refused:
        await work.delete(TENANT)
    assert refused.value.reason == "TENANT_BUSY"
    assert await belongings(world, [TENANT]) == before
    await world.submit()
    if busy == "writing":
        await drive(script)
    await world.check()


async def test_a_deletion_that_dies_at_any_step_goes_on_when_it_is_called_again(world: World, tmp_path: Path) -> None:
    others = await belongings(world, OTHERS)
    for at in range(1, 1000):
        work, _, watched = undertaker(world, tmp_path / str(at))

        async def die() -> None:
            raise UnavailableError("killed")

        watched.before = {at: die}
        try:
            await work.delete(TENANT)
        except UnavailableError:
            if at > 2:
                # Half a tenant takes no work.
                assert await world.tx.buried(TENANT) or not await belongings(world, [TENANT])
                with pytest.raises(PreconditionError):
                    await world.submit()
        else:
            break
    assert at > 20
    assert await belongings(world, [TENANT]) == set()
    assert await belongings(world, OTHERS) == others


async def outcome(work: Undertaker) -> str:
    """DELETED, or why not."""
    try:
        await work.delete(TENANT)
    except PreconditionError as error:
        return error.reason
    return "DELETED"


async def test_work_that_begins_at_any_step_leaves_nothing_behind(world: World, tmp_path: Path) -> None:
    """It is refused, or it came first and the deletion is."""
    work, _, watched = undertaker(world, tmp_path / "count")
    await work.delete(TENANT)
    refused = began = 0
    for at in range(1, watched.count + 1):
        made = World()
        await made.begin()
        await made.create("ws")
        await drive(made.write("ws"))
        work, _, watched = undertaker(made, tmp_path / str(at))

        async def begin(made: World = made) -> None:
            nonlocal refused, began
            script = made.write("ws")
            try:
                await anext(script)
                await made.submit()
                began += 1
            except (PreconditionError, NotFoundError):
                refused += 1

        watched.before = {at: begin}
        reason = await outcome(work)
        if reason == "DELETED":
            assert await belongings(made, [TENANT]) == set()
        else:
            assert reason == "TENANT_BUSY"
            await made.check()
            assert not await made.tx.buried(TENANT)
    assert refused > 3
    assert began > 0


class Held:
    """Holds a deletion up before one of its steps, until it is let go."""

    def __init__(self) -> None:
        self.there, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> None:
        self.there.set()
        await self.go.wait()


async def small() -> World:
    """A tenant with a workspace."""
    made = World()
    await made.begin()
    await made.create("ws")
    await drive(made.write("ws"))
    return made


async def test_a_refused_deletion_lets_nobody_work_beside_another(tmp_path: Path) -> None:
    """One saw a task that ended then, the other saw none; whatever the order, a tenant that works keeps everything."""
    at, outcomes = 0, set()
    # Both behind its look.
    for refused_at in (3, 4):
        for at in range(1, 1000):
            made = await small()
            task = await made.submit("ws", Mode.EXCLUSIVE)
            first, _, watched = undertaker(made, tmp_path / f"{refused_at}-{at}-first")
            holding = Held()
            watched.before = {refused_at: holding}
            second, _, beside = undertaker(made, tmp_path / f"{refused_at}-{at}-second")
            held = Held()
            beside.before = {at: held}
            async with asyncio.TaskGroup() as group:
                refused = group.create_task(outcome(first))
                await holding.there.wait()
                token, running = await made.claim(task)
                await made.succeed(token, running)
                deleting = group.create_task(outcome(second))
                reached = group.create_task(held.there.wait())
                await asyncio.wait([deleting, reached], return_when=asyncio.FIRST_COMPLETED)
                holding.go.set()
                outcomes.add(await refused)
                works = not deleting.done() and not await made.tx.buried(TENANT)
                if works:
                    script = made.write("ws")
                    await anext(script)
                    await anext(script)
                reached.cancel()
                held.go.set()
                outcomes.add(await deleting)
                if works:
                    assert deleting.result() == "TENANT_BUSY"
                    await drive(script)
            if await made.tx.get_workspace(TENANT, "ws") is not None:
                await made.check()
                assert not await made.tx.buried(TENANT)
            else:
                assert await belongings(made, [TENANT]) == set()
            if not held.there.is_set():
                break
    assert at > 10
    assert outcomes == {"DELETED", "TENANT_BUSY"}


async def test_a_slow_deletion_touches_nothing_of_a_tenant_made_anew(tmp_path: Path) -> None:
    at = 0
    for at in range(1, 1000):
        made = await small()
        slow, _, watched = undertaker(made, tmp_path / f"{at}-slow")
        quick, _, _ = undertaker(made, tmp_path / f"{at}-quick")
        anew: list[set[str]] = []

        async def beside(
            made: World = made, watched: Watched = watched, quick: Undertaker = quick, anew: list[set[str]] = anew
        ) -> None:
            if not (await made.tx.bury(TENANT)).record.sealed:
                # It did not look yet, and means whatever tenant it meets.
                return
            await quick.delete(TENANT)
            await made.create("ws")
            await drive(made.write("ws"))
            anew.append(await belongings(made, [TENANT]))

        watched.before = {at: beside}
        assert await outcome(slow) == "DELETED"
        if anew:
            assert await belongings(made, [TENANT]) == anew[0]
            await made.check()
        if watched.before:
            break
    assert at > 10


async def test_a_tombstone_that_a_refused_call_left_by_dying_is_taken_back_by_the_next(
    world: World, tmp_path: Path
) -> None:
    task = await world.submit()
    await world.tx.bury(TENANT)
    work, _, _ = undertaker(world, tmp_path)
    assert await outcome(work) == "TENANT_BUSY"
    assert not await world.tx.buried(TENANT)
    await world.succeed(*await world.claim(task))
    assert await outcome(work) == "DELETED"


async def test_every_replica_forgets_the_trees_of_tenants_that_are_gone(world: World, tmp_path: Path) -> None:
    census = CoordinationCensus(world.kv, world.clock)
    trees = Trees(world.objects, tmp_path)
    trees.ready = [(TENANT, "snap-1"), ("gone", "snap-1"), ("gone", "snap-2"), (OTHERS[0], "snap-1")]
    shelves = Shelves(census, trees, world.clock, interval=60.0)
    await shelves.clear()
    assert trees.forgotten == ["gone"]
    work, _, _ = undertaker(world, tmp_path / "elsewhere")
    await work.delete(TENANT)
    await shelves.clear()
    assert trees.forgotten == ["gone", TENANT]


async def test_looking_for_trees_goes_on_after_an_outage(world: World, tmp_path: Path) -> None:
    watched = Watched()
    census = CoordinationCensus(WatchedKeyValue(world.kv, watched), world.clock)
    trees = Trees(world.objects, tmp_path)
    trees.ready = [("gone", "snap-1")]

    async def die() -> None:
        raise UnavailableError("away")

    watched.before = {1: die}
    shelves = Shelves(census, trees, world.clock, interval=60.0)
    running = asyncio.create_task(shelves.run())
    async with asyncio.timeout(10):
        for _ in range(2):
            await world.clock.asleep()
            await world.clock.advance(60.0)
        await trees.told.wait()
    running.cancel()
    assert trees.forgotten == ["gone"]


async def test_what_a_zombie_stores_afterwards_is_collected(world: World, tmp_path: Path) -> None:
    work, _, _ = undertaker(world, tmp_path)
    await work.delete(TENANT)
    await world.store("uid-zombie")
    await world.objects.put(f"logs/{TENANT}/uid-zombie/0-1", b"1")
    for _ in range(2):
        await world.rounds().collect("", dry_run=False)
        world.clock.now += GRACE
    assert await belongings(world, [TENANT]) == set()
