"""Files that are kept by glob."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloudclaw.errors import InvalidArgumentError
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots import artifacts
from cloudclaw.snapshots.engine import SnapshotEngine
from cloudclaw.snapshots.port import HOME, WORKSPACE, Tree, TreeLimits
from tests.support.trees import TENANT, engine

PREFIX = "artifacts/acme/task-1/uid/"


async def tree_of(
    tmp_path: Path, contents: dict[str, bytes], store: MemoryObjects, limits: TreeLimits | None = None
) -> tuple[SnapshotEngine, Tree]:
    manager = engine(tmp_path, store, limits=limits)
    tree = await manager.checkout(TENANT, None, "uid")
    for name, content in contents.items():
        path = tree.path / WORKSPACE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return manager, tree


async def test_what_matches_is_stored_by_digest_and_listed_by_path(tmp_path: Path) -> None:
    store = MemoryObjects()
    files = {
        "report.pdf": b"pdf",
        "out/a.log": b"same",
        "out/deep/b.log": b"same",
        "out/c.txt": b"no",
        "dist/x/y": b"",
        "src/a.log": b"1" * (3 << 20),
    }
    manager, tree = await tree_of(tmp_path, files, store)
    (tree.path / HOME / "a.log").write_bytes(b"not of the workspace")
    kept = await manager.collect(TENANT, tree, ["report.pdf", "**/*.log", "dist"], PREFIX)
    assert [(file.path, file.size) for file in kept.files] == [
        (b"dist/x/y", 0),
        (b"out/a.log", 4),
        (b"out/deep/b.log", 4),
        (b"report.pdf", 3),
        (b"src/a.log", 3 << 20),
    ]
    assert not kept.truncated
    names = [info.name async for info in store.list(PREFIX)]
    assert names == sorted({PREFIX + file.digest for file in kept.files})
    for file in kept.files:
        assert await store.get(PREFIX + file.digest) == files[os.fsdecode(file.path)]
        assert hashlib.sha256(files[os.fsdecode(file.path)]).hexdigest() == file.digest


async def test_symlinks_are_not_followed_and_what_is_no_file_is_left_out(tmp_path: Path) -> None:
    store = MemoryObjects()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    manager, tree = await tree_of(tmp_path, {"a/file": b"x"}, store)
    (tree.path / WORKSPACE / "folder").symlink_to(tmp_path / "outside")
    (tree.path / WORKSPACE / "link").symlink_to(tmp_path / "outside" / "secret")
    os.mkfifo(tree.path / WORKSPACE / "pipe")
    (tree.path / WORKSPACE / "a" / "file").chmod(0)
    (tree.path / WORKSPACE / "a").chmod(0o500)
    kept = await manager.collect(TENANT, tree, ["**"], PREFIX)
    assert [file.path for file in kept.files] == [b"a/file"]
    assert (tree.path / WORKSPACE / "a").stat().st_mode & 0o777 == 0o500


async def test_more_than_may_be_kept_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryObjects()
    files = {f"f{number}": b"x" * 10 for number in range(9)} | {"large": b"x" * 200}
    manager, tree = await tree_of(tmp_path, files, store, TreeLimits(file_bytes=100, total_bytes=55))
    kept = await manager.collect(TENANT, tree, ["f*"], PREFIX)
    assert ([file.path for file in kept.files], kept.truncated) == ([b"f0", b"f1", b"f2", b"f3", b"f4"], True)
    kept = await manager.collect(TENANT, tree, ["large"], PREFIX)
    assert (list(kept.files), kept.truncated) == ([], True)
    monkeypatch.setattr(artifacts, "MOST", 3)
    kept = await manager.collect(TENANT, tree, ["f*"], PREFIX)
    assert ([file.path for file in kept.files], kept.truncated) == ([b"f0", b"f1", b"f2"], True)


async def test_without_patterns_nothing_is_looked_at(tmp_path: Path) -> None:
    manager, tree = await tree_of(tmp_path, {"a": b"x"}, MemoryObjects())
    (tree.path / WORKSPACE / "a").unlink()
    (tree.path / WORKSPACE).rmdir()
    kept = await manager.collect(TENANT, tree, [], PREFIX)
    assert (list(kept.files), kept.truncated) == ([], False)


async def test_a_malformed_pattern_is_refused(tmp_path: Path) -> None:
    manager, tree = await tree_of(tmp_path, {}, MemoryObjects())
    with pytest.raises(InvalidArgumentError) as refused:
        await manager.collect(TENANT, tree, ["ok", "../etc"], PREFIX)
    assert refused.value.field == "artifacts"


async def test_a_file_that_changes_while_it_is_stored_leaves_no_object_of_another_name(tmp_path: Path) -> None:
    class Meddling(MemoryObjects):
        async def put_stream(self, name: str, chunks: AsyncIterator[bytes]) -> int:
            (tree.path / WORKSPACE / "a").write_bytes(b"y" * 10)
            return await super().put_stream(name, chunks)

    store = Meddling()
    manager, tree = await tree_of(tmp_path, {"a": b"x" * 10}, store)
    with pytest.raises(InvalidArgumentError, match="changed while"):
        await manager.collect(TENANT, tree, ["a"], PREFIX)
    assert [info.name async for info in store.list(PREFIX)] == []
