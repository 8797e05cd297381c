"""Hostile trees: what a task may leave behind, met by a snapshot."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudclaw.errors import InvalidArgumentError, QuotaExceededError
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots import safe
from cloudclaw.snapshots.port import HOME, WORKSPACE, FileType, Tree, TreeLimits
from tests.support.require import require_root
from tests.support.trees import TENANT, engine, facts

SECRET = b"the host's own secret"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory beside the trees that must stay as it is."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(SECRET)
    return folder


def untouched(outside: Path) -> bool:
    return {p.name: p.read_bytes() for p in outside.iterdir()} == {"secret": SECRET}


async def stored(store: MemoryObjects) -> bytes:
    return b"".join([await store.get(info.name) async for info in store.list("tenants/")])


async def test_a_symlink_out_is_kept_as_a_symlink(tmp_path: Path, outside: Path) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / WORKSPACE / "file").symlink_to(outside / "secret")
    (tree.path / WORKSPACE / "folder").symlink_to(outside)
    (tree.path / HOME / "root").symlink_to("/")
    saved = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    entries = {entry.path: entry for entry in await manager.manifest(TENANT, saved)}
    assert entries[b"workspace/folder"].type is FileType.SYMLINK
    assert entries[b"workspace/file"].target == os.fsencode(outside / "secret")
    assert saved.bytes == 0
    assert SECRET not in await stored(store)


@pytest.mark.parametrize("top", [WORKSPACE, HOME])
async def test_a_top_directory_swapped_for_a_symlink_is_refused(tmp_path: Path, outside: Path, top: str) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / top).rmdir()
    (tree.path / top).symlink_to(outside)
    with pytest.raises(InvalidArgumentError, match=top):
        await manager.snapshot(TENANT, tree, "snap-1")
    await manager.release(TENANT, tree, None)
    assert untouched(outside)


async def test_a_parent_swapped_while_it_is_read_leads_nowhere(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listing is done, then the directory makes room for a symlink to the outside: what is read is the old one."""
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    inside = tree.path / WORKSPACE / "folder"
    inside.mkdir()
    (inside / "secret").write_bytes(b"harmless")
    real = safe.open_regular

    def swap(directory: int, name: bytes, *, path: bytes = b"") -> int:
        if inside.is_dir() and not inside.is_symlink():
            inside.rename(tree.path / WORKSPACE / "moved")
            inside.symlink_to(outside)
        return real(directory, name, path=path)

    monkeypatch.setattr(safe, "open_regular", swap)
    saved = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    read = b"".join([piece async for piece in manager.read(TENANT, saved, b"workspace/folder/secret")])
    assert read == b"harmless"
    assert SECRET not in await stored(store)


async def test_a_file_swapped_for_a_symlink_after_the_listing_is_refused(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    file = tree.path / WORKSPACE / "file"
    file.write_bytes(b"harmless")
    real = safe.open_regular

    def swap(directory: int, name: bytes, *, path: bytes = b"") -> int:
        file.unlink()
        file.symlink_to(outside / "secret")
        return real(directory, name, path=path)

    monkeypatch.setattr(safe, "open_regular", swap)
    with pytest.raises(InvalidArgumentError, match="workspace/file"):
        await manager.snapshot(TENANT, tree, "snap-1")


async def test_a_file_swapped_for_a_fifo_after_the_listing_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    file = tree.path / WORKSPACE / "file"
    file.write_bytes(b"harmless")
    real = safe.open_regular

    def swap(directory: int, name: bytes, *, path: bytes = b"") -> int:
        file.unlink()
        os.mkfifo(file)
        return real(directory, name, path=path)

    monkeypatch.setattr(safe, "open_regular", swap)
    with pytest.raises(InvalidArgumentError, match=r"workspace/file.*FIFO"):
        await manager.snapshot(TENANT, tree, "snap-1")


async def test_a_directory_swapped_for_a_symlink_after_the_listing_is_refused(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    inside = tree.path / WORKSPACE / "folder"
    inside.mkdir()
    real = safe.open_directory

    def swap(directory: int, name: bytes, *, path: bytes = b"") -> tuple[int, int]:
        if name == b"folder":
            inside.rmdir()
            inside.symlink_to(outside)
        return real(directory, name, path=path)

    monkeypatch.setattr(safe, "open_directory", swap)
    with pytest.raises(InvalidArgumentError, match="workspace/folder"):
        await manager.snapshot(TENANT, tree, "snap-1")


async def test_a_file_that_grows_while_it_is_read_does_not_pass_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = engine(tmp_path, limits=TreeLimits(file_bytes=1000))
    tree = await manager.checkout(TENANT, None, "uid")
    file = tree.path / WORKSPACE / "file"
    file.write_bytes(b"x" * 900)
    real = os.pread
    calls: list[int] = []

    def grow(fd: int, size: int, offset: int) -> bytes:
        if not calls:
            calls.append(fd)
            with file.open("ab") as more:
                more.write(b"x" * 100_000)
        return real(fd, size, offset)

    monkeypatch.setattr("cloudclaw.snapshots.pipeline.os.pread", grow)
    with pytest.raises(InvalidArgumentError, match=r"workspace/file.*grew"):
        await manager.snapshot(TENANT, tree, "snap-1")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        at = os.open(path.parent, os.O_RDONLY)
        try:
            server.bind(f"/proc/self/fd/{at}/{path.name}")
        finally:
            os.close(at)


def _device(path: Path) -> None:
    require_root()
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (_fifo, "FIFO"),
        (_socket, "socket"),
        pytest.param(_device, "device", marks=pytest.mark.root),
    ],
)
async def test_what_is_no_file_is_refused_by_name(tmp_path: Path, make: Callable[[Path], None], kind: str) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / WORKSPACE / "deep").mkdir()
    make(tree.path / WORKSPACE / "deep" / "it")
    with pytest.raises(InvalidArgumentError, match=rf"workspace/deep/it.*{kind}") as refused:
        await manager.snapshot(TENANT, tree, "snap-1")
    assert refused.value.field == "path"
    await manager.release(TENANT, tree, None)
    assert not tree.path.exists()


async def test_a_hard_link_to_the_outside_is_refused_by_name_and_not_read(tmp_path: Path, outside: Path) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / WORKSPACE / "fine").write_bytes(b"x")
    os.link(outside / "secret", tree.path / WORKSPACE / "linked")
    os.link(outside / "secret", tree.path / HOME / "linked too")
    with pytest.raises(InvalidArgumentError, match=r"home/linked too.*one of 3 names.*1 of them outside") as refused:
        await manager.snapshot(TENANT, tree, "snap-1")
    assert refused.value.field == "path"
    assert SECRET not in await stored(store)
    assert untouched(outside)
    (outside / "secret").unlink()
    saved = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    assert saved.bytes == len(SECRET) + 1, "now both names are the tree's own"


async def test_setuid_setgid_and_sticky_are_dropped(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    for bits in (0o4755, 0o2755, 0o1755):
        (tree.path / WORKSPACE / f"{bits:o}").write_text("#!/bin/sh")
        (tree.path / WORKSPACE / f"{bits:o}").chmod(bits)
    (tree.path / WORKSPACE / "dir").mkdir()
    (tree.path / WORKSPACE / "dir").chmod(0o2770)
    saved = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    await manager.release(TENANT, tree, saved)
    assert manager.cached() == [], "the tree on disk still has the bits"
    again = await manager.checkout(TENANT, saved, "other")
    assert {f.mode for f in facts(again.path).values()} <= {0o755, 0o770, 0o700}


async def test_a_tree_deeper_than_allowed_is_refused_by_name_and_removed(tmp_path: Path) -> None:
    manager = engine(tmp_path, limits=TreeLimits(depth=50))
    tree = await manager.checkout(TENANT, None, "uid")
    dig(tree, 5000)
    with pytest.raises(InvalidArgumentError, match="deeper than 50"):
        await manager.snapshot(TENANT, tree, "snap-1")
    await manager.release(TENANT, tree, None)
    await manager.settled()
    assert not list((tmp_path / "trees" / "trash").iterdir())
    assert not tree.path.exists()


async def test_a_path_longer_than_allowed_is_refused_by_name(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    dig(tree, 18, b"n" * 250)
    with pytest.raises(InvalidArgumentError, match="at most 4096 are allowed"):
        await manager.snapshot(TENANT, tree, "snap-1")


async def test_the_longest_path_allowed_comes_back(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    dig(tree, 16, b"n" * 255)
    saved = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    await manager.checkout(TENANT, saved, "other")
    entries = await manager.manifest(TENANT, saved)
    assert max(len(entry.path) for entry in entries) == len(b"workspace/") + 16 * 256 - 1


def dig(tree: Tree, depth: int, name: bytes = b"d") -> None:
    """Nest `depth` directories, deeper than any path reaches."""
    fd = os.open(tree.path / WORKSPACE, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


async def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A sparse file of a petabyte costs nothing to make, and must cost nothing to refuse."""
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    with (tree.path / WORKSPACE / "bomb").open("wb") as file:
        file.truncate(1 << 43)
    with pytest.raises(QuotaExceededError, match="workspace/bomb"):
        await manager.snapshot(TENANT, tree, "snap-1")


async def test_many_sparse_files_together_are_refused(tmp_path: Path) -> None:
    manager = engine(tmp_path, limits=TreeLimits(total_bytes=3 << 20))
    tree = await manager.checkout(TENANT, None, "uid")
    for number in range(4):
        with (tree.path / WORKSPACE / f"bomb{number}").open("wb") as file:
            file.truncate(1 << 20)
    with pytest.raises(QuotaExceededError, match=r"workspace/bomb3.*3145728"):
        await manager.snapshot(TENANT, tree, "snap-1")


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
async def test_too_many_entries_of_any_kind_are_refused(tmp_path: Path, kind: str) -> None:
    manager = engine(tmp_path, limits=TreeLimits(files=10))
    tree = await manager.checkout(TENANT, None, "uid")
    for number in range(11):
        path = tree.path / (WORKSPACE if number % 2 else HOME) / f"n{number}"
        match kind:
            case "file":
                path.touch()
            case "directory":
                path.mkdir()
            case _:
                path.symlink_to("x")
    with pytest.raises(QuotaExceededError, match="more than 10 files"):
        await manager.snapshot(TENANT, tree, "snap-1")


async def test_what_lies_beside_the_two_top_directories_is_not_saved(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / "beside").write_text("x")
    saved = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    assert [entry.path for entry in await manager.manifest(TENANT, saved)] == [b"home", b"workspace"]
