"""Hostile trees and manifests, met by restore and removal; hostile names, met by all."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import zstandard

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
    await manager.settled()
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


async def planted(store: MemoryObjects, *items: Item) -> SnapshotPointer:
    """A stored manifest of `items` below empty tops."""
    tops = [Item(FileEntry(top.encode(), FileType.DIRECTORY, mode=0o755)) for top in (HOME, WORKSPACE)]
    return await publish(store, Manifest([*tops, *items]))


def regular(store: MemoryObjects, path: bytes = b"workspace/file") -> Item:
    """A file whose content is stored."""
    return next(i for i in manifest_of(store, FileEntry(path, FileType.REGULAR)).items if i.entry.path == path)


@pytest.mark.parametrize(
    ("path", "link"),
    [
        (b"workspace/zlink", b"../../../outside/secret"),
        (b"workspace/zlink", b"/etc/passwd"),
        (b"workspace/zlink", b"workspace/missing"),
        (b"workspace/zlink", b"workspace"),
        (b"workspace/zlink", b"workspace/symlink"),
        (b"workspace/zlink", b"workspace/zlink"),
        (b"workspace/alink", b"workspace/file"),
    ],
    ids=["above", "absolute", "missing", "directory", "symlink", "itself", "later"],
)
async def test_a_hard_link_to_anything_but_a_file_before_it_is_refused(
    tmp_path: Path, outside: Path, path: bytes, link: bytes
) -> None:
    store = MemoryObjects()
    symlink = Item(FileEntry(b"workspace/symlink", FileType.SYMLINK, target=os.fsencode(outside / "secret")))
    pointer = await planted(store, regular(store), symlink, Item(FileEntry(path, FileType.REGULAR, link=link)))
    with pytest.raises(DataLossError, match="hard link"):
        await engine(tmp_path, store).checkout(TENANT, pointer, "uid")
    assert (outside / "secret").stat().st_nlink == 1
    assert not list((tmp_path / "trees" / "live").iterdir())


async def test_a_hard_link_whose_file_was_swapped_for_a_symlink_leads_nowhere(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / WORKSPACE / "file").write_text("x")
    (tree.path / WORKSPACE / "link").hardlink_to(tree.path / WORKSPACE / "file")
    saved = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    real = os.link

    def swap(source: bytes, name: bytes, **options: int) -> None:
        os.unlink(source, dir_fd=options["src_dir_fd"])
        os.symlink(os.fsencode(outside / "secret"), source, dir_fd=options["src_dir_fd"])
        real(source, name, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", swap)
    await manager.checkout(TENANT, saved, "other")
    assert (outside / "secret").stat().st_nlink == 1
    assert untouched(outside)


@pytest.mark.parametrize(
    ("size", "stored", "message"),
    [
        (+1, 0, "instead of 8"),
        (-1, 0, "instead of 6"),
        (0, +1, "bytes came back"),
        (0, -1, "damaged"),
        (+(64 << 30), 0, "larger than any can be"),
        (0, +(64 << 30), "larger than any can be"),
    ],
    ids=["longer", "shorter", "frame-longer", "frame-shorter", "bomb", "frame-bomb"],
)
async def test_a_blob_of_another_size_than_said_is_found_out_and_named(
    tmp_path: Path, size: int, stored: int, message: str
) -> None:
    store = MemoryObjects()
    item = regular(store)
    (blob,) = item.blobs
    false = msgspec.structs.replace(blob, size=blob.size + size, stored=blob.stored + stored)
    pointer = await planted(store, Item(replace(item.entry, size=false.size), (false,)))
    with pytest.raises(DataLossError, match=f"{blob.digest}.*{message}.*'workspace/file'|too short"):
        await engine(tmp_path, store).checkout(TENANT, pointer, "uid")
    assert not list((tmp_path / "trees" / "live").iterdir())


@pytest.mark.parametrize("size", [0, 6, 8, 1 << 40])
async def test_a_file_of_another_size_than_its_blobs_is_refused(tmp_path: Path, size: int) -> None:
    store = MemoryObjects()
    item = regular(store)
    pointer = await planted(store, Item(replace(item.entry, size=size), item.blobs))
    with pytest.raises(DataLossError, match="size"):
        await engine(tmp_path, store).checkout(TENANT, pointer, "uid")


@pytest.mark.parametrize("empty", [False, True])
async def test_a_file_whose_digest_is_not_its_contents_is_refused(tmp_path: Path, empty: bool) -> None:
    store = MemoryObjects()
    item = regular(store)
    entry = replace(item.entry, digest="0" * 64, size=0 if empty else item.entry.size)
    pointer = await planted(store, Item(entry, () if empty else item.blobs))
    with pytest.raises(DataLossError, match="'workspace/file' has another digest"):
        await engine(tmp_path, store).checkout(TENANT, pointer, "uid")


async def test_a_blob_of_another_pack_in_its_place_is_found_out(tmp_path: Path) -> None:
    store = MemoryObjects()
    item = regular(store)
    other = await planted_pack(store, b"PLANTED")
    pointer = await planted(store, Item(item.entry, (msgspec.structs.replace(item.blobs[0], pack=other),)))
    with pytest.raises(DataLossError, match=f"{item.entry.digest} in {other}"):
        await engine(tmp_path, store).checkout(TENANT, pointer, "uid")


async def planted_pack(store: MemoryObjects, content: bytes) -> str:
    """A pack of its own that holds `content`."""
    name = "tenants/acme/packs/other/up-0-0"
    await store.put(name, zstandard.ZstdCompressor(level=1).compress(content))
    return name


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
