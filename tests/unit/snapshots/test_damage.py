"""Stored bytes that are missing, cut or altered are found out, and named."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from cloudclaw.coordination.records import SnapshotPointer
from cloudclaw.errors import DataLossError
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots import manifest as manifests
from cloudclaw.snapshots.manifest import Blob
from cloudclaw.snapshots.packs import ranges
from cloudclaw.snapshots.port import WORKSPACE
from tests.support.trees import TENANT, engine


def cut(data: bytes) -> bytes:
    return data[:-10]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x40]) + data[middle + 1 :]


def emptied(data: bytes) -> bytes:
    return b""


async def saved(manager_path: Path, store: MemoryObjects) -> SnapshotPointer:
    manager = engine(manager_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    for number in range(3):
        (tree.path / WORKSPACE / f"file{number}").write_bytes(os.urandom(3000))
    return (await manager.snapshot(TENANT, tree, "snap-1")).pointer


async def name_of(store: MemoryObjects, kind: str) -> str:
    (name,) = [info.name async for info in store.list(f"tenants/{TENANT}/{kind}/")]
    return name


@pytest.mark.parametrize("damage", [cut, flip, emptied])
@pytest.mark.parametrize("kind", ["packs", "manifests"])
async def test_a_damaged_object_is_named(tmp_path: Path, kind: str, damage: Callable[[bytes], bytes]) -> None:
    store = MemoryObjects()
    pointer = await saved(tmp_path, store)
    name = await name_of(store, kind)
    await store.put(name, damage(await store.get(name)))
    manager = engine(tmp_path / "other", store)
    with pytest.raises(DataLossError, match=name):
        await manager.checkout(TENANT, pointer, "uid")
    assert not list((tmp_path / "other" / "trees" / "live").iterdir())
    with pytest.raises(DataLossError, match=name):
        for number in range(3):
            async for _ in manager.read(TENANT, pointer, f"workspace/file{number}".encode()):
                pass


@pytest.mark.parametrize("kind", ["packs", "manifests"])
async def test_a_missing_object_is_named(tmp_path: Path, kind: str) -> None:
    store = MemoryObjects()
    pointer = await saved(tmp_path, store)
    name = await name_of(store, kind)
    await store.delete(name)
    manager = engine(tmp_path / "other", store)
    with pytest.raises(DataLossError, match=name):
        await manager.checkout(TENANT, pointer, "uid")
    with pytest.raises(DataLossError, match=name):
        async for _ in manager.read(TENANT, pointer, b"workspace/file1"):
            pass


async def test_a_manifest_in_place_of_another_is_found_out(tmp_path: Path) -> None:
    store = MemoryObjects()
    pointer = await saved(tmp_path, store)
    tree = await engine(tmp_path / "b", store).checkout(TENANT, None, "uid2")
    other = (await engine(tmp_path / "b", store).snapshot(TENANT, tree, "snap-2")).pointer
    prefix = f"tenants/{TENANT}/manifests"
    other_data = await store.get(f"{prefix}/uid2/{other.manifest}")
    await store.put(f"{prefix}/uid/{pointer.manifest}", other_data)
    with pytest.raises(DataLossError, match=pointer.manifest):
        await engine(tmp_path / "c", store).manifest(TENANT, pointer)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"not json\n",
        b'{"format":"other","version":2,"entries":0,"files":0,"bytes":0,"packs":[]}\n',
        b'{"format":"cloudclaw.manifest","version":99,"entries":0,"files":0,"bytes":0,"packs":[]}\n',
        b'{"format":"cloudclaw.manifest","version":2,"entries":5,"files":0,"bytes":0,"packs":[]}\n',
        b'{"format":"cloudclaw.manifest","version":2,"entries":1,"files":1,"bytes":9,"packs":[]}\n'
        b'{"path":"workspace/a","type":"file","size":9,"sha256":"' + b"0" * 64 + b'","blobs":[[7,0,1,9,"x"]]}\n',
    ],
)
def test_a_manifest_that_says_nonsense_is_refused(text: bytes) -> None:
    data = zstandard.ZstdCompressor().compress(text)
    with pytest.raises(DataLossError, match="the-manifest"):
        manifests.decode(data, hashlib.sha256(data).hexdigest(), "the-manifest")


def test_reads_of_near_blobs_are_joined_and_far_ones_are_not() -> None:
    def blob(pack: str, offset: int, stored: int) -> Blob:
        return Blob(pack, offset, stored, stored, f"{pack}{offset}")

    blobs = [blob("a", 200, 50), blob("a", 0, 100), blob("b", 0, 10), blob("a", 10 << 20, 10)]
    found = [(part.pack, part.offset, part.length, len(part.blobs)) for part in ranges(blobs)]
    assert found == [("a", 0, 250, 2), ("a", 10 << 20, 10, 1), ("b", 0, 10, 1)]
