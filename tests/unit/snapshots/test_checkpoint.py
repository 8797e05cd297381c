"""Checkpoints of trees whose processes run."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import threading
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path

import pytest

from cloudclaw.errors import InvalidArgumentError, PreconditionError, QuotaExceededError, UnavailableError
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots import sentries
from cloudclaw.snapshots.engine import SnapshotEngine
from cloudclaw.snapshots.port import HOME, WORKSPACE, Pause, Tree, TreeLimits
from cloudclaw.snapshots.rescan import Listing
from cloudclaw.snapshots.scan import Scan
from tests.support.trees import TENANT, Facts, engine, facts


def pausing(
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
    mapped: Callable[[], Collection[int]] = lambda: (),
) -> Pause:
    """A pause; `before` is what the processes did just before they stood still, `after` what they do next."""

    @contextlib.asynccontextmanager
    async def pause() -> AsyncIterator[Collection[int]]:
        before()
        try:
            yield mapped()
        finally:
            after()

    return pause


@pytest.fixture(params=["here", "in processes"])
def looking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who looks at the tree again: small trees never need the processes, so make them."""
    if request.param == "in processes":
        monkeypatch.setattr(sentries, "FEW", 1)
        monkeypatch.setattr(sentries, "_PROCESSES", 2)
    return str(request.param)


async def full_tree(
    tmp_path: Path, store: MemoryObjects, limits: TreeLimits | None = None
) -> tuple[SnapshotEngine, Tree]:
    manager = engine(tmp_path, store, limits=limits)
    tree = await manager.checkout(TENANT, None, "uid")
    root = tree.path / WORKSPACE
    for folder in ("a", "b/c", "b/d", "gone/deep"):
        (root / folder).mkdir(parents=True)
        for number in range(5):
            (root / folder / f"f{number}").write_bytes(f"{folder} {number}".encode())
    (root / "link").symlink_to("a")
    os.link(root / "a" / "f0", root / "b" / "also f0")
    (tree.path / HOME / "session").write_bytes(b"1")
    return manager, tree


async def restored(tmp_path: Path, store: MemoryObjects, saved: object) -> dict[bytes, Facts]:
    other = engine(tmp_path / "other", store)
    return facts((await other.checkout(TENANT, saved, "copy")).path)  # type: ignore[arg-type]


def shake(root: Path) -> None:
    """All that may happen to a tree between two looks at it."""
    (root / "a" / "f1").write_bytes(b"changed")
    (root / "a" / "f2").unlink()
    (root / "a" / "new").write_bytes(b"new")
    (root / "b" / "also f0").unlink()
    os.link(root / "a" / "f3", root / "b" / "d" / "also f3")
    (root / "b" / "c").rename(root / "moved")
    (root / "moved" / "f0").write_bytes(b"changed after the move")
    (root / "b" / "d").chmod(0o700)
    for path in sorted((root / "gone").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (root / "gone").rmdir()
    (root / "gone").write_bytes(b"a file in place of a directory")
    (root / "link").unlink()
    (root / "link").mkdir()
    (root / "link" / "below").symlink_to("/")
    os.utime(root / "a" / "f4", ns=(5, 5))


async def test_a_checkpoint_is_the_tree_as_it_stood_still(tmp_path: Path, looking: str) -> None:
    store = MemoryObjects()
    manager, tree = await full_tree(tmp_path, store)
    stood: list[dict[bytes, Facts]] = []

    def before() -> None:
        shake(tree.path / WORKSPACE)
        stood.append(facts(tree.path))

    def after() -> None:
        for path in (tree.path / WORKSPACE / "a").iterdir():
            path.write_bytes(b"written when they ran again")
        (tree.path / HOME / "session").unlink()

    saved = await manager.checkpoint(TENANT, tree, "snap-1", pausing(before, after))
    assert await restored(tmp_path, store, saved.pointer) == stood[0]
    assert saved.frozen > 0
    final = await manager.snapshot(TENANT, tree, "snap-2")
    assert await restored(tmp_path, store, final.pointer) == facts(tree.path)
    assert not list((tmp_path / "trees" / "staging").iterdir())


async def test_the_second_look_copies_only_what_changed_since_the_first(
    tmp_path: Path, looking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager, tree = await full_tree(tmp_path, MemoryObjects())
    later_than_any_tick(manager, monkeypatch)
    copies: list[int] = []
    real = Scan.again

    def again(self: Scan[object], *rest: object) -> None:
        before = self.read
        real(self, *rest)  # type: ignore[arg-type]
        copies.extend([before, self.read - before])

    monkeypatch.setattr(Scan, "again", again)
    change = tree.path / WORKSPACE / "a" / "f1"
    await manager.checkpoint(TENANT, tree, "snap-1", pausing(lambda: overwrite(change)))
    assert copies == [21, 1]
    copies.clear()
    await manager.checkpoint(TENANT, tree, "snap-2", pausing())
    assert sum(copies) <= 1


def overwrite(path: Path) -> None:
    path.write_bytes(b"x")


def later_than_any_tick(manager: SnapshotEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all that was written by now had been for a second."""
    real = manager._saver._now_ns
    monkeypatch.setattr(manager._saver, "_now_ns", lambda: real() + 1_000_000_000)


async def test_what_is_written_through_a_mapping_is_read_whatever_the_times_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryObjects()
    manager, tree = await full_tree(tmp_path, store)
    later_than_any_tick(manager, monkeypatch)
    file = tree.path / WORKSPACE / "a" / "f1"
    inode = file.stat().st_ino
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapping:
        mapping[0] = 1
        saved = await manager.checkpoint(
            TENANT, tree, "snap-1", pausing(lambda: mapping.__setitem__(0, 2), mapped=lambda: [inode])
        )
        assert (await read(manager, saved.pointer, b"workspace/a/f1"))[0] == 2
        ctime = file.stat().st_ctime_ns
        mapping[0] = 3
        assert file.stat().st_ctime_ns == ctime, "the store did show: the test would pass without the rule"
    saved = await manager.snapshot(TENANT, tree, "snap-2")
    assert (await read(manager, saved.pointer, b"workspace/a/f1"))[0] == 3


async def test_a_mapping_that_was_gone_before_the_pause_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored through a map after the first look, and unmapped before anybody asked what is mapped."""
    store = MemoryObjects()
    manager, tree = await full_tree(tmp_path, store)
    later_than_any_tick(manager, monkeypatch)
    file = tree.path / WORKSPACE / "a" / "f1"
    with file.open("r+b") as opened:
        mapping = mmap.mmap(opened.fileno(), 0)
        mapping[0] = 1  # dirty when the first look reads it

        def before() -> None:
            mapping[0] = 2
            mapping.close()

        saved = await manager.checkpoint(TENANT, tree, "snap-1", pausing(before))
    assert (await read(manager, saved.pointer, b"workspace/a/f1"))[0] == 2


async def read(manager: SnapshotEngine, pointer: object, path: bytes) -> bytes:
    return b"".join([piece async for piece in manager.read(TENANT, pointer, path)])  # type: ignore[arg-type]


async def test_a_busy_writer_does_not_disturb(tmp_path: Path, looking: str) -> None:
    """Files come, go, grow and move all the time until the pause, which stops them between two steps."""
    store = MemoryObjects()
    manager, tree = await full_tree(tmp_path, store)
    root = tree.path / WORKSPACE
    step, over = threading.Lock(), threading.Event()
    stood: list[dict[bytes, Facts]] = []

    def write() -> None:
        number = 0
        while not over.is_set():
            number += 1
            with step:
                folder = root / f"w{number % 7}"
                folder.mkdir(exist_ok=True)
                (folder / f"f{number % 50}").write_bytes(os.urandom(number % 3000))
                if number % 5 == 0:
                    (folder / "x").write_bytes(b"x")
                    (folder / "x").rename(root / f"moved{number % 3}")
                if number % 11 == 0:
                    for path in folder.iterdir():
                        path.unlink()
                    folder.rmdir()
                if number % 13 == 0:
                    os.mkfifo(root / "pipe")
                    (root / "pipe").unlink()

    @contextlib.asynccontextmanager
    async def pause() -> AsyncIterator[Collection[int]]:
        await asyncio.to_thread(step.acquire)
        stood.append(facts(tree.path))
        try:
            yield ()
        finally:
            step.release()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            saved = await manager.checkpoint(TENANT, tree, f"snap-{number}", pause)
            assert await restored(tmp_path / str(number), store, saved.pointer) == stood[-1]
    finally:
        over.set()
        await asyncio.to_thread(writer.join)


async def test_what_is_refused_only_for_a_moment_is_no_error(tmp_path: Path) -> None:
    manager, tree = await full_tree(tmp_path, MemoryObjects(), TreeLimits(files=40, total_bytes=1 << 20))
    fifo, large = tree.path / HOME / "fifo", tree.path / WORKSPACE / "large"
    os.mkfifo(fifo)
    large.write_bytes(bytes(2 << 20))
    for number in range(30):
        (tree.path / HOME / f"many{number}").touch()

    def before() -> None:
        fifo.unlink()
        large.unlink()
        for number in range(30):
            (tree.path / HOME / f"many{number}").unlink()

    saved = await manager.checkpoint(TENANT, tree, "snap-1", pausing(before))
    assert saved.pointer.files == 22


@pytest.mark.parametrize("trouble", ["fifo", "large", "many", "outside"])
async def test_what_a_tree_may_not_hold_is_named_and_the_next_checkpoint_succeeds(
    tmp_path: Path, trouble: str, looking: str
) -> None:
    store = MemoryObjects()
    manager, tree = await full_tree(tmp_path, store, TreeLimits(files=60, total_bytes=1 << 20))
    folder = tree.path / WORKSPACE / "a" / "trouble"
    (tmp_path / "outside").write_bytes(b"secret")

    def before() -> None:
        folder.mkdir()
        match trouble:
            case "fifo":
                os.mkfifo(folder / "it")
            case "large":
                (folder / "it").write_bytes(bytes(2 << 20))
            case "outside":
                os.link(tmp_path / "outside", folder / "it")
            case _:
                for number in range(100):
                    (folder / f"it{number}").touch()

    with pytest.raises((InvalidArgumentError, QuotaExceededError), match="workspace/a/trouble/it"):
        await manager.checkpoint(TENANT, tree, "snap-1", pausing(before))
    assert not [info.name async for info in store.list("tenants/acme/manifests/")]
    for path in folder.iterdir():
        path.unlink()
    saved = await manager.checkpoint(TENANT, tree, "snap-2", pausing())
    assert await restored(tmp_path, store, saved.pointer) == facts(tree.path)


async def test_what_the_pause_raises_passes_through_and_the_next_one_succeeds(tmp_path: Path) -> None:
    store = MemoryObjects()
    manager, tree = await full_tree(tmp_path, store)

    def away() -> None:
        raise UnavailableError("the slot does not answer", reason="SLOT_AWAY")

    for how in (pausing(before=away), pausing(after=away)):
        with pytest.raises(UnavailableError, match="the slot"):
            await manager.checkpoint(TENANT, tree, "snap-1", how)
    assert not list((tmp_path / "trees" / "staging").iterdir())
    saved = await manager.checkpoint(TENANT, tree, "snap-1", pausing())
    assert await restored(tmp_path, store, saved.pointer) == facts(tree.path)


async def test_a_tree_is_saved_by_one_call_at_a_time(tmp_path: Path) -> None:
    manager, tree = await full_tree(tmp_path, MemoryObjects())
    reached, gate = asyncio.Event(), asyncio.Event()

    @contextlib.asynccontextmanager
    async def pause() -> AsyncIterator[Collection[int]]:
        reached.set()
        await gate.wait()
        yield ()

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        running = group.create_task(manager.checkpoint(TENANT, tree, "snap-1", pause))
        await reached.wait()
        with pytest.raises(PreconditionError):
            await manager.checkpoint(TENANT, tree, "snap-2", pausing())
        with pytest.raises(PreconditionError):
            await manager.snapshot(TENANT, tree, "snap-2")
        gate.set()
        assert (await running).pointer.id == "snap-1"
    await manager.snapshot(TENANT, tree, "snap-2")


async def test_a_cancelled_checkpoint_thaws_and_leaves_nothing(
    tmp_path: Path, looking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryObjects()
    manager, tree = await full_tree(tmp_path, store)
    within, thawed = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    real = Scan.again

    def again(self: Scan[object], root: int, differences: object, mapped: object, stop: threading.Event) -> None:
        loop.call_soon_threadsafe(within.set)
        assert stop.wait(20)
        real(self, root, differences, mapped, stop)  # type: ignore[arg-type]

    monkeypatch.setattr(Scan, "again", again)
    async with asyncio.timeout(30):
        running = asyncio.create_task(
            manager.checkpoint(TENANT, tree, "snap-1", pausing(lambda: shake(tree.path / WORKSPACE), after=thawed.set))
        )
        await within.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert thawed.is_set()
    monkeypatch.setattr(Scan, "again", real)
    saved = await manager.checkpoint(TENANT, tree, "snap-2", pausing())
    assert await restored(tmp_path, store, saved.pointer) == facts(tree.path)


async def test_processes_that_die_cost_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentries, "FEW", 1)
    monkeypatch.setattr(sentries, "_PROCESSES", 2)
    store = MemoryObjects()
    manager, tree = await full_tree(tmp_path, store)
    made: list[sentries.Sentries] = []
    real = sentries.Sentries.post

    def post(self: sentries.Sentries, listing: Listing) -> None:
        real(self, listing)
        made.append(self)
        assert len(self._processes) == 2

    monkeypatch.setattr(sentries.Sentries, "post", post)

    def before() -> None:
        made[0].kill()
        shake(tree.path / WORKSPACE)

    saved = await manager.checkpoint(TENANT, tree, "snap-1", pausing(before))
    assert await restored(tmp_path, store, saved.pointer) == facts(tree.path)
