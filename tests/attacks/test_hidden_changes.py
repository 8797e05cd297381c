"""Changes that hide from the stat cache: none may be missed by the next snapshot or checkpoint."""

from __future__ import annotations

import mmap
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cloudclaw.clock import SystemClock
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots.engine import SnapshotEngine
from cloudclaw.snapshots.pipeline import Contents, Pipeline
from cloudclaw.snapshots.port import WORKSPACE, Tree
from tests.support.trees import TENANT

OLD, NEW = b"what it was", b"what it is!"


class SteppedClock(SystemClock):
    """A wall clock that somebody sets."""

    offset = 0.0

    def wall(self) -> float:
        return super().wall() + self.offset


def _as_it_was(path: Path, status: os.stat_result) -> None:
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _rewritten(path: Path) -> None:
    status = path.stat()
    path.write_bytes(NEW)
    _as_it_was(path, status)


def _replaced_by_an_older_file(path: Path) -> None:
    """`path.old` was made before the first look, with the same size and times."""
    path.with_suffix(".old").rename(path)


def _exchanged_with_its_twin(path: Path) -> None:
    twin, aside = path.with_suffix(".old"), path.with_suffix(".aside")
    path.rename(aside)
    twin.rename(path)
    aside.rename(twin)


def _written_through_a_mapping(path: Path) -> None:
    status = path.stat()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[: len(NEW)] = NEW
    _as_it_was(path, status)


def _shortened_and_grown(path: Path) -> None:
    status = path.stat()
    os.truncate(path, 0)
    with path.open("r+b") as file:
        file.write(NEW)
    _as_it_was(path, status)


def _linked_over(path: Path) -> None:
    twin = path.with_suffix(".old")
    path.unlink()
    path.hardlink_to(twin)
    twin.unlink()


def _made_anew_in_the_same_inode(path: Path) -> None:
    """File systems give a freed inode number to the next file."""
    status = path.stat()
    for _ in range(50):
        path.unlink()
        path.write_bytes(NEW)
        path.chmod(status.st_mode & 0o777)
        _as_it_was(path, status)
        if path.stat().st_ino == status.st_ino:
            return


def _its_folder_exchanged(path: Path) -> None:
    folder, twin, aside = path.parent, path.parent.with_name("twin"), path.parent.with_name("aside")
    folder.rename(aside)
    twin.rename(folder)
    aside.rename(twin)


def _later(path: Path) -> None:
    """Return when file times are later than the change time of `path`: when its clock has stepped."""
    probe = path.parent.with_name("probe")
    while True:
        probe.touch()
        changed = probe.stat().st_ctime_ns
        probe.unlink()
        if changed > path.stat().st_ctime_ns:
            return


CHANGES = pytest.mark.parametrize(
    "change",
    [
        _rewritten,
        _replaced_by_an_older_file,
        _exchanged_with_its_twin,
        _written_through_a_mapping,
        _shortened_and_grown,
        _linked_over,
        _made_anew_in_the_same_inode,
        _its_folder_exchanged,
    ],
)


@asynccontextmanager
async def no_pause() -> AsyncIterator[tuple[int, ...]]:
    yield ()


async def content(manager: SnapshotEngine, tree: Tree, door: str, name: str) -> bytes:
    """What the file holds in a snapshot taken now."""
    if door == "snapshot":
        saved = (await manager.snapshot(TENANT, tree, name)).pointer
    else:
        saved = (await manager.checkpoint(TENANT, tree, name, no_pause)).pointer
    return b"".join([piece async for piece in manager.read(TENANT, saved, b"workspace/folder/file")])


@CHANGES
@pytest.mark.parametrize("doors", [("snapshot", "snapshot"), ("checkpoint", "checkpoint"), ("snapshot", "checkpoint")])
@pytest.mark.parametrize("step", [0.0, -3600.0])
async def test_a_change_that_hides_is_found(
    tmp_path: Path, change: Callable[[Path], None], doors: tuple[str, str], step: float
) -> None:
    clock, store = SteppedClock(), MemoryObjects()
    manager = SnapshotEngine(store, tmp_path / "trees", clock)
    tree = await manager.checkout(TENANT, None, "uid")
    file = tree.path / WORKSPACE / "folder" / "file"
    for folder, text, twin in (("folder", OLD, NEW), ("twin", NEW, NEW)):
        (tree.path / WORKSPACE / folder).mkdir()
        for name, value in (("file", text), ("file.old", twin)):
            path = tree.path / WORKSPACE / folder / name
            path.write_bytes(value)
            os.utime(path, ns=(10**18, 10**18))
    # Long ago, as far as the next look can tell: so that it is the facts that are compared, and not mere caution.
    clock.offset = 60.0
    assert await content(manager, tree, doors[0], "first") == OLD
    clock.offset += step
    _later(file)
    change(file)
    status = file.stat()
    assert (status.st_size, status.st_mtime_ns) == (len(OLD), 10**18), "the change hides"
    assert await content(manager, tree, doors[1], "second") == NEW


@CHANGES
async def test_a_change_that_hides_between_the_looks_of_a_checkpoint_is_found(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    clock, store = SteppedClock(), MemoryObjects()
    manager = SnapshotEngine(store, tmp_path / "trees", clock)
    tree = await manager.checkout(TENANT, None, "uid")
    file = tree.path / WORKSPACE / "folder" / "file"
    for folder, text, twin in (("folder", OLD, NEW), ("twin", NEW, NEW)):
        (tree.path / WORKSPACE / folder).mkdir()
        for name, value in (("file", text), ("file.old", twin)):
            path = tree.path / WORKSPACE / folder / name
            path.write_bytes(value)
            os.utime(path, ns=(10**18, 10**18))

    @asynccontextmanager
    async def pause() -> AsyncIterator[tuple[int, ...]]:
        change(file)
        yield ()

    saved = (await manager.checkpoint(TENANT, tree, "ckpt-1", pause)).pointer
    read = b"".join([piece async for piece in manager.read(TENANT, saved, b"workspace/folder/file")])
    assert read == NEW


@pytest.mark.parametrize("step", [-3600.0, -0.02, 0.0, 0.02])
async def test_a_change_within_one_step_of_the_file_systems_clock_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """The moment after a file was read it changes. Where file times are coarse its change time is still the same; and
    the clock of the service may be a little off."""
    clock, store = SteppedClock(), MemoryObjects()
    clock.offset = step
    manager = SnapshotEngine(store, tmp_path / "trees", clock)
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / WORKSPACE / "folder").mkdir()
    file = tree.path / WORKSPACE / "folder" / "file"
    real = Pipeline.take

    def take(self: Pipeline, fd: int, path: bytes, size: int, **options: Any) -> Contents:
        contents = real(self, fd, path, size, **options)
        file.write_bytes(NEW)
        os.utime(file, ns=(10**18, 10**18))
        return contents

    for number in range(40):
        file.write_bytes(OLD)
        os.utime(file, ns=(10**18, 10**18))
        with monkeypatch.context() as patched:
            patched.setattr(Pipeline, "take", take)
            assert await content(manager, tree, "snapshot", f"a{number}") == OLD
        assert await content(manager, tree, "snapshot", f"b{number}") == NEW
