"""What attempts of ended and archived tasks left: the last one's choice stays, the others' goes, and logs stay."""

from __future__ import annotations

import pytest

from cloudclaw.coordination import conversation, life
from cloudclaw.coordination.records import TaskRecord
from cloudclaw.coordination.transactions import Versioned
from cloudclaw_workspace.adapters.archive import BundleArchive
from cloudclaw_workspace.domain import waiting
from cloudclaw_workspace.domain.names import candidates
from cloudclaw_workspace.domain.outputs import Outputs
from tests.unit.workspace.garbage_world import GRACE, TENANT, Watched, WatchedObjects, World


class Tried:
    """A task that succeeded at its second attempt, and all that both stored."""

    def __init__(self, task: Versioned[TaskRecord]) -> None:
        self.task = task
        name = task.record.task
        first, last = (attempt.uid for attempt in task.record.attempts)
        self.kept = {
            f"artifacts/{TENANT}/{name}/{last}/d1",
            f"results/{TENANT}/{name}/{last}",
            *(f"logs/{TENANT}/{uid}/0-1" for uid in (first, last)),
        }
        self.superseded = {f"artifacts/{TENANT}/{name}/{first}/d1", f"results/{TENANT}/{name}/{first}"}


@pytest.fixture
async def world() -> World:
    made = World()
    await made.begin()
    return made


async def tried(world: World) -> Tried:
    token, task = await world.claim(await world.submit())
    task = await world.lose(token, task)
    token, task = await world.claim(task)
    result = f"results/{TENANT}/{task.record.task}/{task.record.uid}"
    made = Tried(await world.succeed(token, task, result_object=result))
    for name in made.kept | made.superseded:
        await world.objects.put(name, b"1")
    return made


async def days(world: World) -> set[str]:
    """What is left when every grace is over."""
    for _ in range(2):
        await world.rounds().collect(TENANT, dry_run=False)
        world.clock.now += GRACE
    await world.rounds().collect(TENANT, dry_run=False)
    return {name for name in await world.names() if not name.startswith(("history/", "gc/"))}


async def test_what_superseded_attempts_left_goes_and_their_logs_stay(world: World) -> None:
    one = await tried(world)
    assert await days(world) == one.kept


async def test_a_task_that_left_no_result_keeps_no_artifacts(world: World) -> None:
    token, task = await world.claim(await world.submit())
    name, uid = task.record.task, task.record.uid
    await world.objects.put(f"artifacts/{TENANT}/{name}/{uid}/d1", b"1")
    await world.objects.put(f"logs/{TENANT}/{uid}/0-1", b"1")
    assert len(await days(world)) == 2
    await world.fail(token, task)
    assert await days(world) == {f"logs/{TENANT}/{uid}/0-1"}


async def test_what_was_said_to_a_conversation_goes_when_it_has_ended(world: World) -> None:
    """While it is parked, its checkpoint and what it said last stay too."""
    token, task = await world.claim(await world.submit(interactive=True))
    name, uid = task.record.task, task.record.uid
    checkpoint = await world.store(uid)
    said, last = f"inputs/{TENANT}/{name}/d1", f"results/{TENANT}/{name}/{uid}"
    for object_name in (said, last):
        await world.objects.put(object_name, b"1")
    after = conversation.parked(task.record, 1.0, checkpoint, op_id="op-park", result_object=last)
    task = await world.tx.park(token, task, after, checkpoint)
    left = await days(world)
    assert {said, last} <= left
    assert any(one.startswith(f"tenants/{TENANT}/manifests/") for one in left)
    await world.tx.cancel(task, life.canceled(task.record, 1.0, op_id="op-cancel"))
    left = await days(world)
    assert said not in left
    assert last in left


async def test_an_archived_task_keeps_what_it_had_and_no_more(world: World) -> None:
    some = [await tried(world) for _ in range(3)]
    await world.bundle(*(one.task for one in some[:2]))
    await world.bundle(some[2].task)
    await world.tx.archive([one.task for one in some], 0)
    assert await days(world) == set().union(*(one.kept for one in some))


async def test_what_neither_keys_nor_history_know_goes(world: World) -> None:
    one, lost = await tried(world), await tried(world)
    await world.bundle(one.task)
    await world.tx.archive([one.task, lost.task], 0)
    report = (await world.rounds().collect(TENANT, dry_run=False))[0]
    assert report.removed == 0
    assert await world.names() >= lost.kept
    assert await days(world) == one.kept


async def test_a_task_that_is_archived_at_any_step_of_a_round_loses_nothing() -> None:
    """Nor is anything of it suspected."""
    at = 1
    while True:
        world = World()
        await world.begin()
        one, other = await tried(world), await tried(world)
        await world.bundle(other.task)
        await world.tx.archive([other.task], 0)
        watched, rounds = world.watched()

        async def archive(world: World = world, one: Tried = one) -> None:
            await world.bundle(one.task)
            assert await world.tx.archive([one.task], 0)

        watched.before = {at: archive}
        await rounds.collect(TENANT, dry_run=False)
        suspects = {name for name, _ in waiting.decode(await world.objects.get(candidates(TENANT)), candidates(TENANT))}
        assert suspects == one.superseded | other.superseded
        assert await days(world) == one.kept | other.kept
        if watched.before:
            break
        at += 1
    assert at > 10


@pytest.mark.parametrize("damage", ["altered", "cut", "unknown"])
async def test_a_history_that_cannot_be_read_keeps_every_output(world: World, damage: str) -> None:
    one, nobodys = await tried(world), f"logs/{TENANT}/uid-never/0-1"
    await world.objects.put(nobodys, b"1")
    name = str(await world.bundle(one.task))
    await world.tx.archive([one.task], 0)
    orphan = f"tenants/{TENANT}/packs/op-dead/up-0"
    await world.objects.put(orphan, b"1")
    data = await world.objects.get(name)
    match damage:
        case "altered":
            await world.objects.put(name, data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
        case "cut":
            await world.objects.put(name, data[:-9])
        case _:
            await world.objects.put(f"history/{TENANT}/of-another-kind", b"1")
    # Snapshots have nothing to do with it.
    assert await days(world) == one.kept | one.superseded | {nobodys}
    await world.objects.put(name, data)
    await world.objects.delete(f"history/{TENANT}/of-another-kind")
    assert await days(world) == one.kept


async def test_a_bundle_is_read_once(world: World) -> None:
    one = await tried(world)
    await world.bundle(one.task)
    watched = Watched()
    archive = BundleArchive(WatchedObjects(world.objects, watched))
    assert (await archive.outputs(TENANT)).log(one.task.record.attempts[0].uid)
    listing = 2
    first, watched.count = watched.count, 0
    assert first > listing
    two = await tried(world)
    assert (await archive.outputs(TENANT)).log(one.task.record.attempts[0].uid)
    assert watched.count == listing
    await world.bundle(two.task)
    found = await archive.outputs(TENANT)
    assert all(found.log(attempt.uid) for each in (one, two) for attempt in each.task.record.attempts)
    assert not found.log("uid-never")


async def test_many_tasks_take_little_memory(world: World) -> None:
    one = (await tried(world)).task.record
    many = Outputs()
    for _ in range(1000):
        many.add(one)
    assert many.size < 1000 * 8 * 5
