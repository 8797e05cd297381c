"""Trees that are too many, too large, too deep, or have too long names: refused by name, soon, and in little memory."""

from __future__ import annotations

import asyncio
import os
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cloudclaw.errors import InvalidArgumentError, QuotaExceededError
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots import limits, safe
from cloudclaw.snapshots.engine import SnapshotEngine
from cloudclaw.snapshots.port import HOME, WORKSPACE, Tree, TreeLimits
from cloudclaw.snapshots.safe import show
from tests.attacks.hostile import plain
from tests.support.trees import TENANT, engine

PREFIX = "artifacts/acme/task-1/uid/"
MIB = 1 << 20


class Pause:
    """A pause that measures itself, in seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[tuple[int, ...]]:
        begun = time.monotonic()
        try:
            yield ()
        finally:
            self.seconds = time.monotonic() - begun


@asynccontextmanager
async def loop_runs(longest: float) -> AsyncIterator[None]:
    """Nothing in the block keeps the event loop from anybody for longer than that many seconds."""
    gaps: list[float] = []

    async def tick() -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.001)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
    assert max(gaps) < longest


def flood(folder: Path, count: int, *, spread: int = 1) -> None:
    """That many empty files, in `spread` folders."""
    for part in range(spread):
        directory = folder if spread == 1 else folder / f"part{part}"
        directory.mkdir(exist_ok=True)
        with safe.closing(os.open(directory, os.O_RDONLY)) as fd:
            for number in range(count // spread):
                os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd))


# -- too many --


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("count", "spread", "most"), [(150_000, 1, 100_000), (12_000, 12, 6_000)])
async def test_a_flood_of_files_is_refused_stands_still_for_a_moment_only_and_goes(
    tmp_path: Path, count: int, spread: int, most: int
) -> None:
    manager = engine(tmp_path, limits=TreeLimits(files=most))
    tree = await manager.checkout(TENANT, None, "uid")
    await asyncio.to_thread(flood, tree.path / WORKSPACE, count, spread=spread)
    pause = Pause()
    async with loop_runs(1.0):
        with pytest.raises(QuotaExceededError, match=rf"'workspace/.*more than {most}"):
            await manager.snapshot(TENANT, tree, "snap-1")
        with pytest.raises(QuotaExceededError, match=rf"'workspace/.*more than {most}"):
            await manager.checkpoint(TENANT, tree, "ckpt-1", pause)
        kept = await manager.collect(TENANT, tree, ["nothing"], PREFIX)
        await manager.release(TENANT, tree, None)
        await manager.settled()
    if spread == 1:
        assert kept.truncated
    assert pause.seconds < 1.0, "it copied what it had to refuse"
    assert not tree.path.exists()
    assert not list((tmp_path / "trees" / "trash").iterdir())


async def test_a_flood_between_the_looks_of_a_checkpoint_is_refused_before_it_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = engine(tmp_path, limits=TreeLimits(files=500))
    tree = await manager.checkout(TENANT, None, "uid")
    flood(tree.path / WORKSPACE, 400, spread=2)

    @asynccontextmanager
    async def pause() -> AsyncIterator[tuple[int, ...]]:
        flood(tree.path / WORKSPACE / "part0", 400)
        opened.clear()
        yield ()

    opened: list[bytes] = []
    real = safe.open_regular

    def note(directory: int, name: bytes, *, path: bytes = b"") -> int:
        opened.append(path)
        return real(directory, name, path=path)

    monkeypatch.setattr(safe, "open_regular", note)
    with pytest.raises(QuotaExceededError, match=r"'workspace/part.*more than 500"):
        await manager.checkpoint(TENANT, tree, "ckpt-1", pause)
    assert opened == []


class _Endless:
    """A directory of a million entries, of which every one is a hard link to the same file."""

    def __init__(self, entry: os.DirEntry[str]) -> None:
        self._entry = entry
        self.listed = 0

    def __iter__(self) -> Iterator[Any]:
        for number in range(1_000_000):
            self.listed += 1
            yield _Named(f"n{number}", self._entry)


class _Named:
    def __init__(self, name: str, entry: os.DirEntry[str]) -> None:
        self.name = name
        self._entry = entry

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        return self._entry.stat(follow_symlinks=follow_symlinks)


@pytest.mark.parametrize("door", ["snapshot", "collect"])
async def test_a_million_entries_are_listed_no_further_than_the_limit_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / WORKSPACE / "only").touch()
    real = safe.names
    listings: list[_Endless] = []

    def endless(directory: int) -> Iterator[Any]:
        found = list(real(directory))
        if [entry.name for entry in found] != ["only"]:
            return iter(found)
        listings.append(_Endless(found[0]))
        return iter(listings[-1])

    monkeypatch.setattr(safe, "names", endless)
    tracemalloc.start()
    try:
        if door == "snapshot":
            with pytest.raises(QuotaExceededError, match=r"'workspace/n100000'"):
                await manager.snapshot(TENANT, tree, "snap-1")
        else:
            assert (await manager.collect(TENANT, tree, ["x"], PREFIX)).truncated
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [listing.listed for listing in listings] == [100_001]
    assert most < 64 * MIB


# -- too large --


async def test_one_file_over_the_limit_in_a_tree_that_is_fine_is_named(tmp_path: Path) -> None:
    """A terabyte that is one hole, in the midst of what is fine."""
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    for number in range(50):
        folder = tree.path / WORKSPACE / f"d{number:02}"
        folder.mkdir()
        (folder / "fine").write_bytes(b"x" * number)
    with (tree.path / WORKSPACE / "d25" / "bomb").open("wb") as file:
        file.truncate(1 << 40)
    pause = Pause()
    with pytest.raises(QuotaExceededError, match=r"'workspace/d25/bomb'.*268435456"):
        await manager.snapshot(TENANT, tree, "snap-1")
    with pytest.raises(QuotaExceededError, match=r"'workspace/d25/bomb'.*268435456"):
        await manager.checkpoint(TENANT, tree, "ckpt-1", pause)
    kept = await manager.collect(TENANT, tree, ["**"], PREFIX)
    assert kept.truncated
    assert len(kept.files) == 50
    (tree.path / WORKSPACE / "d25" / "bomb").unlink()
    assert (await manager.checkpoint(TENANT, tree, "ckpt-2", pause)).pointer.files == 50


async def test_thousands_of_holes_together_are_refused_and_take_no_disk(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    for number in range(3000):
        with (tree.path / WORKSPACE / f"hole{number:04}").open("wb") as file:
            file.truncate(MIB)
    pause = Pause()
    with pytest.raises(QuotaExceededError, match=r"'workspace/hole.*2147483648"):
        await manager.checkpoint(TENANT, tree, "ckpt-1", pause)
    assert (await manager.collect(TENANT, tree, ["hole00*"], PREFIX)).truncated is False


async def test_holes_within_the_limits_come_back_as_holes(tmp_path: Path) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    for number in range(200):
        with (tree.path / WORKSPACE / f"hole{number:03}").open("wb") as file:
            file.truncate(MIB)
    saved = await manager.checkpoint(TENANT, tree, "ckpt-1", Pause())
    assert saved.stored_bytes < MIB // 4
    again = await engine(tmp_path / "other", store).checkout(TENANT, saved.pointer, "other")
    blocks = sum(path.stat().st_blocks for path in (again.path / WORKSPACE).iterdir())
    assert blocks * 512 < MIB


async def test_hard_links_in_a_chain_store_their_file_once(tmp_path: Path) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    last = tree.path / WORKSPACE / "link0000"
    last.write_bytes(os.urandom(MIB))
    for number in range(1, 3000):
        last = tree.path / (WORKSPACE if number % 2 else HOME) / f"link{number:04}"
        last.hardlink_to(tree.path / WORKSPACE / "link0000")
    saved = await manager.checkpoint(TENANT, tree, "ckpt-1", Pause())
    assert saved.stored_bytes < 2 * MIB
    assert saved.pointer.bytes == MIB
    again = await engine(tmp_path / "other", store).checkout(TENANT, saved.pointer, "other")
    assert (again.path / WORKSPACE / "link0001").stat().st_nlink == 3000


# -- too deep --


def dig(tree: Tree, depth: int, name: bytes = b"d") -> int:
    """Nest directories deeper than any path reaches; the last one, open."""
    fd = os.open(tree.path / WORKSPACE, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    return fd


async def test_ten_thousand_nested_directories_are_refused_at_every_door_and_go(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    os.close(dig(tree, 10_000))
    with pytest.raises(InvalidArgumentError, match="deeper than 128"):
        await manager.snapshot(TENANT, tree, "snap-1")
    with pytest.raises(InvalidArgumentError, match="deeper than 128"):
        await manager.checkpoint(TENANT, tree, "ckpt-1", Pause())
    assert (await manager.collect(TENANT, tree, ["**/x", "**/" * 80 + "x"], PREFIX)).truncated
    await manager.release(TENANT, tree, None)
    await manager.settled()
    assert not list((tmp_path / "trees" / "trash").iterdir())


# -- too long --


@pytest.fixture
def few_names(monkeypatch: pytest.MonkeyPatch) -> int:
    """The limit of all names together, made small; in bytes."""
    monkeypatch.setattr(limits, "NAMES", 2)
    return 200_000


@pytest.mark.parametrize("kind", ["path", "target"])
async def test_names_that_are_long_together_are_refused(tmp_path: Path, few_names: int, kind: str) -> None:
    """100,000 paths of 4 KB took gigabytes and minutes of the service that saved them, and could not be read again."""
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    with safe.closing(dig(tree, 10, b"\xff" * 250) if kind == "path" else dig(tree, 1)) as fd:
        for number in range(100):
            if kind == "path":
                os.close(os.open(b"\xff%d" % number, os.O_CREAT | os.O_WRONLY, dir_fd=fd))
            else:
                os.symlink(b"\xff" * 4000, b"%d" % number, dir_fd=fd)
    saves: list[Callable[[], Awaitable[object]]] = [
        lambda: manager.snapshot(TENANT, tree, "snap-1"),
        lambda: manager.checkpoint(TENANT, tree, "ckpt-1", Pause()),
    ]
    for save in saves:
        with pytest.raises(QuotaExceededError, match=f"more than {few_names} bytes in all") as refused:
            await save()
        assert plain(refused.value.message)
    # What is removed counts no more.
    for entry in list((tree.path / WORKSPACE).iterdir()):
        entry.rename(tmp_path / "aside")
    assert (await manager.checkpoint(TENANT, tree, "ckpt-2", Pause())).pointer.files == 0


async def test_names_are_counted_once_however_often_they_are_looked_at(tmp_path: Path, few_names: int) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    with safe.closing(dig(tree, 10, b"n" * 250)) as fd:
        for number in range(30):
            os.symlink(b"t" * 2000, b"%d" % number, dir_fd=fd)
    for number in range(4):
        with safe.closing(os.open(tree.path / WORKSPACE / "new", os.O_CREAT | os.O_WRONLY)):
            await manager.checkpoint(TENANT, tree, f"ckpt-{number}", Pause())
            await manager.snapshot(TENANT, tree, f"snap-{number}")


def test_a_long_name_of_bytes_that_are_no_text_is_shown_in_no_time() -> None:
    """One call for each byte took three milliseconds for each such path."""
    begun = time.process_time()
    for _ in range(1000):
        shown = show(b"\xff" * 4000 + b"a\xe2\x82" + "é%".encode())
    assert time.process_time() - begun < 1.5
    assert shown == "%FF" * 4000 + "a%E2%82é%"


# -- patterns --


@pytest.mark.parametrize(
    "pattern",
    [
        "**/*" + "a" * 125 + "b",
        "**/" + "*a" * 120 + "b",
        "**/*a/" * 36 + "**/b",
        "**/" * 85 + "b",
        "**/*" + "[a-b]" * 40 + "c",
        "**/" + "?*" * 120 + "b",
    ],
)
async def test_a_pattern_made_for_going_back_does_not(tmp_path: Path, pattern: str) -> None:
    """Up to two milliseconds for each name and pattern were hours for a tree and 64 patterns."""
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    folder = tree.path / WORKSPACE / ("a" * 200)
    folder.mkdir()
    for number in range(2000):
        (folder / ("a" * 240 + f"{number}")).touch()
    begun = time.process_time()
    assert (await manager.collect(TENANT, tree, [pattern], PREFIX)).files == []
    assert time.process_time() - begun < 2.0


@pytest.mark.parametrize("pattern", ["a\0b", "../canary", "/etc/*", "a/../b", "", "x" * 257, "a//b", "\ud800"])
async def test_a_pattern_that_leads_elsewhere_is_refused(tmp_path: Path, pattern: str) -> None:
    manager: SnapshotEngine = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    with pytest.raises(InvalidArgumentError) as refused:
        await manager.collect(TENANT, tree, [pattern], PREFIX)
    assert plain(refused.value.message)


async def test_a_pattern_with_a_newline_is_an_ordinary_one(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / WORKSPACE / "a\nb").write_bytes(b"x")
    (tree.path / WORKSPACE / "a").write_bytes(b"y")
    kept = await manager.collect(TENANT, tree, ["a\n?", "a?\n"], PREFIX)
    assert [file.path for file in kept.files] == [b"a\nb"]
