"""Hard links inside a tree, and files with holes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cloudclaw.errors import InvalidArgumentError
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots.packs import CHUNK
from cloudclaw.snapshots.port import HOME, WORKSPACE, TreeLimits
from tests.support.trees import TENANT, engine, facts


async def test_the_first_name_by_path_carries_the_content(tmp_path: Path) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    root = tree.path / WORKSPACE
    (root / "b").mkdir()
    (root / "b" / "first").write_bytes(b"content")
    os.link(root / "b" / "first", root / "b.txt")  # before "b/" in bytes, after it in a walk
    os.link(root / "b" / "first", tree.path / HOME / "z")
    saved = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    entries = {entry.path: entry for entry in await manager.manifest(TENANT, saved)}
    assert entries[b"home/z"].link == b""
    assert entries[b"workspace/b.txt"].link == entries[b"workspace/b/first"].link == b"home/z"
    assert {entries[p].digest for p in (b"home/z", b"workspace/b.txt", b"workspace/b/first")} == {
        entries[b"home/z"].digest
    }
    assert (saved.files, saved.bytes) == (3, 7)
    again = await manager.checkout(TENANT, saved, "again")
    inodes = {(again.path / p).stat().st_ino for p in ("home/z", "workspace/b.txt", "workspace/b/first")}
    assert len(inodes) == 1
    assert facts(again.path) == facts(tree.path)


async def test_links_that_are_made_and_broken_are_followed_from_snapshot_to_snapshot(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    root = tree.path / WORKSPACE
    (root / "m").write_bytes(b"content")

    async def links(snapshot: str) -> dict[bytes, bytes]:
        saved = (await manager.snapshot(TENANT, tree, snapshot)).pointer
        entries = await manager.manifest(TENANT, saved)
        return {entry.path[10:]: entry.link[10:] for entry in entries if b"/" in entry.path}

    assert await links("s1") == {b"m": b""}
    os.link(root / "m", root / "z")
    assert await links("s2") == {b"m": b"", b"z": b"m"}
    os.link(root / "m", root / "a")
    assert await links("s3") == {b"a": b"", b"m": b"a", b"z": b"a"}
    (root / "a").unlink()
    assert await links("s4") == {b"m": b"", b"z": b"m"}
    (root / "z").unlink()
    (root / "z").write_bytes(b"content")
    assert await links("s5") == {b"m": b"", b"z": b""}


async def test_a_tree_with_hard_links_may_come_back_from_the_shelf(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / WORKSPACE / "a").write_bytes(b"x")
    os.link(tree.path / WORKSPACE / "a", tree.path / WORKSPACE / "b")
    saved = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    await manager.release(TENANT, tree, saved)
    assert list(manager.cached()) == [(TENANT, "snap-1")]
    again = await manager.checkout(TENANT, saved, "next")
    resaved = await manager.snapshot(TENANT, again, "snap-2")
    assert resaved.pointer.manifest == saved.manifest


async def test_bytes_with_many_names_count_once_against_the_limit(tmp_path: Path) -> None:
    manager = engine(tmp_path, limits=TreeLimits(total_bytes=1500))
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / WORKSPACE / "a").write_bytes(bytes(1000))
    for number in range(5):
        os.link(tree.path / WORKSPACE / "a", tree.path / WORKSPACE / f"b{number}")
    assert (await manager.snapshot(TENANT, tree, "snap-1")).pointer.bytes == 1000


async def test_a_link_out_of_the_two_top_directories_is_refused(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / WORKSPACE / "a").write_bytes(b"x")
    os.link(tree.path / WORKSPACE / "a", tree.path / "beside")
    with pytest.raises(InvalidArgumentError, match=r"workspace/a.*outside of the tree"):
        await manager.snapshot(TENANT, tree, "snap-1")


async def test_holes_are_kept_and_cost_nothing(tmp_path: Path) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    file = tree.path / WORKSPACE / "image"
    with file.open("wb") as out:
        out.truncate(200 << 20)
        out.seek(100 << 20)
        out.write(b"in the middle")
        out.seek((150 << 20) + 4095)
        out.write(b"over a block's end")
    started = time.process_time()
    saved = await manager.snapshot(TENANT, tree, "snap-1")
    assert time.process_time() - started < 10
    assert saved.stored_bytes < 30_000
    again = await manager.checkout(TENANT, saved.pointer, "again")
    copy = again.path / WORKSPACE / "image"
    assert copy.stat().st_blocks * 512 < 1 << 20
    with file.open("rb") as one, copy.open("rb") as two:
        while piece := one.read(CHUNK):
            assert two.read(CHUNK) == piece
        assert two.read(1) == b""
    entries = {entry.path: entry for entry in await manager.manifest(TENANT, saved.pointer)}
    assert entries[b"workspace/image"].sparse
    assert entries[b"workspace/image"].size == 200 << 20


@pytest.mark.parametrize("size", [1, 5000, CHUNK, CHUNK + 1])
async def test_a_file_that_is_one_hole_comes_back(tmp_path: Path, size: int) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    with (tree.path / WORKSPACE / "hole").open("wb") as out:
        out.truncate(size)
    saved = await manager.snapshot(TENANT, tree, "snap-1")
    again = await manager.checkout(TENANT, saved.pointer, "again")
    assert (again.path / WORKSPACE / "hole").read_bytes() == bytes(size)
