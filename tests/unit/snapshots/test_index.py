"""What the index saves, and that it never hides a change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloudclaw.clock import SystemClock
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots import safe
from cloudclaw.snapshots.engine import SnapshotEngine
from cloudclaw.snapshots.index import SLACK_NS, Index, index_path
from cloudclaw.snapshots.manifest import Item
from cloudclaw.snapshots.port import WORKSPACE, FileEntry, FileType, Tree
from tests.support.trees import TENANT, engine


class SetClock(SystemClock):
    """Says what it is told."""

    def __init__(self) -> None:
        self.now: float | None = None

    def wall(self) -> float:
        return super().wall() if self.now is None else self.now


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The paths of files that were opened for their content."""
    paths: list[bytes] = []
    real = safe.open_regular

    def count(directory: int, name: bytes, *, path: bytes = b"") -> int:
        paths.append(path)
        return real(directory, name, path=path)

    monkeypatch.setattr(safe, "open_regular", count)
    return paths


def later(clock: SetClock, seconds: float = 1.0) -> None:
    """Let the clock stand that much ahead: what was written by now lies further back than any tick."""
    clock.now = SystemClock().wall() + seconds


async def content(manager: SnapshotEngine, tree: Tree, path: str, snapshot: str) -> bytes:
    pointer = (await manager.snapshot(TENANT, tree, snapshot)).pointer
    return b"".join([piece async for piece in manager.read(TENANT, pointer, path.encode())])


async def tree_of_three(tmp_path: Path, clock: SetClock) -> tuple[SnapshotEngine, Tree]:
    manager = SnapshotEngine(MemoryObjects(), tmp_path / "trees", clock)
    tree = await manager.checkout(TENANT, None, "uid")
    for name in ("a", "b", "c"):
        (tree.path / WORKSPACE / name).write_bytes(name.encode() * 10)
    (tree.path / WORKSPACE / "link").symlink_to("a")
    return manager, tree


async def test_an_unchanged_file_is_not_opened_again(tmp_path: Path, opened: list[bytes]) -> None:
    clock = SetClock()
    manager, tree = await tree_of_three(tmp_path, clock)
    later(clock)
    first = await manager.snapshot(TENANT, tree, "snap-1")
    assert len(opened) == 3
    opened.clear()
    (tree.path / WORKSPACE / "b").write_bytes(b"changed")
    second = await manager.snapshot(TENANT, tree, "snap-2")
    assert opened == [b"workspace/b"]
    assert first.pointer.manifest != second.pointer.manifest


async def test_the_index_survives_a_restart_of_the_service(tmp_path: Path, opened: list[bytes]) -> None:
    clock = SetClock()
    manager, tree = await tree_of_three(tmp_path, clock)
    later(clock)
    first = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    opened.clear()
    again = SnapshotEngine(manager._store, tmp_path / "trees", clock)
    found = await again.reopen(TENANT, None, "uid")
    assert found is not None
    assert (await again.snapshot(TENANT, found, "snap-1")).pointer == first
    assert opened == []


async def test_the_index_goes_with_the_tree_onto_the_shelf_and_back(tmp_path: Path, opened: list[bytes]) -> None:
    clock = SetClock()
    manager, tree = await tree_of_three(tmp_path, clock)
    later(clock)
    first = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    await manager.release(TENANT, tree, first)
    opened.clear()
    again = await manager.checkout(TENANT, first, "next")
    (again.path / WORKSPACE / "a").write_bytes(b"changed")
    second = await manager.snapshot(TENANT, again, "snap-2")
    assert opened == [b"workspace/a"]
    assert [change.path for change in second.changes] == [b"a"]


async def test_a_change_within_the_granularity_of_file_times_is_not_missed(tmp_path: Path) -> None:
    """The worst case made exact: size, mtime, inode and even the ctime are as they were when the file was read."""
    clock = SetClock()
    manager, tree = await tree_of_three(tmp_path, clock)
    file = tree.path / WORKSPACE / "a"
    ctime = file.stat().st_ctime_ns
    clock.now = (ctime + SLACK_NS) / 1e9 - 1e-6  # the file is read just within the slack after its change
    await manager.snapshot(TENANT, tree, "snap-1")
    index = Index.load(index_path(tmp_path / "trees", "uid"))
    assert index is not None
    assert index.trusted(b"workspace/a", file.stat()) is None
    # As if the second write had left the same times: only what was read can tell.
    opened_again = await content(manager, tree, "workspace/a", "snap-2")
    assert opened_again == b"a" * 10
    clock.now = (ctime + SLACK_NS) / 1e9 + 1.0
    await manager.snapshot(TENANT, tree, "snap-3")
    index = Index.load(index_path(tmp_path / "trees", "uid"))
    assert index is not None
    assert index.trusted(b"workspace/a", file.stat()) is not None


@pytest.mark.parametrize(("ahead", "trusted"), [(-1, False), (0, False), (1, True)])
def test_the_rule_is_exact(tmp_path: Path, ahead: int, trusted: bool) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    status = file.stat()
    index = Index()
    item = Item(FileEntry(b"workspace/file", FileType.REGULAR, 1, status.st_mode & 0o777, status.st_mtime_ns, "0" * 64))
    index.add(item, status, status.st_ctime_ns + SLACK_NS + ahead)
    assert (index.trusted(b"workspace/file", status) is not None) is trusted


async def test_a_change_time_in_the_future_is_never_trusted(tmp_path: Path, opened: list[bytes]) -> None:
    """The clock was set back since the file was written."""
    clock = SetClock()
    manager, tree = await tree_of_three(tmp_path, clock)
    later(clock, -3600)
    await manager.snapshot(TENANT, tree, "snap-1")
    opened.clear()
    await manager.snapshot(TENANT, tree, "snap-2")
    assert len(opened) == 3


async def test_a_change_that_hides_behind_its_old_times_is_found(tmp_path: Path) -> None:
    """A task can set size, mtime and mode as they were; it cannot set the ctime."""
    clock = SetClock()
    manager, tree = await tree_of_three(tmp_path, clock)
    later(clock)
    await manager.snapshot(TENANT, tree, "snap-1")
    file = tree.path / WORKSPACE / "a"
    before = file.stat()
    file.write_bytes(b"x" * 10)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert await content(manager, tree, "workspace/a", "snap-2") == b"x" * 10


async def test_directories_that_change_places_are_read_again(tmp_path: Path) -> None:
    clock = SetClock()
    manager = SnapshotEngine(MemoryObjects(), tmp_path / "trees", clock)
    tree = await manager.checkout(TENANT, None, "uid")
    root = tree.path / WORKSPACE
    for name in ("one", "two"):
        (root / name).mkdir()
        (root / name / "file").write_bytes(name.encode())
        os.utime(root / name / "file", ns=(10**18, 10**18))
    later(clock)
    await manager.snapshot(TENANT, tree, "snap-1")
    (root / "one").rename(root / "three")
    (root / "two").rename(root / "one")
    (root / "three").rename(root / "two")
    assert await content(manager, tree, "workspace/one/file", "snap-2") == b"two"


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other boot", "other base", "gone", "a directory"])
async def test_a_damaged_index_costs_time_only(tmp_path: Path, damage: str, opened: list[bytes]) -> None:
    clock = SetClock()
    manager, tree = await tree_of_three(tmp_path, clock)
    later(clock)
    first = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    path = index_path(tmp_path / "trees", "uid")
    data = path.read_bytes()
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(data[:-20])
        case "flipped":
            path.write_bytes(b"\xff" + data[1:])
        case "other boot":
            boot = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
            path.write_bytes(data.replace(boot, boot[::-1]))
        case "other base":
            index = Index.load(path)
            assert index is not None
            index.base = index.snapshot = "0" * 64
            index.save(path)
        case "gone":
            path.unlink()
        case _:
            path.unlink()
            path.mkdir()
    opened.clear()
    second = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    assert len(opened) == 3
    assert (second.files, second.bytes) == (first.files, first.bytes)


async def test_content_is_not_stored_again_when_only_its_times_are_new(tmp_path: Path) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / WORKSPACE / "large").write_bytes(os.urandom(100_000))
    await manager.snapshot(TENANT, tree, "snap-1")
    os.utime(tree.path / WORKSPACE / "large")
    (tree.path / WORKSPACE / "large").rename(tree.path / WORKSPACE / "moved")
    assert (await manager.snapshot(TENANT, tree, "snap-2")).stored_bytes < 2000
