"""Roots: all that points at snapshots, and all who may be storing one, as they were at one revision."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from msgspec.structs import replace

from cloudclaw.coordination import keys, life
from cloudclaw.coordination.port import CompactedError, RangeResult
from cloudclaw.coordination.records import (
    AttemptRecord,
    AttemptState,
    DeliveryRecord,
    EndReason,
    Plan,
    SnapshotRecord,
    WorkspaceRecord,
    encode,
)
from cloudclaw.coordination.transactions import roots as roots_module
from cloudclaw.coordination.transactions.store import writer_value
from cloudclaw.errors import UnavailableError
from tests.support.checkpoint_transactions import snapshot_key
from tests.support.coordination import (
    BOTH_STORES,
    EPHEMERAL,
    FORK,
    NOW,
    TENANT,
    WORKSPACE,
    Scene,
    pointer,
    scene_on,
)
from tests.support.etcd_server import running_etcd
from tests.support.task_transactions import HEAD, WRITER

etcd_server = pytest.fixture(scope="module")(running_etcd)


@pytest.fixture(params=BOTH_STORES)
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    async with scene_on(request) as scene:
        yield scene


async def names(scene: Scene, tenant: str = TENANT) -> list[str]:
    """Ids of the snapshots that are kept, sorted; each must be there once."""
    found = [pointer.id.removeprefix("snap-") for pointer in (await scene.tx.roots(tenant)).pointers]
    assert len(set(found)) == len(found)
    return sorted(found)


def on_range(scene: Scene, monkeypatch: pytest.MonkeyPatch, hook: Callable[[int], Any]) -> None:
    """`hook` runs before every range, with how many there were before it."""
    inner, count = scene.kv.range, [0]

    async def hooked(prefix: str, **options: Any) -> RangeResult:
        number, count[0] = count[0], count[0] + 1
        await hook(number)
        return await inner(prefix, **options)

    monkeypatch.setattr(scene.kv, "range", hooked)


async def test_heads_and_listed_snapshots_are_kept(scene: Scene) -> None:
    await scene.place(snapshot_key("old"), encode(SnapshotRecord(pointer=pointer("old"), created=NOW)))
    await scene.remove(snapshot_key("head"))
    assert await names(scene) == ["head", "old"]


async def test_an_unfinished_task_keeps_its_base_and_its_checkpoint(scene: Scene) -> None:
    token, task = await scene.checkpointed("check", FORK)
    await scene.remove(snapshot_key("check"))
    await scene.remove(snapshot_key("head"))
    await scene.place(HEAD, encode(WorkspaceRecord(name=WORKSPACE, created=NOW, updated=NOW, op_id="op-x")))
    assert await names(scene) == ["check", "head"]
    after = life.reported(task.record, NOW, AttemptState.FAILED, EndReason.DRAINED, op_id=scene.op())
    await scene.tx.finish(token, task, after)
    assert await names(scene) == ["check", "head"]


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        (AttemptState.FAILED, ["check", "other"]),
        (AttemptState.CANCELED, ["check", "other"]),
        (AttemptState.SUCCEEDED, ["other"]),
    ],
)
async def test_an_ended_task_keeps_the_checkpoint_that_its_user_may_want_and_no_base(
    scene: Scene, state: AttemptState, kept: list[str]
) -> None:
    token, task = await scene.checkpointed("check", EPHEMERAL)
    if state is AttemptState.CANCELED:
        task = await scene.tx.cancel(task, life.cancel_requested(task.record, NOW, op_id=scene.op()))
    after = life.reported(task.record, NOW, state, EndReason.NONZERO_EXIT, op_id=scene.op())
    await scene.tx.finish(token, task, after)
    await scene.remove(snapshot_key("head"))
    other = WorkspaceRecord(name=WORKSPACE, created=NOW, updated=NOW, op_id="op-x", head=pointer("other"))
    await scene.place(HEAD, encode(other))
    assert await names(scene) == kept


async def test_whoever_may_be_storing_a_snapshot_is_live(scene: Scene) -> None:
    _, running = await scene.running(FORK)
    token, lost = await scene.running(EPHEMERAL)
    await scene.remove(token.key)
    await scene.place(keys.attempt("node-9", TENANT, "task-z"), encode(AttemptRecord(number=1, uid="uid-held")))
    await scene.place(WRITER, writer_value("user:op-writes"))
    await scene.place(keys.writer(TENANT, "docs"), writer_value("task-owner"))
    await scene.place(keys.attempt("node-9", "acme-2", "task-z"), encode(AttemptRecord(number=1, uid="uid-else")))
    await scene.place(keys.writer("acme-2", "docs"), writer_value("user:op-else"))
    live = (await scene.tx.roots(TENANT)).live
    assert live == {running.record.uid, lost.record.uid, "uid-held", "op-writes"}


async def test_an_attempt_that_ended_is_live_no_more(scene: Scene) -> None:
    await scene.delayed()
    await scene.ended()
    assert (await scene.tx.roots(TENANT)).live == set()


async def test_roots_are_of_one_tenant(scene: Scene) -> None:
    for tenant in ("acme-2", "acm", "acme.x"):
        record = WorkspaceRecord(name="site", created=NOW, updated=NOW, op_id="op", head=pointer(tenant))
        await scene.tx.create_workspace(tenant, record, snapshot=pointer(tenant))
    assert await names(scene) == ["head"]
    assert await names(scene, "acme-2") == ["acme-2"]
    assert await names(scene, "nobody") == []


async def test_roots_are_all_of_one_revision_whatever_is_committed_meanwhile(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task's checkpoint becomes a workspace's head between two readings: it must be in one of them."""
    _, task = await scene.checkpointed("check", EPHEMERAL)
    before = await scene.tx.roots(TENANT)

    async def moves(number: int) -> None:
        if number == 1:
            workspace = await scene.tx.get_workspace(TENANT, WORKSPACE)
            assert workspace is not None
            await scene.place(HEAD, encode(replace(workspace.record, head=pointer("check"))))
            await scene.remove(keys.task(TENANT, task.record.task))
            await scene.place(snapshot_key("late"), encode(SnapshotRecord(pointer=pointer("late"), created=NOW)))

    on_range(scene, monkeypatch, moves)
    assert await scene.tx.roots(TENANT) == before
    after = await scene.tx.roots(TENANT)
    assert after.revision > before.revision
    assert {pointer.id for pointer in after.pointers} == {"snap-check", "snap-head", "snap-late"}


async def test_many_tasks_are_read_in_pages(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roots_module, "PAGE", 2)
    expected = ["head"]
    for n in range(7):
        await scene.checkpointed(f"check-{n}", EPHEMERAL)
        expected.append(f"check-{n}")
    assert await names(scene) == sorted(expected)
    assert len((await scene.tx.roots(TENANT)).live) == 7


async def test_a_compaction_in_between_begins_it_anew(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = await scene.tx.roots(TENANT)

    async def compacted(number: int) -> None:
        if number in (2, 4):
            raise CompactedError(1)

    on_range(scene, monkeypatch, compacted)
    assert await scene.tx.roots(TENANT) == expected


async def test_compactions_without_end_are_an_outage(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    async def compacted(number: int) -> None:
        raise CompactedError(1)

    on_range(scene, monkeypatch, compacted)
    with pytest.raises(UnavailableError):
        await scene.tx.roots(TENANT)


async def test_tenants_are_those_that_have_any_key(scene: Scene) -> None:
    assert await scene.tx.tenants() == [TENANT]
    for n in range(3):
        for tenant in ("acme-2", "acme.x", "acme0", "a"):
            task = life.queued(tenant=tenant, task=f"task-{n}", plan=Plan(), now=NOW, op_id=scene.op())
            await scene.tx.submit(task, b"spec")
    await scene.place(keys.delivery("only-delivery", "c", "t"), encode(DeliveryRecord(revision=1)))
    await scene.place(keys.spec("zz-last", "t"), b"spec")
    await scene.tx.bury("buried")
    expected = ["a", "acme", "acme-2", "acme.x", "acme0", "buried", "only-delivery", "zz-last"]
    assert await scene.tx.tenants() == expected
