"""Workspaces: made once, written by one at a time, and never deleted under a writer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Put
from cloudclaw.coordination.records import SnapshotRecord, WorkspaceRecord, decode, encode
from cloudclaw.coordination.transactions import Versioned
from cloudclaw.coordination.transactions.store import writer_value
from cloudclaw.errors import (
    AbortedError,
    AlreadyExistsError,
    FencedError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from tests.support.coordination import BOTH_STORES, NOW, TENANT, WORKSPACE, Scene, pointer, scene_on
from tests.support.etcd_server import running_etcd
from tests.support.task_transactions import HEAD, WRITER

etcd_server = pytest.fixture(scope="module")(running_etcd)


@pytest.fixture(params=BOTH_STORES)
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    async with scene_on(request) as scene:
        yield scene


def fresh(scene: Scene, name: str = "new") -> WorkspaceRecord:
    return WorkspaceRecord(name=name, created=NOW, updated=NOW, op_id=scene.op())


async def present(scene: Scene) -> Versioned[WorkspaceRecord]:
    workspace = await scene.tx.get_workspace(TENANT, WORKSPACE)
    assert workspace is not None
    return workspace


def written(scene: Scene, workspace: Versioned[WorkspaceRecord]) -> WorkspaceRecord:
    record = workspace.record
    return replace(record, head=pointer("new"), generation=record.generation + 1, op_id=scene.op(), updated=NOW + 1)


# -- create --


async def test_a_workspace_is_made_once(scene: Scene) -> None:
    record = fresh(scene)
    made = await scene.tx.create_workspace(TENANT, record)
    assert made == await scene.tx.get_workspace(TENANT, "new")
    assert await scene.tx.create_workspace(TENANT, record) == made
    with pytest.raises(AlreadyExistsError):
        await scene.tx.create_workspace(TENANT, fresh(scene))
    assert await scene.tx.get_workspace("other", "new") is None


async def test_a_fork_is_made_with_its_snapshot(scene: Scene) -> None:
    head = pointer("fork")
    await scene.tx.create_workspace(TENANT, replace(fresh(scene), head=head), snapshot=head)
    entry = await scene.entry(keys.snapshot(TENANT, "new", head.id))
    assert decode(entry.value, SnapshotRecord).pointer == head


async def test_lost_answers_of_a_creation(scene: Scene) -> None:
    record = fresh(scene)
    scene.kv.fail_next("txn")
    with pytest.raises(UnavailableError):
        await scene.tx.create_workspace(TENANT, record)
    scene.kv.fail_next("txn", applied=True)
    assert (await scene.tx.create_workspace(TENANT, record)).record == record
    scene.kv.fail_next("txn")
    with pytest.raises(AlreadyExistsError):
        await scene.tx.create_workspace(TENANT, fresh(scene))


# -- the writer --


async def test_one_operation_writes_at_a_time(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    answers = await asyncio.gather(
        *(scene.tx.acquire_writer(TENANT, WORKSPACE, f"op-{n}", lease) for n in range(5)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, AbortedError)]
    assert len(refused) == 4
    assert {error.reason for error in refused} == {"WRITER_BUSY"}
    assert all(error.metadata["holder"].startswith("user:op-") for error in refused)


async def test_a_task_keeps_users_out_through_its_backoff(scene: Scene) -> None:
    task = await scene.delayed()
    with pytest.raises(AbortedError) as refused:
        await scene.tx.acquire_writer(TENANT, WORKSPACE, "op", await scene.kv.grant(60))
    assert refused.value.metadata["holder"] == task.record.task


async def test_an_unknown_workspace_has_no_writer(scene: Scene) -> None:
    with pytest.raises(NotFoundError):
        await scene.tx.acquire_writer(TENANT, "nowhere", "op", await scene.kv.grant(60))
    assert keys.writer(TENANT, "nowhere") not in await scene.dump()


async def test_a_user_s_writer_goes_with_its_lease(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    await scene.tx.acquire_writer(TENANT, WORKSPACE, "op", lease)
    await scene.kv.revoke(lease)
    assert WRITER not in await scene.dump()
    with pytest.raises(FencedError):
        await scene.tx.acquire_writer(TENANT, WORKSPACE, "op", lease)


async def test_acquiring_twice_answers_the_same_token(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    token = await scene.tx.acquire_writer(TENANT, WORKSPACE, "op", lease)
    assert await scene.tx.acquire_writer(TENANT, WORKSPACE, "op", lease) == token
    assert (await scene.entry(WRITER)).create_revision == token


async def test_lost_answers_of_an_acquisition(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    scene.kv.fail_next("txn")
    with pytest.raises(UnavailableError):
        await scene.tx.acquire_writer(TENANT, WORKSPACE, "op", lease)
    scene.kv.fail_next("txn", applied=True)
    token = await scene.tx.acquire_writer(TENANT, WORKSPACE, "op", lease)
    assert token == (await scene.entry(WRITER)).create_revision


async def test_a_release_leaves_another_s_writer_alone(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    old = await scene.tx.acquire_writer(TENANT, WORKSPACE, "op-1", lease)
    await scene.tx.release_writer(TENANT, WORKSPACE, old)
    new = await scene.tx.acquire_writer(TENANT, WORKSPACE, "op-2", lease)
    await scene.tx.release_writer(TENANT, WORKSPACE, old)
    assert (await scene.entry(WRITER)).create_revision == new


# -- commit --


async def test_a_commit_moves_the_head_and_gives_the_writer_back(scene: Scene) -> None:
    token = await scene.tx.acquire_writer(TENANT, WORKSPACE, "op", await scene.kv.grant(60))
    workspace = await present(scene)
    after = written(scene, workspace)
    committed = await scene.tx.commit_workspace(TENANT, workspace, after, pointer("new"), token)
    assert committed == await present(scene)
    stored = await scene.dump()
    assert WRITER not in stored
    assert keys.snapshot(TENANT, WORKSPACE, "snap-new") in stored
    assert await scene.tx.commit_workspace(TENANT, workspace, after, pointer("new"), token) == committed
    assert await scene.dump() == stored


async def test_an_operation_that_lost_its_writer_commits_nothing(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    token = await scene.tx.acquire_writer(TENANT, WORKSPACE, "op", lease)
    workspace = await present(scene)
    await scene.kv.revoke(lease)
    for holder in ("", "user:other", "task-x"):
        if holder:
            await scene.place(WRITER, writer_value(holder))
        stored = await scene.dump()
        with pytest.raises(FencedError):
            await scene.tx.commit_workspace(TENANT, workspace, written(scene, workspace), pointer("new"), token)
        assert await scene.dump() == stored


async def test_a_commit_over_a_changed_workspace_is_a_conflict(scene: Scene) -> None:
    token = await scene.tx.acquire_writer(TENANT, WORKSPACE, "op", await scene.kv.grant(60))
    workspace = await present(scene)
    await scene.touch(HEAD)
    with pytest.raises(AbortedError):
        await scene.tx.commit_workspace(TENANT, workspace, written(scene, workspace), pointer("new"), token)


async def test_lost_answers_of_a_commit(scene: Scene) -> None:
    token = await scene.tx.acquire_writer(TENANT, WORKSPACE, "op", await scene.kv.grant(60))
    workspace = await present(scene)
    after = written(scene, workspace)
    scene.kv.fail_next("txn")
    with pytest.raises(UnavailableError):
        await scene.tx.commit_workspace(TENANT, workspace, after, pointer("new"), token)
    scene.kv.fail_next("txn", applied=True)
    assert (await scene.tx.commit_workspace(TENANT, workspace, after, pointer("new"), token)).record == after


# -- delete --


@pytest.mark.parametrize("snapshots", [0, 1, 99, 100, 250])
async def test_a_deletion_takes_every_snapshot_along(scene: Scene, snapshots: int) -> None:
    await scene.tx.create_workspace(TENANT, fresh(scene))
    for n in range(snapshots):
        record = SnapshotRecord(pointer=pointer(str(n)), created=NOW)
        await scene.kv.inner.txn([], [Put(keys.snapshot(TENANT, "new", f"snap-{n}"), encode(record))])
    before = {key for key in await scene.dump() if "/new" not in key}
    workspace = await scene.tx.get_workspace(TENANT, "new")
    assert workspace is not None
    await scene.tx.delete_workspace(TENANT, workspace)
    assert set(await scene.dump()) == before
    await scene.tx.delete_workspace(TENANT, workspace)


async def list_snapshots(scene: Scene, count: int, name: str = "new") -> None:
    """So many of them are listed, whether there is such a workspace or not."""
    for n in range(count):
        record = SnapshotRecord(pointer=pointer(f"{name}-{n}"), created=NOW)
        await scene.place(keys.snapshot(TENANT, name, f"snap-{n}"), encode(record))


async def test_what_is_listed_in_the_moment_of_the_deletion_goes_along(scene: Scene) -> None:
    """As a task's checkpoint is that borrows the workspace."""
    await scene.tx.create_workspace(TENANT, fresh(scene))
    before = {key for key in await scene.dump() if "/new" not in key}
    workspace = await scene.tx.get_workspace(TENANT, "new")
    assert workspace is not None
    scene.kv.before_txn = lambda: list_snapshots(scene, 1)
    await scene.tx.delete_workspace(TENANT, workspace)
    assert set(await scene.dump()) == before


@pytest.mark.parametrize("snapshots", [1, 150])
async def test_a_workspace_of_a_deleted_one_s_name_has_none_of_its_snapshots(scene: Scene, snapshots: int) -> None:
    """The deletion died after its first transaction."""
    await list_snapshots(scene, snapshots)
    assert await scene.tx.listed_workspaces(TENANT) == ["new", WORKSPACE]
    head = pointer("fork")
    await scene.tx.create_workspace(TENANT, replace(fresh(scene), head=head), snapshot=head)
    assert [version.record.pointer for version in await scene.tx.snapshots_of(TENANT, "new")] == [head]


async def test_snapshots_of_a_workspace_that_is_gone_are_taken_off_the_list(scene: Scene) -> None:
    before = await scene.dump()
    await list_snapshots(scene, 250)
    assert await scene.tx.delete_orphans(TENANT, "new") == 250
    assert await scene.tx.delete_orphans(TENANT, "new") == 0
    assert await scene.tx.delete_orphans(TENANT, WORKSPACE) is None
    assert await scene.dump() == before
    assert await scene.tx.listed_workspaces(TENANT) == [WORKSPACE]


async def test_a_workspace_that_is_made_meanwhile_keeps_its_snapshots(scene: Scene) -> None:
    await list_snapshots(scene, 3)
    scene.kv.before_txn = lambda: scene.place(keys.workspace(TENANT, "new"), encode(fresh(scene)))
    assert await scene.tx.delete_orphans(TENANT, "new") is None
    assert len(await scene.tx.snapshots_of(TENANT, "new")) == 3


async def test_a_workspace_is_not_deleted_under_its_writer(scene: Scene) -> None:
    await scene.running()
    workspace, stored = await present(scene), await scene.dump()
    with pytest.raises(PreconditionError) as refused:
        await scene.tx.delete_workspace(TENANT, workspace)
    assert refused.value.reason == "WRITER_BUSY"
    assert await scene.dump() == stored


async def test_a_workspace_that_changed_is_not_deleted(scene: Scene) -> None:
    workspace = await present(scene)
    await scene.touch(HEAD)
    stored = await scene.dump()
    with pytest.raises(AbortedError):
        await scene.tx.delete_workspace(TENANT, workspace)
    assert await scene.dump() == stored


async def test_lost_answers_of_a_deletion(scene: Scene) -> None:
    workspace, stored = await present(scene), await scene.dump()
    scene.kv.fail_next("txn")
    with pytest.raises(UnavailableError):
        await scene.tx.delete_workspace(TENANT, workspace)
    assert await scene.dump() == stored
    scene.kv.fail_next("txn", applied=True)
    await scene.tx.delete_workspace(TENANT, workspace)
    assert await scene.tx.get_workspace(TENANT, WORKSPACE) is None
