"""A restore into the tree of a related snapshot: only what differs is fetched, and the outcome is the same."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cloudclaw.clock import SystemClock
from cloudclaw.coordination.records import SnapshotPointer
from cloudclaw.errors import DataLossError
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots.engine import SnapshotEngine
from cloudclaw.snapshots.port import HOME, WORKSPACE, Progress
from tests.support.trees import TENANT, facts


class ClockAhead(SystemClock):
    """A clock to which all that was made just now was made a minute ago, so that indexes vouch for all."""

    def wall(self) -> float:
        return super().wall() + 60


class Counted(MemoryObjects):
    """A store that counts the bytes of packs that are fetched."""

    fetched = 0

    async def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        data = await super().get(name, offset=offset, length=length)
        self.fetched += len(data) if "/packs/" in name else 0
        return data


@pytest.fixture
def store() -> Counted:
    return Counted()


@pytest.fixture
def here(tmp_path: Path, store: Counted) -> SnapshotEngine:
    return SnapshotEngine(store, tmp_path / "here", ClockAhead())


@pytest.fixture
def elsewhere(tmp_path: Path, store: Counted) -> SnapshotEngine:
    return SnapshotEngine(store, tmp_path / "elsewhere", ClockAhead())


def fill(root: Path) -> None:
    (root / "same").mkdir()
    for number in range(20):
        (root / "same" / f"f{number}").write_bytes(os.urandom(10_000))
    (root / "changes").write_bytes(os.urandom(10_000))
    (root / "goes").mkdir()
    (root / "goes" / "too").write_bytes(b"x")
    (root / "dir-file").mkdir()
    (root / "dir-file" / "inside").write_bytes(b"x")
    (root / "file-dir").write_bytes(b"x")
    (root / "dir-link").mkdir()
    (root / "dir-link" / "inside").write_bytes(b"x")
    (root / "link-dir").symlink_to("..")
    (root / "pair").write_bytes(b"pair")
    (root / "twin").hardlink_to(root / "pair")
    (root / "closed").mkdir()
    (root / "closed" / "file").write_bytes(b"x")
    (root / "closed").chmod(0o500)


def change(root: Path) -> None:
    (root / "changes").write_bytes(os.urandom(9_000))
    shutil.rmtree(root / "goes")
    shutil.rmtree(root / "dir-file")
    (root / "dir-file").write_bytes(b"now a file")
    (root / "file-dir").unlink()
    (root / "file-dir").mkdir()
    (root / "file-dir" / "inside").write_bytes(b"y")
    shutil.rmtree(root / "dir-link")
    (root / "dir-link").symlink_to("/etc")
    (root / "link-dir").unlink()
    (root / "link-dir").mkdir()
    (root / "link-dir" / "inside").write_bytes(b"z")
    (root / "twin").unlink()
    (root / "twin").write_bytes(b"pair")
    (root / "new").mkdir()
    (root / "new" / "file").write_bytes(b"new")
    (root / "same").chmod(0o711)


async def lineage(here: SnapshotEngine, elsewhere: SnapshotEngine) -> tuple[SnapshotPointer, SnapshotPointer]:
    """The first snapshot's tree lies ready `here`; `elsewhere` an attempt went on from it to a second one."""
    tree = await here.checkout(TENANT, None, "first")
    fill(tree.path / WORKSPACE)
    (tree.path / HOME / "session").write_bytes(b"s")
    first = (await here.snapshot(TENANT, tree, "snap-1")).pointer
    await here.release(TENANT, tree, first)
    tree = await elsewhere.checkout(TENANT, first, "second")
    change(tree.path / WORKSPACE)
    second = (await elsewhere.snapshot(TENANT, tree, "snap-2")).pointer
    await elsewhere.release(TENANT, tree, second)
    return first, second


def ready(folder: Path) -> Path:
    (found,) = (folder / "ready").glob("*/*")
    return found


async def test_a_child_of_what_lies_ready_fetches_only_the_difference(
    tmp_path: Path, store: Counted, here: SnapshotEngine, elsewhere: SnapshotEngine
) -> None:
    _, second = await lineage(here, elsewhere)
    wanted = facts(ready(tmp_path / "elsewhere"))
    inodes = {path.name: path.stat().st_ino for path in (ready(tmp_path / "here") / WORKSPACE / "same").iterdir()}
    store.fetched = 0
    told: list[Progress] = []
    tree = await here.checkout(TENANT, second, "third", watcher=told.append)
    assert facts(tree.path) == wanted
    assert {path.name: path.stat().st_ino for path in (tree.path / WORKSPACE / "same").iterdir()} == inodes
    assert 9_000 < store.fetched < 15_000
    assert (told[-1].files, told[-1].bytes) == (told[-1].total_files, told[-1].total_bytes)
    assert here.cached() == [], "a tree is one checkout's alone"


async def test_a_parent_of_what_lies_ready_does_so_too(
    tmp_path: Path, store: Counted, here: SnapshotEngine, elsewhere: SnapshotEngine
) -> None:
    first, _ = await lineage(here, elsewhere)
    wanted = facts(ready(tmp_path / "here"))
    store.fetched = 0
    tree = await elsewhere.checkout(TENANT, first, "third")
    assert facts(tree.path) == wanted
    assert store.fetched < 15_000


async def test_the_next_snapshot_of_a_renewed_tree_knows_what_is_stored(
    here: SnapshotEngine, elsewhere: SnapshotEngine
) -> None:
    _, second = await lineage(here, elsewhere)
    tree = await here.checkout(TENANT, second, "third")
    (tree.path / WORKSPACE / "one-more").write_bytes(b"1")
    result = await here.snapshot(TENANT, tree, "snap-3")
    assert [change.path for change in result.changes] == [b"one-more"]
    assert result.stored_bytes < 5_000
    new_host = SnapshotEngine(here._store, tree.path.parents[2] / "new", SystemClock())
    assert facts((await new_host.checkout(TENANT, result.pointer, "uid")).path) == facts(tree.path)


async def test_what_was_altered_on_the_shelf_is_not_kept(
    tmp_path: Path, here: SnapshotEngine, elsewhere: SnapshotEngine
) -> None:
    """The index does not vouch for a file that anything touched, whatever its size and times say now."""
    _, second = await lineage(here, elsewhere)
    wanted = facts(ready(tmp_path / "elsewhere"))
    altered = ready(tmp_path / "here") / WORKSPACE / "same" / "f7"
    before = altered.stat()
    altered.write_bytes(os.urandom(before.st_size))
    os.utime(altered, ns=(before.st_atime_ns, before.st_mtime_ns))
    planted = ready(tmp_path / "here") / WORKSPACE / "same" / "planted"
    planted.write_bytes(b"planted")
    tree = await here.checkout(TENANT, second, "third")
    assert facts(tree.path) == wanted


async def test_a_symlink_in_the_place_of_a_directory_is_not_followed(
    tmp_path: Path, here: SnapshotEngine, elsewhere: SnapshotEngine
) -> None:
    _, second = await lineage(here, elsewhere)
    wanted = facts(ready(tmp_path / "elsewhere"))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f1").write_bytes(b"not yours")
    same = ready(tmp_path / "here") / WORKSPACE / "same"
    same.rename(same.with_name("moved"))
    same.symlink_to(outside)
    tree = await here.checkout(TENANT, second, "third")
    assert facts(tree.path) == wanted
    assert (outside / "f1").read_bytes() == b"not yours"


async def test_without_an_index_the_tree_is_restored_whole(
    tmp_path: Path, store: Counted, here: SnapshotEngine, elsewhere: SnapshotEngine
) -> None:
    _, second = await lineage(here, elsewhere)
    for path in (tmp_path / "here" / "index").iterdir():
        path.unlink()
    wanted = facts(ready(tmp_path / "elsewhere"))
    store.fetched = 0
    assert facts((await here.checkout(TENANT, second, "third")).path) == wanted
    assert store.fetched > 200_000


async def test_strangers_trees_are_left_alone(tmp_path: Path, here: SnapshotEngine, elsewhere: SnapshotEngine) -> None:
    first, second = await lineage(here, elsewhere)
    stranger = SnapshotPointer(id="snap-9", manifest=second.manifest, parent="snap-8", uid=second.uid)
    await here.checkout(TENANT, stranger, "third")
    assert here.cached() == [(TENANT, first.id)], "no relation"
    copied = f"tenants/other/manifests/{second.uid}/{second.manifest}"
    await here._store.put(copied, await here._store.get(copied.replace("other", TENANT)))
    with pytest.raises(DataLossError, match="no pack of its tenant"):
        await here.checkout("other", second, "fourth")
    assert here.cached() == [(TENANT, first.id)], "another tenant"
