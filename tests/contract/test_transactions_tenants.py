"""The end of a tenant: nothing new begins, nothing of it stays, and nothing of another is touched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from msgspec.structs import replace

from cloudclaw.coordination import keys, life
from cloudclaw.coordination.records import ConsumerRecord, Plan, SnapshotRecord, WorkspaceRecord, encode
from cloudclaw.coordination.transactions import tenants as tenants_module
from cloudclaw.coordination.transactions.store import writer_value
from cloudclaw.errors import AbortedError, PreconditionError, UnavailableError
from tests.support.coordination import (
    BOTH_STORES,
    EPHEMERAL,
    EXCLUSIVE,
    NOW,
    TENANT,
    WORKSPACE,
    Scene,
    pointer,
    scene_on,
)
from tests.support.etcd_server import running_etcd
from tests.support.task_transactions import WRITER

etcd_server = pytest.fixture(scope="module")(running_etcd)

NEIGHBOURS = ("acm", "acme-2", "acme.x", "acme0")


@pytest.fixture(params=BOTH_STORES)
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    async with scene_on(request) as scene:
        yield scene


def workspace(scene: Scene, name: str = "new") -> WorkspaceRecord:
    return WorkspaceRecord(name=name, created=NOW, updated=NOW, op_id=scene.op(), head=pointer("w"))


async def furnish(scene: Scene, tenant: str) -> None:
    """One of everything that a tenant can have when none of its tasks runs."""
    await scene.tx.create_workspace(tenant, workspace(scene), snapshot=pointer("w"))
    record = life.queued(tenant=tenant, task="task-1", plan=Plan(), now=NOW, op_id=scene.op(), request="r")
    task = (await scene.tx.submit(record, b"spec", request_id="r", digest="d")).task
    task = await scene.tx.cancel(task, life.canceled(task.record, NOW, op_id=scene.op()))
    await scene.tx.register_consumer(tenant, "bot", ConsumerRecord(created=NOW, updated=NOW, op_id=scene.op()))
    await scene.tx.deliver(tenant, "bot", "task-1", task.mod_revision, await scene.kv.grant(60))


def of(tenant: str, stored: dict[str, tuple[bytes, int]]) -> list[str]:
    return [key for key in stored if tenant in keys.parts(key)]


async def test_a_tombstone_comes_and_goes(scene: Scene) -> None:
    assert not await scene.tx.buried(TENANT)
    for _ in range(2):
        await scene.tx.bury(TENANT, NOW)
        assert await scene.tx.buried(TENANT)
    assert not await scene.tx.buried("acme-2")
    for _ in range(2):
        assert await scene.tx.exhume(TENANT)
        assert not await scene.tx.buried(TENANT)


async def test_a_second_burial_keeps_the_first_tombstone(scene: Scene) -> None:
    await scene.tx.bury(TENANT, NOW)
    before = await scene.entry(keys.tombstone(TENANT))
    again = await scene.tx.bury(TENANT, NOW + 5)
    assert await scene.entry(keys.tombstone(TENANT)) == before
    assert (again.create_revision, again.record.created) == (before.create_revision, NOW)


async def test_a_sealed_tombstone_is_not_taken_back(scene: Scene) -> None:
    tombstone = await scene.tx.bury(TENANT, NOW)
    assert not await scene.tx.sealed(TENANT, tombstone)
    # Two deletions looked behind it; each may seal it, once or again.
    other = await scene.tx.bury(TENANT)
    for one in (tombstone, other, tombstone):
        await scene.tx.seal(TENANT, one)
        assert await scene.tx.sealed(TENANT, one)
    await scene.tx.seal(TENANT, await scene.tx.bury(TENANT))
    assert not await scene.tx.exhume(TENANT)
    assert await scene.tx.buried(TENANT)
    await scene.tx.delete_tenant_keys(TENANT, tombstone)
    assert not await scene.tx.sealed(TENANT, tombstone)


async def test_a_tombstone_that_was_taken_back_is_not_sealed(scene: Scene) -> None:
    """Who looked behind it looks again behind another."""
    tombstone = await scene.tx.bury(TENANT, NOW)
    assert await scene.tx.exhume(TENANT)
    for _ in range(2):
        with pytest.raises(AbortedError) as refused:
            await scene.tx.seal(TENANT, tombstone)
        assert refused.value.reason == "TENANT_EXHUMED"
        with pytest.raises(AbortedError):
            await scene.tx.delete_tenant_keys(TENANT, tombstone)
        await scene.tx.bury(TENANT, NOW)
        assert not await scene.tx.sealed(TENANT, tombstone)


async def test_a_tombstone_that_is_sealed_in_that_moment_is_not_taken_back(scene: Scene) -> None:
    tombstone = await scene.tx.bury(TENANT, NOW)
    scene.kv.before_txn = lambda: scene.tx.seal(TENANT, tombstone)
    assert not await scene.tx.exhume(TENANT)
    assert await scene.tx.sealed(TENANT, tombstone)


async def test_lost_answers_of_a_seal(scene: Scene) -> None:
    tombstone = await scene.tx.bury(TENANT, NOW)
    scene.kv.fail_next("txn")
    with pytest.raises(UnavailableError):
        await scene.tx.seal(TENANT, tombstone)
    scene.kv.fail_next("txn", applied=True)
    await scene.tx.seal(TENANT, tombstone)
    assert await scene.tx.sealed(TENANT, tombstone)


async def test_nothing_new_of_a_buried_tenant_begins(scene: Scene) -> None:
    await scene.tx.bury(TENANT)
    lease, stored = await scene.kv.grant(60), await scene.dump()
    new: list[Callable[[], Awaitable[object]]] = [
        lambda: scene.tx.submit(scene.fresh(), b"spec"),
        lambda: scene.tx.submit(scene.fresh(), b"spec", request_id="r", digest="d"),
        lambda: scene.tx.create_workspace(TENANT, workspace(scene)),
        lambda: scene.tx.acquire_writer(TENANT, WORKSPACE, "op", lease),
    ]
    for begin in new:
        with pytest.raises(PreconditionError) as refused:
            await begin()
        assert refused.value.reason == "TENANT_DELETED"
    assert await scene.dump() == stored
    other = replace(scene.fresh(EPHEMERAL), tenant="acme-2")
    assert (await scene.tx.submit(other, b"spec")).created
    await scene.tx.exhume(TENANT)
    assert (await scene.tx.submit(scene.fresh(), b"spec")).created


async def test_a_submit_that_meets_the_tombstone_stores_nothing(scene: Scene) -> None:

    async def bury() -> None:
        await scene.tx.bury(TENANT)

    scene.kv.before_txn = bury
    with pytest.raises(PreconditionError):
        await scene.tx.submit(scene.fresh(), b"spec")
    assert not [key for key in await scene.dump() if key.startswith((keys.TASKS, keys.SPECS, keys.QUEUE))]


async def test_a_request_made_before_the_burial_is_still_answered(scene: Scene) -> None:
    record = scene.fresh()
    await scene.tx.submit(record, b"spec", request_id="r", digest="d")
    await scene.tx.bury(TENANT)
    again = await scene.tx.submit(scene.fresh(), b"spec", request_id="r", digest="d")
    assert again.task.record == record


async def test_all_of_a_tenant_goes_and_nothing_of_another(scene: Scene) -> None:
    for tenant in (TENANT, *NEIGHBOURS):
        await furnish(scene, tenant)
    await scene.tx.bury(TENANT)
    before = await scene.dump()
    mine = of(TENANT, before)
    assert await scene.tx.delete_tenant_keys(TENANT) == len(mine)
    assert await scene.dump() == {key: value for key, value in before.items() if key not in mine}
    assert await scene.tx.tenants() == sorted(NEIGHBOURS)


async def test_more_keys_than_one_transaction_takes(scene: Scene) -> None:
    for n in range(230):
        record = SnapshotRecord(pointer=pointer(str(n)), created=NOW)
        await scene.place(keys.snapshot(TENANT, WORKSPACE, f"s{n}"), encode(record))
    await scene.tx.delete_tenant_keys(TENANT)
    assert of(TENANT, await scene.dump()) == []


async def test_a_tenant_whose_task_has_not_ended_keeps_everything(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenants_module, "PAGE", 2)
    for _ in range(5):
        await scene.ended()
    for make in (scene.queued, scene.delayed, scene.running):
        await make(EPHEMERAL)
        await scene.tx.bury(TENANT)
        stored = await scene.dump()
        with pytest.raises(PreconditionError) as refused:
            await scene.tx.delete_tenant_keys(TENANT)
        assert refused.value.reason == "TENANT_BUSY"
        assert await scene.dump() == stored
        for key in of(TENANT, stored):
            if not key.startswith(keys.WORKSPACES):
                await scene.remove(key)
        for _ in range(5):
            await scene.ended()


@pytest.mark.parametrize("holder", ["user:op-1", "task-gone"])
async def test_a_tenant_that_is_written_to_keeps_everything(scene: Scene, holder: str) -> None:
    await scene.place(WRITER, writer_value(holder))
    await scene.tx.bury(TENANT)
    stored = await scene.dump()
    with pytest.raises(PreconditionError) as refused:
        await scene.tx.delete_tenant_keys(TENANT)
    assert refused.value.reason == "TENANT_BUSY"
    assert await scene.dump() == stored


async def test_a_task_that_begins_while_it_is_looked_at_is_refused(scene: Scene) -> None:
    """The tombstone is put before the look, so that what the look misses cannot come any more."""
    await scene.running(EXCLUSIVE)
    with pytest.raises(PreconditionError):
        await scene.tx.delete_tenant_keys(TENANT)
    assert await scene.tx.buried(TENANT)


@pytest.mark.parametrize("step", range(1, 10))
async def test_whatever_a_death_leaves_a_second_call_takes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    await furnish(scene, TENANT)
    await scene.tx.bury(TENANT)
    txn, sent = scene.kv.txn, scene.kv.sent["txn"]

    async def dies(*args: object, **options: object) -> object:
        if scene.kv.sent["txn"] - sent == step:
            raise UnavailableError("died")
        return await txn(*args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(scene.kv, "txn", dies)
        try:
            await scene.tx.delete_tenant_keys(TENANT)
        except UnavailableError:
            assert await scene.tx.buried(TENANT)
            assert await scene.tx.tenants() == [TENANT]
    if await scene.tx.buried(TENANT):
        await scene.tx.delete_tenant_keys(TENANT)
    assert of(TENANT, await scene.dump()) == []


@pytest.mark.parametrize("step", range(1, 9))
async def test_a_deletion_that_was_held_up_touches_nothing_of_the_tenant_made_anew(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    await furnish(scene, TENANT)
    await scene.tx.bury(TENANT)
    txn, sent = scene.kv.txn, scene.kv.sent["txn"]
    anew: list[dict[str, tuple[bytes, int]]] = []

    async def held_up(*args: object, **options: object) -> object:
        if scene.kv.sent["txn"] - sent == step and not anew:
            await scene.remake(keys.tombstone(TENANT))
            anew.append(await scene.dump())
        return await txn(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(scene.kv, "txn", held_up)
    with pytest.raises(AbortedError):
        await scene.tx.delete_tenant_keys(TENANT)
    assert await scene.dump() == anew[0]
