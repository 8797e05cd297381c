"""What goes into a snapshot comes out of it."""

from __future__ import annotations

import asyncio
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots.packs import CHUNK
from cloudclaw.snapshots.port import HOME, WORKSPACE
from tests.support.require import require_root
from tests.support.trees import TENANT, engine, facts

NAMES = st.one_of(
    st.sampled_from(
        [b"a", b"b", b"README.md", b"with space", b"line\nbreak", b"caf\xe9", b"\xff\xfe", b"%41", b"...", b"-rf"]
    ),
    st.binary(min_size=1, max_size=12).filter(
        lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
    ),
)
MODES = st.sampled_from(
    [0o644, 0o755, 0o600, 0o444, 0o400, 0o000, 0o777] if os.geteuid() == 0 else [0o755, 0o700, 0o555]
)
"""Without root the test itself could not look into what its owner may not read."""
TIMES = st.integers(min_value=0, max_value=2**33 * 10**9)


@dataclass(frozen=True)
class File:
    content: bytes
    mode: int
    mtime: int


@dataclass(frozen=True)
class Link:
    target: bytes
    mtime: int


@dataclass(frozen=True)
class Folder:
    mode: int
    mtime: int
    entries: dict[bytes, object] = field(default_factory=dict)


FILES = st.builds(File, st.one_of(st.binary(max_size=40), st.just(b"same")), MODES, TIMES)
LINKS = st.builds(
    Link,
    st.one_of(
        st.just(b"/etc/passwd"),
        st.just(b"../../.."),
        st.binary(min_size=1, max_size=20).filter(lambda t: b"\0" not in t),
    ),
    TIMES,
)
TREES = st.recursive(
    st.one_of(FILES, LINKS),
    lambda below: st.builds(Folder, MODES, TIMES, st.dictionaries(NAMES, below, max_size=5)),
    max_leaves=15,
)
TOPS = st.dictionaries(NAMES, TREES, max_size=6)


def build(at: bytes, entries: dict[bytes, object]) -> None:
    for name, what in entries.items():
        path = at + b"/" + name
        match what:
            case File(content, mode, mtime):
                with open(path, "wb") as file:
                    file.write(content)
                os.chmod(path, mode)
                os.utime(path, ns=(mtime, mtime))
            case Link(target, mtime):
                os.symlink(target, path)
                os.utime(path, ns=(mtime, mtime), follow_symlinks=False)
            case Folder(mode, mtime, below):
                os.mkdir(path)
                build(path, below)
                os.chmod(path, mode)
                os.utime(path, ns=(mtime, mtime))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(workspace=TOPS, home=TOPS)
def test_a_checkout_is_the_tree_that_was_saved(workspace: dict[bytes, object], home: dict[bytes, object]) -> None:
    async def trip() -> None:
        with tempfile.TemporaryDirectory() as folder:
            manager = engine(Path(folder))
            tree = await manager.checkout(TENANT, None, "first")
            build(os.fsencode(tree.path / WORKSPACE), workspace)
            build(os.fsencode(tree.path / HOME), home)
            before = facts(tree.path)
            saved = await manager.snapshot(TENANT, tree, "snap-1")
            assert facts(tree.path) == before, "saving must not change the tree"
            again = await manager.checkout(TENANT, saved.pointer, "second")
            assert facts(again.path) == before
            resaved = await manager.snapshot(TENANT, again, "snap-2")
            assert list(resaved.changes) == []
            entries = await manager.manifest(TENANT, resaved.pointer)
            assert [entry.path for entry in entries] == sorted(before)
            await manager.release(TENANT, tree, None)
            await manager.release(TENANT, again, None)
            assert not list((Path(folder) / "trees" / "live").iterdir())
            await manager.settled()
            assert not list((Path(folder) / "trees" / "trash").iterdir())
            manager.close()

    asyncio.run(trip())


async def test_large_files_come_back_whole(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "first")
    contents = {
        "exact": os.urandom(CHUNK),
        "over": os.urandom(2 * CHUNK + 5),
        "zeros": bytes(3 * CHUNK),
        "under": os.urandom(CHUNK - 1),
        "empty": b"",
    }
    for name, content in contents.items():
        (tree.path / WORKSPACE / name).write_bytes(content)
    saved = await manager.snapshot(TENANT, tree, "snap-1")
    assert saved.pointer.bytes == sum(map(len, contents.values()))
    assert saved.pointer.files == len(contents)
    again = await manager.checkout(TENANT, saved.pointer, "second")
    assert facts(again.path) == facts(tree.path)


async def test_a_second_snapshot_stores_only_new_content(tmp_path: Path) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "first")
    for number in range(20):
        (tree.path / WORKSPACE / f"file{number}").write_bytes(os.urandom(50_000))
    (tree.path / WORKSPACE / "large").write_bytes(os.urandom(2 * CHUNK))
    first = (await manager.snapshot(TENANT, tree, "snap-1")).pointer

    again = await manager.checkout(TENANT, first, "second")
    (again.path / WORKSPACE / "file3").write_bytes(b"changed" * 1000)
    (again.path / WORKSPACE / "file4").unlink()
    (again.path / WORKSPACE / "file5").rename(again.path / WORKSPACE / "moved")
    with (again.path / WORKSPACE / "large").open("ab") as file:
        file.write(b"the end")
    before = {info.name async for info in store.list("tenants/")}
    second = await manager.snapshot(TENANT, again, "snap-2")
    new = [info async for info in store.list("tenants/") if info.name not in before]

    assert second.pointer.parent == "snap-1"
    assert {change.path: (change.old_size, change.new_size) for change in second.changes} == {
        b"file3": (50_000, 7000),
        b"file4": (50_000, None),
        b"file5": (50_000, None),
        b"moved": (None, 50_000),
        b"large": (2 * CHUNK, 2 * CHUNK + 7),
    }
    assert second.stored_bytes == sum(info.size for info in new) < 20_000
    assert all(info.name.startswith(("tenants/acme/packs/second/", "tenants/acme/manifests/second/")) for info in new)


async def test_a_snapshot_repeated_writes_no_pack_twice(tmp_path: Path) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / WORKSPACE / "file").write_bytes(os.urandom(1000))
    first = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    packs = {info.name async for info in store.list("tenants/acme/packs/")}
    (tree.path / WORKSPACE / "file").write_bytes(os.urandom(1000))
    await manager.snapshot(TENANT, tree, "snap-1")
    assert packs < {info.name async for info in store.list("tenants/acme/packs/")}
    assert (await manager.checkout(TENANT, first, "other")).path.is_dir()


async def test_mode_changes_are_changes_and_new_times_are_none(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "first")
    for name in ("script", "same"):
        (tree.path / WORKSPACE / name).write_text("x")
    (tree.path / HOME / "session").write_text("x")
    first = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    again = await manager.checkout(TENANT, first, "second")
    (again.path / WORKSPACE / "script").chmod(0o755)
    os.utime(again.path / WORKSPACE / "same")
    (again.path / HOME / "session").write_text("y")
    second = await manager.snapshot(TENANT, again, "snap-2")
    assert [change.path for change in second.changes] == [b"script"]


@pytest.mark.root
async def test_files_belong_to_the_configured_uid(tmp_path: Path) -> None:
    require_root()
    manager = engine(tmp_path, files_uid=41234)
    tree = await manager.checkout(TENANT, None, "first")
    (tree.path / WORKSPACE / "folder").mkdir(mode=0o555)
    (tree.path / WORKSPACE / "folder" / "file").write_text("x")
    (tree.path / WORKSPACE / "link").symlink_to("folder")
    saved = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    again = await manager.checkout(TENANT, saved, "second")
    for at, directories, files in os.walk(again.path):
        for name in [".", *directories, *files]:
            status = os.lstat(os.path.join(at, name))
            assert (status.st_uid, status.st_gid) == (41234, 41234), name
    assert os.stat(tmp_path / "trees").st_uid == 0


async def test_a_cancelled_snapshot_ends_its_thread_and_stores_no_manifest(tmp_path: Path) -> None:
    started, gate = asyncio.Event(), asyncio.Event()

    class Slow(MemoryObjects):
        async def put(self, name: str, data: bytes, *, if_absent: bool = False) -> bool:
            started.set()
            await gate.wait()
            return await super().put(name, data, if_absent=if_absent)

    store = Slow()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "first")
    (tree.path / WORKSPACE / "file").write_bytes(os.urandom(100))
    async with asyncio.timeout(20):
        saving = asyncio.create_task(manager.snapshot(TENANT, tree, "snap-1"))
        await started.wait()
        saving.cancel()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await saving
        await manager.release(TENANT, tree, None)
    assert [info.name async for info in store.list("tenants/acme/manifests/")] == []
