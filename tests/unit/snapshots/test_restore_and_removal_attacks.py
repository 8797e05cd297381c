"""Hostile trees and manifests, met by restore and removal; hostile names, met by all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloudclaw.coordination.records import SnapshotPointer
from cloudclaw.errors import DataLossError, InvalidArgumentError
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots import manifest as manifests
from cloudclaw.snapshots import safe
from cloudclaw.snapshots.manifest import Item, Manifest
from cloudclaw.snapshots.packs import PackWriter
from cloudclaw.snapshots.port import HOME, WORKSPACE, FileEntry, FileType
from cloudclaw.snapshots.reader import manifest_name
from cloudclaw.snapshots.removal import remove
from tests.support.trees import TENANT, engine, give_away, without_rights

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


# -- restore --


def manifest_of(store: MemoryObjects, *entries: FileEntry, content: bytes = b"planted") -> Manifest:
    """A manifest that our own scan would never write."""
    frames: list[tuple[str, bytes]] = []

    class Done:
        def result(self) -> bool:
            return True

    packs = PackWriter("tenants/acme/packs/evil/up-0", {}, lambda name, data: frames.append((name, data)) or Done())  # type: ignore[arg-type,func-returns-value,return-value]
    blob = packs.add(content)
    packs.finish()
    store._objects.update({name: (data, 0.0) for name, data in frames})
    tops = [FileEntry(top.encode(), FileType.DIRECTORY, mode=0o755) for top in (HOME, WORKSPACE)]
    return Manifest(
        [Item(entry) for entry in tops]
        + [
            Item(
                FileEntry(entry.path, entry.type, len(content), 0o644, 0, blob.digest, entry.target)
                if entry.type is FileType.REGULAR
                else entry,
                (blob,) if entry.type is FileType.REGULAR else (),
            )
            for entry in entries
        ]
    )


async def publish(store: MemoryObjects, manifest: Manifest) -> SnapshotPointer:
    data, digest = manifests.encode(manifest)
    pointer = SnapshotPointer(id="snap-evil", manifest=digest, uid="evil")
    await store.put(manifest_name(TENANT, pointer), data)
    return pointer


@pytest.mark.parametrize(
    "path",
    [
        b"workspace/../../planted",
        b"/etc/planted",
        b"elsewhere/planted",
        b"workspace//planted",
        b"workspace/./planted",
        b"..",
    ],
)
async def test_a_manifest_that_names_a_path_outside_is_not_believed(tmp_path: Path, outside: Path, path: bytes) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    pointer = await publish(store, manifest_of(store, FileEntry(path, FileType.REGULAR)))
    with pytest.raises(DataLossError):
        await manager.checkout(TENANT, pointer, "uid")
    assert not list(tmp_path.rglob("planted"))
    assert not list((tmp_path / "trees" / "live").iterdir())


async def test_a_manifest_with_a_file_below_a_symlink_writes_nothing_through_it(tmp_path: Path, outside: Path) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    link = FileEntry(b"workspace/link", FileType.SYMLINK, target=os.fsencode(outside))
    pointer = await publish(store, manifest_of(store, link, FileEntry(b"workspace/link/planted", FileType.REGULAR)))
    with pytest.raises((DataLossError, InvalidArgumentError)):
        await manager.checkout(TENANT, pointer, "uid")
    assert untouched(outside)


async def test_a_symlink_planted_while_restoring_is_not_written_through(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / WORKSPACE / "folder").mkdir()
    (tree.path / WORKSPACE / "folder" / "planted").write_text("x")
    saved = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    real = safe.open_beneath

    def swap(root: int, path: bytes, flags: int, mode: int = 0o600, *, named: bytes = b"") -> int:
        if path == b"workspace/folder":
            os.rename(b"workspace/folder", b"workspace/old", src_dir_fd=root, dst_dir_fd=root)
            os.symlink(os.fsencode(outside), b"workspace/folder", dir_fd=root)
        return real(root, path, flags, mode, named=named)

    monkeypatch.setattr(safe, "open_beneath", swap)
    with pytest.raises(InvalidArgumentError, match="symlink"):
        await manager.checkout(TENANT, saved, "other")
    assert untouched(outside)


# -- removal --


async def test_removal_follows_no_symlink(tmp_path: Path, outside: Path) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / WORKSPACE / "link").symlink_to(outside)
    (tree.path / WORKSPACE / "folder").mkdir()
    (tree.path / WORKSPACE / "folder" / "up").symlink_to("../../../../outside")
    await manager.release(TENANT, tree, None)
    await manager.settled()
    assert untouched(outside)
    assert not tree.path.exists()


async def test_a_directory_swapped_while_removing_leads_nowhere(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    (tree / "folder").mkdir(parents=True)
    (tree / "folder" / "secret").write_text("x")
    real = safe.open_directory

    def swap(directory: int, name: bytes, *, path: bytes = b"") -> tuple[int, int]:
        if name == b"folder":
            (tree / "folder").rename(tree / "moved")
            (tree / "folder").symlink_to(outside)
        return real(directory, name, path=path)

    monkeypatch.setattr(safe, "open_directory", swap)
    with safe.closing(os.open(tmp_path, safe.DIRECTORY)) as fd, pytest.raises(InvalidArgumentError):
        remove(fd, b"tree", fd)
    assert untouched(outside)


def test_directories_that_their_owner_closed_are_removed(tmp_path: Path) -> None:
    tree = tmp_path / "mine" / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").write_text("x")
    (tree / "a" / "b").chmod(0o000)
    (tree / "a").chmod(0o500)
    give_away(tmp_path / "mine")
    with safe.closing(os.open(tmp_path / "mine", safe.DIRECTORY)) as fd:
        removed = without_rights(lambda: remove(fd, b"tree", fd))
    assert not tree.exists()
    assert (removed.files, removed.bytes) == (4, 1)


async def test_unusual_names_and_kinds_are_removed(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    os.mkfifo(tree.path / WORKSPACE / "fifo")
    for name in (b"\xff\xfe", b"new\nline", b"n" * 255, b"-rf", b" "):
        os.mkdir(os.fsencode(tree.path / WORKSPACE) + b"/" + name)
    await manager.release(TENANT, tree, None)
    await manager.settled()
    assert not tree.path.exists()
    assert not list((tmp_path / "trees" / "trash").iterdir())


# -- names that callers give --


@pytest.mark.parametrize("uid", ["../evil", "a/b", "", ".", "..", "a..b", "x\n", "x" * 200])
async def test_a_uid_that_is_a_path_is_refused(tmp_path: Path, uid: str) -> None:
    manager = engine(tmp_path)
    with pytest.raises(InvalidArgumentError):
        await manager.checkout(TENANT, None, uid)


@pytest.mark.parametrize("tenant", ["../other", "a/b", "", "A"])
async def test_a_tenant_that_is_a_path_is_refused(tmp_path: Path, tenant: str) -> None:
    manager = engine(tmp_path)
    with pytest.raises(InvalidArgumentError):
        await manager.checkout(tenant, None, "uid")


async def test_a_pointer_whose_digest_is_a_path_is_refused(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    pointer = SnapshotPointer(id="snap-1", manifest="../../other/manifests/" + "0" * 64)
    with pytest.raises(InvalidArgumentError):
        await manager.checkout(TENANT, pointer, "uid")


async def test_another_tenants_snapshot_is_not_there(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / WORKSPACE / "file").write_text("mine")
    saved = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    await manager.release(TENANT, tree, saved)
    with pytest.raises(DataLossError, match="missing"):
        await manager.checkout("other", saved, "theirs")
    with pytest.raises(DataLossError, match="missing"):
        await manager.manifest("other", saved)
