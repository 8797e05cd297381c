"""What a restored tree is like, and what is left when one ends early."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from cloudclaw.clock import SystemClock
from cloudclaw.coordination.records import SnapshotPointer
from cloudclaw.errors import DataLossError, UnavailableError
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots import fill, pipeline
from cloudclaw.snapshots.engine import SnapshotEngine
from cloudclaw.snapshots.index import Index
from cloudclaw.snapshots.port import HOME, WORKSPACE, Progress, Tree
from tests.support.trees import TENANT, engine, facts

MIB = 1 << 20


class ClockAhead(SystemClock):
    """A clock to which all that was made just now was made a minute ago."""

    def wall(self) -> float:
        return super().wall() + 60


class Gate(MemoryObjects):
    """A store whose packs are held back, or away, once `closed` or `broken` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()
        self.broken_after = 1 << 30

    async def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        if "/packs/" in name:
            self.asked.set()
            await self.open.wait()
            self.broken_after -= 1
            if self.broken_after < 0:
                raise UnavailableError("the store is away")
        return await super().get(name, offset=offset, length=length)


@pytest.fixture
async def store() -> Gate:
    return Gate()


async def saved(manager: SnapshotEngine, fill_tree: str = "mixed") -> tuple[Tree, SnapshotPointer]:
    tree = await manager.checkout(TENANT, None, "origin")
    root = tree.path / WORKSPACE
    if fill_tree == "large":
        for number in range(6):
            (root / f"large{number}").write_bytes(os.urandom(5 * MIB))
    else:
        (root / "bin").mkdir()
        (root / "bin" / "tool").write_bytes(b"#!/bin/sh\n")
        (root / "bin" / "tool").chmod(0o755)
        (root / "bin" / "alias").hardlink_to(root / "bin" / "tool")
        (tree.path / HOME / "third").hardlink_to(root / "bin" / "tool")
        (root / "empty").write_bytes(b"")
        (root / "closed").write_bytes(b"secret")
        (root / "closed").chmod(0o000)
        (root / "link").symlink_to("bin/tool")
        (root / "bin").chmod(0o555)
        for number, path in enumerate([root / "bin", root / "closed", root]):
            os.utime(path, ns=(0, 1_500_000_000_123_456_789 + number))
        os.utime(root / "link", ns=(0, 1_400_000_000_987_654_321), follow_symlinks=False)
    return tree, (await manager.snapshot(TENANT, tree, "snap-1")).pointer


def live(tmp_path: Path, host: str = "there") -> list[Path]:
    return list((tmp_path / host / "trees" / "live").iterdir())


async def test_modes_times_and_links_come_back(tmp_path: Path, store: Gate) -> None:
    tree, pointer = await saved(engine(tmp_path, store))
    there = await engine(tmp_path / "there", store).checkout(TENANT, pointer, "uid")
    assert facts(there.path) == facts(tree.path)
    root = there.path / WORKSPACE
    assert (root / "bin").stat().st_mtime_ns == 1_500_000_000_123_456_789
    assert root.stat().st_mtime_ns == 1_500_000_000_123_456_791
    assert (root / "link").lstat().st_mtime_ns == 1_400_000_000_987_654_321


async def test_names_of_one_file_are_one_file_again(tmp_path: Path, store: Gate) -> None:
    _, pointer = await saved(engine(tmp_path, store))
    there = await engine(tmp_path / "there", store).checkout(TENANT, pointer, "uid")
    names = [
        there.path / WORKSPACE / "bin" / "tool",
        there.path / WORKSPACE / "bin" / "alias",
        there.path / HOME / "third",
    ]
    assert {path.stat().st_nlink for path in names} == {3}
    assert len({path.stat().st_ino for path in names}) == 1


@pytest.mark.parametrize("pieces", [[(0, 10)], [(5 * MIB + 123, 70_000)], [(3 * MIB, MIB), (9 * MIB - 1, 1)], []])
async def test_holes_are_holes_again(tmp_path: Path, store: Gate, pieces: list[tuple[int, int]]) -> None:
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "origin")
    path = tree.path / WORKSPACE / "image"
    with path.open("wb") as file:
        for offset, length in pieces:
            file.seek(offset)
            file.write(b"x" * length)
        file.truncate(9 * MIB)
    pointer = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    there = await engine(tmp_path / "there", store).checkout(TENANT, pointer, "uid")
    restored = there.path / WORKSPACE / "image"
    assert restored.read_bytes() == path.read_bytes()
    written = sum(length for _, length in pieces)
    assert restored.stat().st_blocks * 512 <= written + 3 * 4096 * max(1, len(pieces))


async def test_zeros_that_were_no_hole_are_written(tmp_path: Path, store: Gate) -> None:
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "origin")
    (tree.path / WORKSPACE / "zeros").write_bytes(bytes(MIB))
    pointer = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    there = await engine(tmp_path / "there", store).checkout(TENANT, pointer, "uid")
    restored = there.path / WORKSPACE / "zeros"
    assert restored.read_bytes() == bytes(MIB)
    os.sync()
    assert restored.stat().st_blocks * 512 >= MIB


@pytest.mark.parametrize(
    ("content", "offset", "runs"),
    [
        (b"", 0, []),
        (bytes(8192), 0, []),
        (b"a" + bytes(8191), 0, [(0, 4096)]),
        (bytes(4096) + b"a", 0, [(4096, 4097)]),
        (bytes(100) + b"a" * 4096, 3996, [(100, 4196)]),
        (b"a" * 4096 + bytes(4096) + b"b" * 10, 0, [(0, 4096), (8192, 8202)]),
        (bytes(4095) + b"a", 4096 * 3, [(0, 4096)]),
        (b"a" * 10 + bytes(50), 4086, [(0, 10)]),
    ],
)
def test_only_blocks_with_content_are_written(content: bytes, offset: int, runs: list[tuple[int, int]]) -> None:
    assert list(fill._runs(content, offset)) == runs


async def test_progress_is_told_and_ends_complete(tmp_path: Path, store: Gate) -> None:
    _, pointer = await saved(engine(tmp_path, store))
    told: list[Progress] = []
    manager = engine(tmp_path / "there", store)
    tree = await manager.checkout(TENANT, pointer, "uid", watcher=told.append)
    # Each name of a file counts, and its bytes once.
    assert told[-1] == Progress(5, 16, 5, 16)
    saved_again = (await manager.snapshot(TENANT, tree, "snap-2")).pointer
    await manager.release(TENANT, tree, saved_again)
    told.clear()
    await manager.checkout(TENANT, saved_again, "again", watcher=told.append)
    assert told == [Progress(5, 16, 5, 16)]


async def test_the_first_snapshot_of_a_restored_tree_reads_only_what_changed(
    tmp_path: Path, store: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pointer = await saved(engine(tmp_path, store))
    manager = SnapshotEngine(store, tmp_path / "there", ClockAhead())
    tree = await manager.checkout(TENANT, pointer, "uid")
    kept = (tree.path / WORKSPACE / "closed").stat()
    (tree.path / WORKSPACE / "closed").chmod(0o600)
    (tree.path / WORKSPACE / "closed").write_bytes(b"sEcret")
    (tree.path / WORKSPACE / "closed").chmod(0o000)
    os.utime(tree.path / WORKSPACE / "closed", ns=(kept.st_atime_ns, kept.st_mtime_ns))
    read: list[bytes] = []
    real = pipeline.Pipeline.take

    def take(self: pipeline.Pipeline, fd: int, path: bytes, *args: int, **options: bool) -> pipeline.Contents:
        read.append(path)
        return real(self, fd, path, *args, **options)

    monkeypatch.setattr(pipeline.Pipeline, "take", take)
    result = await manager.snapshot(TENANT, tree, "snap-2")
    assert read == [b"workspace/closed"]
    assert [change.path for change in result.changes] == [b"closed"]


@pytest.mark.parametrize(("seconds", "vouched"), [(60.0, True), (-60.0, False)])
async def test_the_index_vouches_only_for_what_was_restored_some_ticks_ago(
    tmp_path: Path, store: Gate, seconds: float, vouched: bool
) -> None:
    """A change that follows within the same tick of the clock would leave the same time."""
    _, pointer = await saved(engine(tmp_path, store))

    class Shifted(SystemClock):
        def wall(self) -> float:
            return super().wall() + seconds

    tree = await SnapshotEngine(store, tmp_path / "there", Shifted()).checkout(TENANT, pointer, "uid")
    index = Index.load(tmp_path / "there" / "index" / "uid")
    assert index is not None
    assert len(index.seen) == 6
    for path, seen in index.seen.items():
        status = os.lstat(os.fsencode(tree.path) + b"/" + path)
        assert (seen.ino == status.st_ino) is vouched
        assert seen.ctime_ns == status.st_ctime_ns, "noted before the last change to it"


async def test_a_canceled_restore_leaves_nothing_live(tmp_path: Path, store: Gate) -> None:
    _, pointer = await saved(engine(tmp_path, store), "large")
    store.open.clear()
    store.asked.clear()
    restoring = asyncio.create_task(engine(tmp_path / "there", store).checkout(TENANT, pointer, "uid"))
    await store.asked.wait()
    assert live(tmp_path)
    restoring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await restoring
    assert live(tmp_path) == []


async def test_a_restore_canceled_while_it_writes_waits_for_its_threads(
    tmp_path: Path, store: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pointer = await saved(engine(tmp_path, store), "large")
    loop = asyncio.get_running_loop()
    writing, go_on = asyncio.Event(), threading.Event()
    late: list[bool] = []
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        loop.call_soon_threadsafe(writing.set)
        go_on.wait(10)
        late.append(bool(live(tmp_path)))
        return real(fd, data, offset)

    monkeypatch.setattr("cloudclaw.snapshots.fill.os.pwrite", pwrite)
    restoring = asyncio.create_task(engine(tmp_path / "there", store).checkout(TENANT, pointer, "uid"))
    await writing.wait()
    restoring.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await restoring
    assert late
    assert all(late), "the tree went while a thread wrote to it"
    assert live(tmp_path) == []


@pytest.mark.parametrize("reads", [0, 1, 3])
async def test_a_store_that_goes_away_half_way_leaves_nothing_live(tmp_path: Path, store: Gate, reads: int) -> None:
    _, pointer = await saved(engine(tmp_path, store), "large")
    store.broken_after = reads
    manager = engine(tmp_path / "there", store)
    with pytest.raises(UnavailableError, match="away"):
        await manager.checkout(TENANT, pointer, "uid")
    assert live(tmp_path) == []
    store.broken_after = 1 << 30
    assert (await manager.checkout(TENANT, pointer, "uid")).path.is_dir()


async def test_a_full_disk_is_said_and_leaves_nothing_live(
    tmp_path: Path, store: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pointer = await saved(engine(tmp_path, store))

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("cloudclaw.snapshots.fill.os.pwrite", pwrite)
    with pytest.raises(UnavailableError) as full:
        await engine(tmp_path / "there", store).checkout(TENANT, pointer, "uid")
    assert full.value.reason == "DISK_FULL"
    assert live(tmp_path) == []


async def test_a_damaged_blob_is_named_with_the_files_that_need_it(tmp_path: Path, store: Gate) -> None:
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "origin")
    for name in ("one", "two"):
        (tree.path / WORKSPACE / name).write_bytes(b"the same content" * 100)
    pointer = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    (pack,) = [info.name async for info in store.list(f"tenants/{TENANT}/packs/")]
    data = bytearray(await store.get(pack))
    data[-1] ^= 1
    await store.put(pack, bytes(data))
    with pytest.raises(DataLossError, match=f"{pack} .*'workspace/one' and 1 more") as lost:
        await engine(tmp_path / "there", store).checkout(TENANT, pointer, "uid")
    entry = next(e for e in await manager.manifest(TENANT, pointer) if e.path == b"workspace/one")
    assert entry.digest in lost.value.message
    await store.delete(pack)
    with pytest.raises(DataLossError, match=f"{pack} .*'workspace/one'"):
        await engine(tmp_path / "there", store).checkout(TENANT, pointer, "uid")
    assert live(tmp_path) == []


async def test_many_files_over_many_packs_come_back_with_few_directories_open(tmp_path: Path, store: Gate) -> None:
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "origin")
    for number in range(600):
        folder = tree.path / WORKSPACE / f"d{number % 60}" / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"f{number}").write_bytes(os.urandom(60_000))
    pointer = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    there = await engine(tmp_path / "there", store).checkout(TENANT, pointer, "uid")
    assert facts(there.path) == facts(tree.path)
