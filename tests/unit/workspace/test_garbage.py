"""The rules of garbage collection, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Delete, Guard, TxnResult, Write
from cloudclaw.coordination.records import Mode
from cloudclaw.errors import DataLossError, InvalidArgumentError
from cloudclaw_workspace.adapters.garbage_metrics import GarbageMetrics
from cloudclaw_workspace.adapters.packlists import StoredPackLists
from cloudclaw_workspace.domain import waiting
from cloudclaw_workspace.domain.names import candidates
from cloudclaw_workspace.domain.pages import Pages
from cloudclaw_workspace.domain.waiting import Candidates, Cursor
from tests.support.workspace_service import rounds_over
from tests.unit.workspace.garbage_world import GRACE, TENANT, World, drive

ORPHAN = f"tenants/{TENANT}/packs/op-dead/up-0"


@pytest.fixture
async def world() -> World:
    made = World()
    await made.begin()
    await made.create("ws")
    await drive(made.write("ws"))
    return made


async def test_garbage_waits_for_its_grace_and_then_goes(world: World) -> None:
    await world.objects.put(ORPHAN, b"12345")
    rounds = world.rounds()
    first = (await rounds.collect(TENANT, dry_run=False))[0]
    assert (first.removed, first.waiting, first.waiting_bytes) == (0, 1, 5)
    world.clock.now += GRACE - 1
    again = (await rounds.collect(TENANT, dry_run=False))[0]
    assert (again.removed, again.waiting) == (0, 1)
    world.clock.now += 1
    last = (await rounds.collect(TENANT, dry_run=False))[0]
    assert (last.removed, last.removed_bytes, last.names, last.waiting) == (1, 5, [ORPHAN], 0)
    assert last.kept == 2
    assert ORPHAN not in await world.names()
    await world.check()


async def test_the_grace_outlives_the_process(world: World) -> None:
    await world.objects.put(ORPHAN, b"1")
    await world.rounds().collect(TENANT, dry_run=False)
    world.clock.now += GRACE
    assert (await world.rounds().collect(TENANT, dry_run=False))[0].removed == 1


async def test_a_reader_of_a_deleted_snapshot_has_the_grace(world: World) -> None:
    for _ in range(3):
        await drive(world.write("ws"))
    old = (await world.tx.snapshots_of(TENANT, "ws"))[0].record.pointer
    rounds = world.rounds(keep=1)
    assert (await rounds.collect(TENANT, dry_run=False))[0].snapshots == 3
    world.clock.now += GRACE - 1
    await rounds.collect(TENANT, dry_run=False)
    assert StoredPackLists(world.objects).name(TENANT, old) in await world.names()
    assert set(world.packs[old.manifest]) <= await world.names()


async def test_a_dry_run_says_what_goes_and_changes_nothing(world: World) -> None:
    for _ in range(3):
        await drive(world.write("ws"))
    await world.objects.put(ORPHAN, b"1")
    await world.rounds(keep=9).collect(TENANT, dry_run=False)
    world.clock.now += GRACE
    before, keys_before = await world.names(), (await world.kv.range("")).revision
    report = (await world.rounds(keep=1).collect(TENANT, dry_run=True))[0]
    assert (report.snapshots, report.removed, report.names) == (3, 1, [ORPHAN])
    assert await world.names() == before
    assert (await world.kv.range("")).revision == keys_before
    # Nor does it begin the grace of anything.
    assert (await world.rounds(keep=1).collect(TENANT, dry_run=False))[0].removed == 1


@pytest.mark.parametrize("damage", ["missing", "altered", "cut"])
async def test_a_lost_manifest_stops_the_sweep_by_its_name(world: World, damage: str) -> None:
    await drive(world.write("ws"))
    await world.objects.put(ORPHAN, b"1")
    await world.rounds().collect(TENANT, dry_run=False)
    world.clock.now += GRACE
    head = (await world.workspace("ws")).record.head
    assert head is not None
    name = StoredPackLists(world.objects).name(TENANT, head)
    data = await world.objects.get(name)
    match damage:
        case "missing":
            await world.objects.delete(name)
        case "altered":
            await world.objects.put(name, data[:-1] + bytes([data[-1] ^ 1]))
        case _:
            await world.objects.put(name, data[:-9])
    before = await world.names()
    with pytest.raises(DataLossError, match=head.manifest):
        await world.rounds().collect(TENANT, dry_run=False)
    assert await world.names() == before
    # Another tenant's garbage goes all the same, and the caller is told.
    await world.create("other", "bystander")
    await world.objects.put("tenants/bystander/packs/op-dead/up-0", b"1")
    with pytest.raises(DataLossError, match=head.manifest):
        await world.rounds().collect("", dry_run=False)
    world.clock.now += GRACE
    with pytest.raises(DataLossError) as told:
        await world.rounds().collect("", dry_run=False)
    assert told.value.reason == "GARBAGE_NOT_COLLECTED"
    assert "tenants/bystander/packs/op-dead/up-0" not in await world.names()


async def test_one_tenants_round_leaves_the_others_alone(world: World) -> None:
    for tenant in ("acme", "acme-2", "acme.x", "acm"):
        await world.objects.put(f"tenants/{tenant}/packs/op-dead/up-0", b"1")
    rounds = world.rounds()
    await rounds.collect("acme", dry_run=False)
    world.clock.now += GRACE
    await rounds.collect("acme", dry_run=False)
    left = {name for name in await world.names() if "op-dead" in name}
    assert left == {f"tenants/{tenant}/packs/op-dead/up-0" for tenant in ("acme-2", "acme.x", "acm")}


async def test_all_tenants_are_found_by_their_keys_and_by_their_objects(world: World) -> None:
    await world.create("ws", "only-keys")
    for tenant in ("zeta", "acme-2", "a"):
        await world.objects.put(f"logs/{tenant}/uid-1/0-1", b"1")
    reports = await world.rounds().collect("", dry_run=True)
    assert [report.tenant for report in reports] == ["a", "acme", "acme-2", "only-keys", "zeta"]
    with pytest.raises(InvalidArgumentError):
        await world.rounds().collect("../acme", dry_run=True)


async def test_outputs_of_attempts_that_nobody_knows_go(world: World) -> None:
    """Artifacts and logs by uid, results by the record's choice."""
    token, task = await world.claim(await world.submit())
    name, uid = task.record.task, task.record.uid
    own = [f"artifacts/{TENANT}/{name}/{uid}/d1", f"results/{TENANT}/{name}/{uid}", f"logs/{TENANT}/{uid}/0-1"]
    foreign = [
        f"artifacts/{TENANT}/{name}/uid-never/d1",
        f"results/{TENANT}/{name}/uid-never",
        f"logs/{TENANT}/uid-never/0-1",
    ]
    gone = [
        f"artifacts/{TENANT}/task-gone/uid-a/d1",
        f"results/{TENANT}/task-gone/uid-a",
        f"logs/{TENANT}/uid-a/0-1",
    ]
    unknown = [f"specs/{TENANT}/task-gone", f"logs/{TENANT}/new/kind/of-name"]
    for stored in (*own, *foreign, *gone, *unknown):
        await world.objects.put(stored, b"1")

    async def days() -> set[str]:
        for _ in range(3):
            await world.rounds().collect(TENANT, dry_run=False)
            world.clock.now += GRACE
        return await world.names()

    # While it runs the result is not decided yet.
    left = await days()
    assert left >= {*own, *unknown, foreign[1]}
    assert left.isdisjoint({*gone, foreign[0], foreign[2]})
    await world.succeed(token, task, result_object=own[1])
    left = await days()
    assert left >= {*own, *unknown}
    assert foreign[1] not in left


async def test_a_result_that_fitted_into_the_record_leaves_no_object(world: World) -> None:
    token, task = await world.claim(await world.submit())
    name = f"results/{TENANT}/{task.record.task}/{task.record.uid}"
    await world.objects.put(name, b"1")
    await world.succeed(token, task, result="aGk=")
    await world.rounds().collect(TENANT, dry_run=False)
    world.clock.now += GRACE
    await world.rounds().collect(TENANT, dry_run=False)
    assert name not in await world.names()


async def test_all_of_a_tenant_without_keys_and_history_is_garbage(world: World) -> None:
    gone = [
        "artifacts/ghost/task-1/uid-1/d1",
        "logs/ghost/uid-1/0-1",
        "results/ghost/task-1/uid-1",
        "tenants/ghost/manifests/uid-1/d2",
    ]
    historic = [name.replace("ghost", "historic") for name in gone]
    for name in (*gone, *historic, "history/historic/1-2-x"):
        await world.objects.put(name, b"1")
    for _ in range(2):
        await world.rounds().collect("", dry_run=False)
        world.clock.now += GRACE
    left = await world.names()
    assert left.isdisjoint(gone)
    # With a history that cannot be read, its outputs may be an archived task's; snapshots have no owner all the same.
    assert left >= set(historic[:3])
    assert historic[3] not in left
    assert candidates("ghost") not in left


async def test_a_failed_tasks_checkpoint_is_kept(world: World) -> None:
    token, task = await world.claim(await world.submit())
    task, checkpoint = await world.checkpoint(token, task, ())
    await world.kv.txn([], [Delete(token.key)])
    await world.settle()
    assert StoredPackLists(world.objects).name(TENANT, checkpoint) in await world.names()


async def test_retention_spares_what_unfinished_tasks_need(world: World) -> None:
    token, task = await world.claim(await world.submit("ws", Mode.FORK))
    base = task.record.base
    assert base is not None
    task, checkpoint = await world.checkpoint(token, task, world.packs[base.manifest])
    for _ in range(5):
        await drive(world.write("ws"))
    assert (await world.rounds(keep=1).collect(TENANT, dry_run=False))[0].snapshots == 4
    left = {version.record.pointer.id for version in await world.tx.snapshots_of(TENANT, "ws")}
    head = (await world.workspace("ws")).record.head
    assert head is not None
    assert left == {base.id, checkpoint.id, head.id}
    await world.succeed(token, task)
    await world.rounds(keep=1).collect(TENANT, dry_run=False)
    left = {version.record.pointer.id for version in await world.tx.snapshots_of(TENANT, "ws")}
    assert left == {head.id}


async def test_checkpoints_cost_a_workspace_none_of_its_versions(world: World) -> None:
    for _ in range(2):
        await drive(world.write("ws"))
    heads = {version.record.pointer.id for version in await world.tx.snapshots_of(TENANT, "ws")}
    checkpoints = []
    for _ in range(6):
        token, task = await world.claim(await world.submit("ws", Mode.FORK))
        task, checkpoint = await world.checkpoint(token, task, ())
        checkpoints.append(checkpoint.id)
        if len(checkpoints) < 5:
            await world.fail(token, task)
    assert (await world.rounds(keep=3).collect(TENANT, dry_run=False))[0].snapshots == 1
    left = {version.record.pointer.id for version in await world.tx.snapshots_of(TENANT, "ws")}
    # Of the failed ones the newest three; the last two run.
    assert left == {*heads, *checkpoints[1:]}


async def test_snapshots_of_a_workspace_that_is_gone_go_with_their_bytes(world: World) -> None:
    for _ in range(2):
        await drive(world.write("ws"))
    await world.create("new")
    await drive(world.write("new"))
    # As a deletion leaves it that died after its first transaction.
    await world.kv.txn([], [Delete(keys.workspace(TENANT, "ws"))])
    assert (await world.rounds().collect(TENANT, dry_run=True))[0].snapshots == 3
    assert len(await world.tx.snapshots_of(TENANT, "ws")) == 3
    assert (await world.rounds().collect(TENANT, dry_run=False))[0].snapshots == 3
    assert await world.tx.snapshots_of(TENANT, "ws") == []
    assert len(await world.tx.snapshots_of(TENANT, "new")) == 1
    await world.settle()


async def test_a_workspace_that_is_written_meanwhile_loses_its_old_snapshots_all_the_same(world: World) -> None:
    watched, rounds = world.watched(keep=1)
    await rounds.collect(TENANT, dry_run=True)
    for at in range(1, watched.count + 1):
        for _ in range(2):
            await drive(world.write("ws"))
        watched, rounds = world.watched(keep=1)

        async def beside() -> None:
            await drive(world.write("ws"))

        watched.before = {at: beside}
        assert (await rounds.collect(TENANT, dry_run=False))[0].snapshots >= 2
        await world.check()


@pytest.mark.parametrize("change", ["kept more", "made anew"])
async def test_snapshots_stay_when_what_decided_about_them_changed(world: World, change: str) -> None:
    for _ in range(4):
        await drive(world.write("ws"))
    rounds = world.rounds(keep=1)
    before = len((await world.kv.range(keys.SNAPSHOTS)).entries)
    real = world.kv.txn

    async def beside() -> None:
        workspace = await world.workspace("ws")
        if change == "kept more":
            after = replace(workspace.record, op_id="op-more", keep_last=100)
            await world.tx.update_workspace(TENANT, workspace, after)
        else:
            await world.tx.delete_workspace(TENANT, workspace)
            world.clock.now += 1
            await world.create("ws")
            for _ in range(3):
                await drive(world.write("ws"))

    async def txn(guards: Sequence[Guard], writes: Sequence[Write], **more: Any) -> TxnResult:
        if any(isinstance(write, Delete) and write.key.startswith(keys.SNAPSHOTS) for write in writes):
            monkey.undo()
            await beside()
        return await real(guards, writes, **more)

    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr(world.kv, "txn", txn)
        assert (await rounds.collect(TENANT, dry_run=False))[0].snapshots == 0
    left = len((await world.kv.range(keys.SNAPSHOTS)).entries)
    assert left == (before if change == "kept more" else 3)


async def test_a_tenant_that_is_being_deleted_is_left_to_its_deletion(world: World) -> None:
    await world.objects.put(ORPHAN, b"1")
    await world.tx.bury(TENANT)
    report = (await world.rounds().collect(TENANT, dry_run=False))[0]
    assert (report.kept, report.waiting, report.removed) == (0, 0, 0)
    assert candidates(TENANT) not in await world.names()


async def test_damaged_candidates_begin_the_grace_anew(world: World) -> None:
    await world.objects.put(ORPHAN, b"1")
    await world.rounds().collect(TENANT, dry_run=False)
    await world.objects.put(candidates(TENANT), b"not zstd")
    world.clock.now += GRACE
    assert (await world.rounds().collect(TENANT, dry_run=False))[0].waiting == 1
    world.clock.now += GRACE
    assert (await world.rounds().collect(TENANT, dry_run=False))[0].removed == 1


async def test_rounds_report_what_they_did_as_metrics(world: World) -> None:
    registry = CollectorRegistry()
    rounds = rounds_over(
        world.kv, world.objects, world.clock, grace=GRACE, metrics=GarbageMetrics(world.clock, registry)
    )
    await world.objects.put(ORPHAN, b"12345")
    await rounds.collect(TENANT, dry_run=False)
    world.clock.now += GRACE
    await rounds.collect(TENANT, dry_run=True)
    assert registry.get_sample_value("cloudclaw_workspace_gc_bytes_total") == 0
    await rounds.collect(TENANT, dry_run=False)
    assert registry.get_sample_value("cloudclaw_workspace_gc_bytes_total") == 5
    assert registry.get_sample_value("cloudclaw_workspace_gc_objects_total") == 1


def test_candidates_come_back_as_they_were_written() -> None:
    written = Candidates()
    rows = [(f"tenants/acme/packs/op-{number:06d}/up-0", number / 8) for number in range(10_000)]
    for name, since in rows:
        written.append(name, since)
    read = waiting.decode(written.encode(), "gc/acme/candidates")
    assert list(read) == rows
    assert len(read) == 10_000
    cursor = Cursor(read)
    assert cursor.since("a") is None
    assert cursor.since(rows[5000][0]) == rows[5000][1]
    assert cursor.since(rows[5000][0] + "x") is None
    assert cursor.since(rows[9999][0]) == rows[9999][1]
    assert cursor.since("z") is None


@pytest.mark.parametrize("count", [0, 1, 4095, 4096, 4097, 10_000])
def test_pages_give_back_every_line_in_order(count: int) -> None:
    pages = Pages()
    for number in range(count):
        pages.append(str(number))
    assert list(pages) == [str(number) for number in range(count)]
    assert len(pages) == count
