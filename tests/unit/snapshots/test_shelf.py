"""Which trees a host keeps, and which it throws away (rule 11)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloudclaw.clock import SystemClock
from cloudclaw.coordination.records import SnapshotPointer
from cloudclaw.errors import DataLossError, InvalidArgumentError
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots.engine import SnapshotEngine
from cloudclaw.snapshots.index import Index
from cloudclaw.snapshots.port import WORKSPACE
from cloudclaw.snapshots.shelf import UNUSED, Shelf
from tests.support.trees import TENANT, engine


async def committed(manager: SnapshotEngine, uid: str, snapshot: str, size: int = 100) -> SnapshotPointer:
    """A tree that went through a whole attempt whose commit was acknowledged."""
    tree = await manager.checkout(TENANT, None, uid)
    (tree.path / WORKSPACE / "file").write_bytes(os.urandom(size))
    pointer = (await manager.snapshot(TENANT, tree, snapshot)).pointer
    await manager.release(TENANT, tree, pointer)
    return pointer


class LaterClock(SystemClock):
    """A clock that can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def wall(self) -> float:
        return super().wall() + self.ahead


def indexes(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "trees" / "index").iterdir()}


def trash(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "trees" / "trash").iterdir())


async def test_a_committed_tree_is_taken_again_without_the_store(tmp_path: Path) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    pointer = await committed(manager, "first", "snap-1")
    assert manager.cached() == [(TENANT, "snap-1")]
    async for info in store.list("tenants/"):
        await store.delete(info.name)
    tree = await manager.checkout(TENANT, pointer, "second")
    assert (tree.path / WORKSPACE / "file").stat().st_size == 100
    assert manager.cached() == [], "a tree is one checkout's alone"


async def test_a_tree_that_was_not_committed_is_removed(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    await manager.snapshot(TENANT, tree, "snap-1")
    await manager.release(TENANT, tree, None)
    assert manager.cached() == []
    assert not tree.path.exists()


async def test_a_tree_is_kept_only_for_the_snapshot_that_was_last_taken_of_it(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    checkpoint = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    (tree.path / WORKSPACE / "later").write_text("x")
    await manager.snapshot(TENANT, tree, "snap-2")
    await manager.release(TENANT, tree, checkpoint)
    assert manager.cached() == []


async def test_a_snapshot_that_failed_takes_the_label_away(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    first = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    os.mkfifo(tree.path / WORKSPACE / "fifo")
    with pytest.raises(InvalidArgumentError):
        await manager.snapshot(TENANT, tree, "snap-2")
    await manager.release(TENANT, tree, first)
    assert manager.cached() == []


async def test_another_tenant_never_gets_the_tree(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    pointer = await committed(manager, "uid", "snap-1")
    with pytest.raises(DataLossError):
        await manager.checkout("other", pointer, "theirs")
    assert manager.cached() == [(TENANT, "snap-1")]


async def test_a_tree_of_the_same_id_and_another_manifest_is_not_taken(tmp_path: Path) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    await committed(manager, "first", "snap-1")
    other = engine(tmp_path / "elsewhere", store)
    pointer = await committed(other, "second", "snap-1", size=55)
    tree = await manager.checkout(TENANT, pointer, "third")
    assert (tree.path / WORKSPACE / "file").stat().st_size == 55


async def test_the_least_recently_used_trees_go_first(tmp_path: Path) -> None:
    manager = engine(tmp_path, cache_bytes=250)
    first = await committed(manager, "a", "snap-a")
    await committed(manager, "b", "snap-b")
    tree = await manager.checkout(TENANT, first, "again")
    same = (await manager.snapshot(TENANT, tree, "snap-a2")).pointer
    assert same == first, "nothing changed, so nothing is new"
    await manager.release(TENANT, tree, same)
    await committed(manager, "c", "snap-c")
    assert manager.cached() == [(TENANT, "snap-a"), (TENANT, "snap-c")]
    await manager.settled()
    assert trash(tmp_path) == []


async def test_a_tree_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    manager = engine(tmp_path, cache_bytes=50)
    await committed(manager, "a", "snap-a")
    assert manager.cached() == []
    await manager.settled()
    assert trash(tmp_path) == []


async def test_a_restart_keeps_ready_trees_and_sweeps_the_rest(tmp_path: Path) -> None:
    before = engine(tmp_path)
    pointer = await committed(before, "done", "snap-1")
    running = await before.checkout(TENANT, None, "running")
    crashed = await before.checkout(TENANT, None, "crashed")
    (tmp_path / "trees" / "trash" / "half").mkdir()
    (tmp_path / "trees" / "ready" / "an-earlier-boot" / "x@y@z@1").mkdir(parents=True)

    after = engine(tmp_path)
    await after.sweep({"running"})
    assert running.path.is_dir()
    assert not crashed.path.exists()
    await after.settled()
    assert trash(tmp_path) == []
    assert len(list((tmp_path / "trees" / "ready").iterdir())) == 1
    assert after.cached() == [(TENANT, "snap-1")]
    again = await after.reopen(TENANT, pointer, "running")
    assert again is not None
    assert again.path == running.path
    assert await after.reopen(TENANT, pointer, "crashed") is None
    assert (await after.checkout(TENANT, pointer, "new")).path.is_dir()


async def test_a_tree_reopened_after_a_restart_is_not_kept_without_a_new_snapshot(tmp_path: Path) -> None:
    before = engine(tmp_path)
    tree = await before.checkout(TENANT, None, "uid")
    pointer = (await before.snapshot(TENANT, tree, "snap-1")).pointer
    after = engine(tmp_path)
    again = await after.reopen(TENANT, None, "uid")
    assert again is not None
    await after.release(TENANT, again, pointer)
    assert after.cached() == []


async def test_a_tree_that_a_crash_left_is_replaced(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    left = await manager.checkout(TENANT, None, "uid")
    (left.path / WORKSPACE / "leftover").write_text("x")
    tree = await manager.checkout(TENANT, None, "uid")
    assert list((tree.path / WORKSPACE).iterdir()) == []
    await manager.settled()
    assert trash(tmp_path) == []


async def test_directories_of_trees_are_closed_to_others(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    assert (tmp_path / "trees").stat().st_mode & 0o777 == 0o700
    assert tree.path.stat().st_mode & 0o777 == 0o700


async def test_an_index_goes_with_its_tree(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    pointer = await committed(manager, "first", "snap-1")
    assert indexes(tmp_path) == {f"{TENANT}@snap-1@@{pointer.manifest}@100"}
    await manager.checkout(TENANT, pointer, "second")
    assert indexes(tmp_path) == {"second"}
    index = Index.load(tmp_path / "trees" / "index" / "second")
    assert index is not None
    assert index.snapshot == pointer.manifest
    assert b"workspace/file" in index.seen


async def test_a_restored_tree_has_an_index_from_the_start(tmp_path: Path) -> None:
    store = MemoryObjects()
    pointer = await committed(engine(tmp_path / "origin", store), "first", "snap-1")
    await engine(tmp_path, store).checkout(TENANT, pointer, "second")
    index = Index.load(tmp_path / "trees" / "index" / "second")
    assert index is not None
    assert (index.base, list(index.seen)) == (pointer.manifest, [b"workspace/file"])


async def test_a_tree_never_meets_the_index_of_another(tmp_path: Path) -> None:
    """Whatever a crash between the two renames leaves."""
    manager = engine(tmp_path)
    pointer = await committed(manager, "first", "snap-1")
    folder = tmp_path / "trees" / "index"
    (folder / f"{TENANT}@snap-1@@{pointer.manifest}@100").rename(folder / "second")
    await manager.checkout(TENANT, pointer, "second")
    assert indexes(tmp_path) == set(), "taken: what lay there was another's"
    Index(base="of another tree").save(folder / f"{TENANT}@snap-2@@{pointer.manifest}@1")
    shelf = Shelf(tmp_path / "trees", 1000, SystemClock())
    other = SnapshotPointer(id="snap-2", manifest=pointer.manifest, uid="second")
    assert shelf.put(TENANT, other, "second", 1) == []
    assert indexes(tmp_path) == set(), "put: what lay there was another's"
    Index(base="of another tree").save(folder / "third")
    tree = await manager.checkout(TENANT, None, "third")
    assert list((tree.path / WORKSPACE).iterdir()) == []
    assert indexes(tmp_path) == set(), "made: what lay there was another's"


async def test_indexes_go_with_trees_that_are_thrown_out(tmp_path: Path) -> None:
    manager = engine(tmp_path, cache_bytes=150)
    await committed(manager, "a", "snap-a")
    last = await committed(manager, "b", "snap-b")
    tree = await manager.checkout(TENANT, None, "crashed")
    await manager.snapshot(TENANT, tree, "snap-c")
    (tmp_path / "trees" / "index" / "nobodys").write_bytes(b"")
    await manager.sweep(set())
    assert indexes(tmp_path) == {f"{TENANT}@snap-b@@{last.manifest}@100"}


async def test_trees_unused_for_a_week_go_at_a_sweep_and_when_one_is_put(tmp_path: Path) -> None:
    clock = LaterClock()
    manager = SnapshotEngine(MemoryObjects(), tmp_path / "trees", clock)
    await committed(manager, "a", "snap-a")
    clock.ahead = UNUSED - 100
    await manager.sweep(set())
    await committed(manager, "b", "snap-b")
    assert manager.cached() == [(TENANT, "snap-a"), (TENANT, "snap-b")]
    clock.ahead = UNUSED + 100
    await manager.sweep(set())
    assert manager.cached() == [(TENANT, "snap-b")]
    clock.ahead = 3 * UNUSED
    await committed(manager, "c", "snap-c")
    assert manager.cached() == [(TENANT, "snap-c")]
    await manager.settled()
    assert trash(tmp_path) == []


async def test_the_age_of_a_tree_outlives_a_restart(tmp_path: Path) -> None:
    clock = LaterClock()
    before = SnapshotEngine(MemoryObjects(), tmp_path / "trees", clock)
    await committed(before, "a", "snap-a")
    clock.ahead = UNUSED + 100
    after = SnapshotEngine(MemoryObjects(), tmp_path / "trees", clock)
    await after.sweep(set())
    assert after.cached() == []


async def test_a_forgotten_tenant_has_no_trees_and_no_manifests_here(tmp_path: Path) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    pointer = await committed(manager, "mine", "snap-1")
    tree = await manager.checkout("other", None, "theirs")
    kept = (await manager.snapshot("other", tree, "snap-2")).pointer
    await manager.release("other", tree, kept)
    await manager.forget(TENANT)
    assert manager.cached() == [("other", "snap-2")]
    await manager.settled()
    assert trash(tmp_path) == []
    async for info in store.list(f"tenants/{TENANT}/"):
        await store.delete(info.name)
    with pytest.raises(DataLossError):
        await manager.manifest(TENANT, pointer)


async def test_a_ready_tree_that_vanished_is_restored(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    pointer = await committed(manager, "first", "snap-1")
    (ready,) = (tmp_path / "trees" / "ready").glob("*/*")
    ready.rename(tmp_path / "gone")
    tree = await manager.checkout(TENANT, pointer, "second")
    assert (tree.path / WORKSPACE / "file").stat().st_size == 100


async def test_trees_of_an_earlier_boot_are_not_believed(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    pointer = await committed(manager, "first", "snap-1")
    (ready,) = (tmp_path / "trees" / "ready").glob("*/*")
    (ready / WORKSPACE / "file").write_bytes(b"")
    ready.parent.rename(tmp_path / "trees" / "ready" / "another-boot")
    after = engine(tmp_path, manager._store)
    assert after.cached() == []
    tree = await after.checkout(TENANT, pointer, "second")
    assert (tree.path / WORKSPACE / "file").stat().st_size == 100
