"""Checkpoints beside what else happens to a workspace: its deletion, an unchanged tree, a head that moves on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from cloudclaw.coordination import keys, life
from cloudclaw.coordination.records import (
    AttemptState,
    EndReason,
    SnapshotPointer,
    SnapshotRecord,
    TaskRecord,
    TaskState,
    decode,
    encode,
)
from cloudclaw.coordination.transactions import Token, Versioned
from cloudclaw.errors import AbortedError
from tests.support.checkpoint_transactions import snapshot_key
from tests.support.coordination import (
    BOTH_STORES,
    EPHEMERAL,
    EXCLUSIVE,
    FORK,
    NODE,
    NOW,
    TENANT,
    WORKSPACE,
    Scene,
    pointer,
    scene_on,
)
from tests.support.etcd_server import running_etcd
from tests.support.task_transactions import HEAD

etcd_server = pytest.fixture(scope="module")(running_etcd)


@pytest.fixture(params=BOTH_STORES)
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    async with scene_on(request) as scene:
        yield scene


async def checkpoint(
    scene: Scene, token: Token, task: Versioned[TaskRecord], snapshot: SnapshotPointer
) -> Versioned[TaskRecord]:
    after = life.checkpointed(task.record, NOW, snapshot, op_id=scene.op())
    return await scene.tx.checkpoint(token, task, after, snapshot)


async def succeed(
    scene: Scene, token: Token, task: Versioned[TaskRecord], snapshot: SnapshotPointer | None
) -> Versioned[TaskRecord]:
    after = life.reported(task.record, NOW, AttemptState.SUCCEEDED, EndReason.COMPLETED, op_id=scene.op())
    moves = task.record.plan.writes and snapshot is not None
    return await scene.tx.finish(token, task, after, snapshot=snapshot, move_head=moves)


async def delete_workspace(scene: Scene) -> None:
    workspace = await scene.tx.get_workspace(TENANT, WORKSPACE)
    assert workspace is not None
    await scene.tx.delete_workspace(TENANT, workspace)


async def again(
    scene: Scene, token: Token, task: Versioned[TaskRecord], base: SnapshotPointer
) -> Versioned[TaskRecord]:
    """The task runs once more, from `base`, after its node was drained."""
    after = life.reported(task.record, NOW, AttemptState.FAILED, EndReason.DRAINED, op_id=scene.op())
    task = await scene.tx.finish(token, task, after)
    task = await scene.tx.due(scene.leadership, task, life.became_due(task.record, NOW, op_id=scene.op()))
    claimed = life.claimed(task.record, NODE, "uid-again", base, NOW, scene.op())
    workspace = await scene.kv.get(HEAD)
    return await scene.tx.claim(scene.leadership, task, claimed, await scene.node_entry(), workspace=workspace)


def snapshots(stored: dict[str, tuple[bytes, int]]) -> list[str]:
    return [key for key in stored if key.startswith(keys.SNAPSHOTS)]


async def test_the_next_attempt_starts_from_the_checkpoint_of_the_drained_one(scene: Scene) -> None:
    token, task = await scene.checkpointed("check")
    running = await again(scene, token, task, pointer("head"))
    assert running.record.attempt == 2
    assert running.record.given_back == 1
    assert (running.record.attempts[-1].base, running.record.attempts[-1].resumed) == (pointer("check").id, True)


async def test_a_checkpoint_without_a_workspace_lives_in_its_task_s_record_alone(scene: Scene) -> None:
    before = snapshots(await scene.dump())
    token, task = await scene.checkpointed("one", EPHEMERAL)
    task = await checkpoint(scene, token, task, pointer("two"))
    assert task.record.checkpoint == pointer("two")
    ended = await succeed(scene, token, task, None)
    assert ended.record.checkpoint is None
    assert snapshots(await scene.dump()) == before


async def test_nothing_is_added_to_a_workspace_that_was_deleted_under_a_fork(scene: Scene) -> None:
    token, task = await scene.checkpointed("one", FORK)
    await delete_workspace(scene)
    task = await checkpoint(scene, token, task, pointer("two"))
    assert task.record.checkpoint == pointer("two")
    await succeed(scene, token, task, pointer("three"))
    assert snapshots(await scene.dump()) == []


async def test_a_workspace_deleted_in_the_moment_of_a_fork_s_checkpoint_gets_nothing_either(scene: Scene) -> None:
    token, task = await scene.running(FORK)
    scene.kv.before_txn = lambda: delete_workspace(scene)
    with pytest.raises(AbortedError):
        await checkpoint(scene, token, task, pointer("one"))
    assert snapshots(await scene.dump()) == []
    await checkpoint(scene, token, task, pointer("one"))
    assert snapshots(await scene.dump()) == []


async def test_a_workspace_deleted_in_the_moment_of_a_fork_s_success_gets_nothing(scene: Scene) -> None:
    token, task = await scene.running(FORK)
    scene.kv.before_txn = lambda: delete_workspace(scene)
    with pytest.raises(AbortedError):
        await succeed(scene, token, task, pointer("result"))
    assert snapshots(await scene.dump()) == []
    assert (await succeed(scene, token, task, pointer("result"))).record.state is TaskState.SUCCEEDED


async def test_a_fork_s_success_is_listed_in_its_workspace(scene: Scene) -> None:
    token, task = await scene.running(FORK)
    await succeed(scene, token, task, pointer("result"))
    entry = await scene.entry(snapshot_key("result"))
    assert decode(entry.value, SnapshotRecord).task == task.record.task


async def test_the_checkpoint_of_an_unchanged_tree_leaves_the_base_as_it_is(scene: Scene) -> None:
    before = await scene.entry(snapshot_key("head"))
    token, task = await scene.running(EXCLUSIVE)
    task = await checkpoint(scene, token, task, pointer("head"))
    task = await checkpoint(scene, token, task, pointer("one"))
    task = await checkpoint(scene, token, task, pointer("head"))
    assert snapshot_key("one") not in await scene.dump()
    await succeed(scene, token, task, pointer("new"))
    assert await scene.entry(snapshot_key("head")) == before


async def test_a_checkpoint_that_is_the_last_one_over_again_stays(scene: Scene) -> None:
    token, task = await scene.checkpointed("one")
    before = await scene.entry(snapshot_key("one"))
    task = await checkpoint(scene, token, task, pointer("one"))
    assert await scene.entry(snapshot_key("one")) == before
    await succeed(scene, token, task, pointer("one"))
    # It became the head, and is a version from then on.
    after = await scene.entry(snapshot_key("one"))
    assert after.create_revision == before.create_revision
    assert decode(after.value, SnapshotRecord) == replace(decode(before.value, SnapshotRecord), head=True)


async def test_only_what_became_the_head_is_listed_as_such(scene: Scene) -> None:
    """Checkpoints, and what tasks left that do not write to the workspace, are none of its versions."""

    async def heads() -> set[str]:
        listed = await scene.tx.snapshots_of(TENANT, WORKSPACE)
        return {version.record.pointer.id for version in listed if version.record.head}

    token, task = await scene.running(FORK)
    task = await checkpoint(scene, token, task, pointer("forked"))
    after = life.reported(task.record, NOW, AttemptState.SUCCEEDED, EndReason.COMPLETED, op_id=scene.op(), exit_code=0)
    await scene.tx.finish(token, task, after, snapshot=pointer("fork-result"))
    assert snapshot_key("fork-result") in await scene.dump()
    assert await heads() == {"snap-head"}
    token, task = await scene.checkpointed("check", EXCLUSIVE)
    assert await heads() == {"snap-head"}
    await succeed(scene, token, task, pointer("new"))
    assert await heads() == {"snap-head", "snap-new"}


async def test_a_fork_never_removes_the_snapshot_of_another_even_when_the_head_moved_on(scene: Scene) -> None:
    """It had an unchanged tree as its checkpoint, and starts again from another head."""
    token, task = await scene.checkpointed("head", FORK)
    await scene.place(snapshot_key("later"), encode(SnapshotRecord(pointer=pointer("later"), created=NOW)))
    task = await again(scene, token, task, pointer("later"))
    token = replace_revision(token, task.mod_revision)
    task = await checkpoint(scene, token, task, pointer("own"))
    assert snapshot_key("head") in await scene.dump()
    assert task.record.state is TaskState.RUNNING


async def test_a_fork_s_base_that_its_task_kept_needs_no_key_any_more(scene: Scene) -> None:
    token, task = await scene.checkpointed("check", FORK)
    await scene.remove(snapshot_key("head"))
    assert (await again(scene, token, task, pointer("head"))).record.attempt == 2


async def test_a_checkpoint_that_its_record_does_not_name_is_refused(scene: Scene) -> None:
    token, task = await scene.running()
    after = life.checkpointed(task.record, NOW, pointer("one"), op_id=scene.op())
    with pytest.raises(ValueError):
        await scene.tx.checkpoint(token, task, after, pointer("two"))
    with pytest.raises(ValueError):
        await scene.tx.serve_checkpoint(token, task, after)
    with pytest.raises(ValueError):
        await scene.tx.want_checkpoint(task, after)
    with pytest.raises(ValueError):
        await scene.tx.want_checkpoint(task, replace(task.record, state=TaskState.QUEUED))


def replace_revision(token: Token, revision: int) -> Token:
    return Token(token.node, token.tenant, token.task, revision)
