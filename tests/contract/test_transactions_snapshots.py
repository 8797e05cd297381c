"""Snapshots of a workspace: forked and restored while they are there, forgotten unless they are the head."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from cloudclaw.coordination import keys
from cloudclaw.coordination.records import SnapshotPointer, SnapshotRecord, WorkspaceRecord, encode
from cloudclaw.coordination.transactions import Versioned
from cloudclaw.errors import AbortedError, AlreadyExistsError, NotFoundError, PreconditionError, UnavailableError
from tests.support.checkpoint_transactions import snapshot_key
from tests.support.coordination import BOTH_STORES, NOW, TENANT, WORKSPACE, Scene, pointer, scene_on
from tests.support.etcd_server import running_etcd
from tests.support.task_transactions import HEAD

etcd_server = pytest.fixture(scope="module")(running_etcd)

SOURCE = (WORKSPACE, "snap-head")


@pytest.fixture(params=BOTH_STORES)
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    async with scene_on(request) as scene:
        yield scene


async def present(scene: Scene) -> Versioned[WorkspaceRecord]:
    workspace = await scene.tx.get_workspace(TENANT, WORKSPACE)
    assert workspace is not None
    return workspace


async def listed(scene: Scene, *names: str) -> None:
    """These snapshots are in the workspace's list."""
    for name in names:
        await scene.place(snapshot_key(name), encode(SnapshotRecord(pointer=pointer(name), created=NOW)))


def fork(scene: Scene, head: SnapshotPointer) -> WorkspaceRecord:
    return WorkspaceRecord(name="fork", created=NOW, updated=NOW, op_id=scene.op(), head=head, generation=1)


def moved(scene: Scene, workspace: Versioned[WorkspaceRecord], head: SnapshotPointer) -> WorkspaceRecord:
    record = workspace.record
    return replace(record, head=head, generation=record.generation + 1, op_id=scene.op())


# -- fork --


async def test_a_fork_begins_with_its_source_s_snapshot(scene: Scene) -> None:
    record = fork(scene, pointer("head"))
    made = await scene.tx.create_workspace(TENANT, record, snapshot=pointer("head"), source=SOURCE)
    assert made == await scene.tx.get_workspace(TENANT, "fork")
    assert keys.snapshot(TENANT, "fork", "snap-head") in await scene.dump()
    await scene.remove(snapshot_key("head"))
    again = await scene.tx.create_workspace(TENANT, record, snapshot=pointer("head"), source=SOURCE)
    assert again == made


async def test_a_fork_of_a_snapshot_that_goes_in_that_moment_is_refused(scene: Scene) -> None:
    scene.kv.before_txn = lambda: scene.remove(snapshot_key("head"))
    with pytest.raises(NotFoundError) as refused:
        await scene.tx.create_workspace(TENANT, fork(scene, pointer("head")), snapshot=pointer("head"), source=SOURCE)
    assert refused.value.reason == "NO_SNAPSHOT"
    assert await scene.tx.get_workspace(TENANT, "fork") is None


async def test_a_fork_over_a_workspace_that_exists_is_refused_as_such(scene: Scene) -> None:
    await scene.tx.create_workspace(TENANT, fork(scene, pointer("head")))
    with pytest.raises(AlreadyExistsError):
        await scene.tx.create_workspace(TENANT, fork(scene, pointer("head")), source=SOURCE)


async def test_lost_answers_of_a_fork(scene: Scene) -> None:
    record = fork(scene, pointer("head"))
    scene.kv.fail_next("txn")
    with pytest.raises(UnavailableError):
        await scene.tx.create_workspace(TENANT, record, source=SOURCE)
    scene.kv.fail_next("txn", applied=True)
    assert (await scene.tx.create_workspace(TENANT, record, source=SOURCE)).record == record


# -- restore --


async def test_a_snapshot_that_is_listed_can_be_restored(scene: Scene) -> None:
    await listed(scene, "old")
    token = await scene.tx.acquire_writer(TENANT, WORKSPACE, "op", await scene.kv.grant(60))
    workspace = await present(scene)
    restored = pointer("restored")
    after = moved(scene, workspace, restored)
    done = await scene.tx.commit_workspace(TENANT, workspace, after, restored, token, source="snap-old")
    assert done == await present(scene)
    await scene.remove(snapshot_key("old"))
    again = await scene.tx.commit_workspace(TENANT, workspace, after, restored, token, source="snap-old")
    assert again == done


async def test_a_snapshot_that_goes_in_that_moment_is_not_restored(scene: Scene) -> None:
    await listed(scene, "old")
    token = await scene.tx.acquire_writer(TENANT, WORKSPACE, "op", await scene.kv.grant(60))
    workspace = await present(scene)
    restored = pointer("restored")
    scene.kv.before_txn = lambda: scene.remove(snapshot_key("old"))
    with pytest.raises(NotFoundError) as refused:
        await scene.tx.commit_workspace(
            TENANT, workspace, moved(scene, workspace, restored), restored, token, source="snap-old"
        )
    assert refused.value.reason == "NO_SNAPSHOT"
    assert await present(scene) == workspace


async def test_a_restored_snapshot_has_an_id_of_its_own(scene: Scene) -> None:
    await listed(scene, "old")
    workspace = await present(scene)
    after = moved(scene, workspace, pointer("old"))
    with pytest.raises(ValueError):
        await scene.tx.commit_workspace(TENANT, workspace, after, pointer("old"), 1, source="snap-old")


# -- retention's settings --


async def test_retention_is_set_on_an_unchanged_workspace(scene: Scene) -> None:
    workspace = await present(scene)
    after = replace(workspace.record, keep_last=7, op_id=scene.op())
    done = await scene.tx.update_workspace(TENANT, workspace, after)
    assert done == await present(scene)
    assert done.record.keep_last == 7
    assert await scene.tx.update_workspace(TENANT, workspace, after) == done
    with pytest.raises(AbortedError):
        await scene.tx.update_workspace(TENANT, workspace, replace(after, op_id=scene.op()))
    assert await present(scene) == done


async def test_setting_retention_moves_no_head(scene: Scene) -> None:
    workspace = await present(scene)
    for after in (
        moved(scene, workspace, pointer("x")),
        replace(workspace.record, generation=9),
        replace(workspace.record, name="other"),
    ):
        with pytest.raises(ValueError):
            await scene.tx.update_workspace(TENANT, workspace, after)


async def test_retention_of_a_workspace_that_is_gone_is_a_conflict(scene: Scene) -> None:
    workspace = await present(scene)
    await scene.remove(HEAD)
    with pytest.raises(AbortedError):
        await scene.tx.update_workspace(TENANT, workspace, replace(workspace.record, op_id=scene.op()))
    assert HEAD not in await scene.dump()


async def test_lost_answers_of_setting_retention(scene: Scene) -> None:
    workspace = await present(scene)
    after = replace(workspace.record, keep_daily=3, op_id=scene.op())
    scene.kv.fail_next("txn")
    with pytest.raises(UnavailableError):
        await scene.tx.update_workspace(TENANT, workspace, after)
    assert await present(scene) == workspace
    scene.kv.fail_next("txn", applied=True)
    assert (await scene.tx.update_workspace(TENANT, workspace, after)).record == after
    scene.kv.fail_next("txn")
    with pytest.raises(AbortedError):
        await scene.tx.update_workspace(TENANT, workspace, replace(after, op_id=scene.op()))


async def test_a_commit_whose_answer_was_lost_and_that_retention_came_before_is_a_conflict(scene: Scene) -> None:
    """Not the loss of its writer, which it still has."""
    token = await scene.tx.acquire_writer(TENANT, WORKSPACE, "op", await scene.kv.grant(60))
    workspace = await present(scene)
    await scene.tx.update_workspace(TENANT, workspace, replace(workspace.record, keep_last=7, op_id=scene.op()))
    scene.kv.fail_next("txn")
    with pytest.raises(AbortedError):
        await scene.tx.commit_workspace(TENANT, workspace, moved(scene, workspace, pointer("x")), pointer("x"), token)


# -- which there are, and forgetting some --


async def test_snapshots_are_listed_oldest_first(scene: Scene) -> None:
    await listed(scene, "z", "a", "m")
    await scene.place(keys.snapshot(TENANT, WORKSPACE + "-2", "s"), b"{}")
    versions = await scene.tx.snapshots_of(TENANT, WORKSPACE)
    assert [version.record.pointer for version in versions] == [pointer(name) for name in ("head", "z", "a", "m")]
    assert all(version.create_revision for version in versions)
    assert await scene.tx.snapshots_of(TENANT, "nowhere") == []


async def test_forgotten_snapshots_go_and_the_others_stay(scene: Scene) -> None:
    names = [f"s{n}" for n in range(130)]
    await listed(scene, *names, "kept")
    ids = [pointer(name).id for name in names]
    for _ in range(2):
        await scene.tx.delete_snapshots(TENANT, await present(scene), [*ids, ids[0], "snap-unknown"])
        left = [version.record.pointer for version in await scene.tx.snapshots_of(TENANT, WORKSPACE)]
        assert left == [pointer("head"), pointer("kept")]


async def test_the_head_is_never_forgotten(scene: Scene) -> None:
    await listed(scene, "old")
    stored = await scene.dump()
    with pytest.raises(PreconditionError) as refused:
        await scene.tx.delete_snapshots(TENANT, await present(scene), ["snap-old", "snap-head"])
    assert refused.value.reason == "SNAPSHOT_IS_HEAD"
    assert await scene.dump() == stored


async def test_nothing_is_forgotten_of_a_workspace_that_changed(scene: Scene) -> None:
    """Its head may be one of them by now."""
    await listed(scene, "old")
    workspace = await present(scene)
    scene.kv.before_txn = lambda: scene.place(HEAD, encode(replace(workspace.record, head=pointer("old"))))
    with pytest.raises(AbortedError):
        await scene.tx.delete_snapshots(TENANT, workspace, ["snap-old"])
    assert snapshot_key("old") in await scene.dump()


async def test_a_lost_answer_of_forgetting_may_be_repeated(scene: Scene) -> None:
    await listed(scene, "old")
    for applied in (False, True):
        scene.kv.fail_next("txn", applied=applied)
        with pytest.raises(UnavailableError):
            await scene.tx.delete_snapshots(TENANT, await present(scene), ["snap-old"])
    await scene.tx.delete_snapshots(TENANT, await present(scene), ["snap-old"])
    assert snapshot_key("old") not in await scene.dump()
