"""A store, or a node with its keys, that lies: what comes back is believed only when a snapshot could have said it."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from msgspec.structs import replace

from cloudclaw.coordination.records import SnapshotPointer
from cloudclaw.errors import CloudClawError, DataLossError, InvalidArgumentError
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots import manifest as manifests
from cloudclaw.snapshots.port import WORKSPACE
from cloudclaw.v1 import task_pb2
from cloudclaw_workspace.adapters.results import ProtoArtifactLists
from tests.attacks.hostile import Canary, plain
from tests.support.trees import TENANT, engine

EMPTY = hashlib.sha256().hexdigest()
TOPS = [{"path": "home", "type": "dir", "mode": 0o755}, {"path": "workspace", "type": "dir", "mode": 0o755}]


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    return Canary(tmp_path / "outside")


async def stored(store: MemoryObjects, content: bytes, name: str = "tenants/acme/packs/evil/up-0") -> list[Any]:
    """A blob as a manifest's line has it, in pack 0."""
    frame = zstandard.ZstdCompressor(level=1).compress(content)
    await store.put(name, frame)
    return [0, 0, len(frame), len(content), hashlib.sha256(content).hexdigest()]


async def planted(store: MemoryObjects, *lines: dict[str, Any], **header: Any) -> SnapshotPointer:
    """A manifest of these lines below the tops, under its true digest."""
    whole = sorted([*TOPS, *lines], key=lambda line: str(line["path"]))
    head = {
        "format": manifests.FORMAT,
        "version": manifests.VERSION,
        "entries": len(whole),
        "files": sum(line["type"] == "file" for line in whole),
        "bytes": sum(line.get("size", 0) for line in whole),
        "packs": ["tenants/acme/packs/evil/up-0"],
        **header,
    }
    data = zstandard.ZstdCompressor().compress(b"".join(msgspec.json.encode(line) + b"\n" for line in [head, *whole]))
    digest = hashlib.sha256(data).hexdigest()
    await store.put(f"tenants/acme/manifests/evil/{digest}", data)
    return SnapshotPointer(id="snap-evil", manifest=digest, uid="evil")


async def refused(tmp_path: Path, store: MemoryObjects, pointer: SnapshotPointer) -> str:
    """Every door that reads a manifest refuses it, and leaves nothing; the message."""
    manager = engine(tmp_path, store)
    with pytest.raises(DataLossError) as error:
        await manager.checkout(TENANT, pointer, "uid")
    with pytest.raises(DataLossError):
        await manager.manifest(TENANT, pointer)
    with pytest.raises(DataLossError):
        _ = [piece async for piece in manager.read(TENANT, pointer, b"workspace/a")]
    await manager.settled()
    trees = tmp_path / "trees"
    assert not [path for part in ("live", "trash") for path in (trees / part).iterdir()]
    assert plain(error.value.message)
    assert len(error.value.message) < 1000
    return error.value.message


def file(**fields: Any) -> dict[str, Any]:
    return {"path": "workspace/a", "type": "file", "mode": 0o644, "sha256": EMPTY, **fields}


def symlink(target: str) -> dict[str, Any]:
    return {"path": "workspace/a", "type": "link", "target": target}


@pytest.mark.parametrize(
    "line",
    [
        file(mtime_ns=1 << 63),
        file(mtime_ns=-(1 << 63)),
        file(size=5, blobs=[[0, 0, 20, -5, EMPTY], [0, 0, 20, 10, EMPTY]]),
        file(size=5, blobs=[[0, -1, 20, 5, EMPTY]]),
        file(size=5, blobs=[[0, 0, 20, 5, "../../../canary"]]),
        file(size=5, blobs=[[-1, 0, 20, 5, EMPTY]]),
        file(size=5, blobs=[[7, 0, 20, 5, EMPTY]]),
        file(sha256="x\n[error] forged"),
        symlink(""),
        symlink("a%00b"),
        symlink("t" * 4096),
        {"path": "workspace/a", "type": "dir", "size": 5, "blobs": [[0, 0, 20, 5, EMPTY]]},
        {"path": "workspace/a%00b", "type": "file", "sha256": EMPTY},
        {"path": "workspace/" + "n" * 256, "type": "file", "sha256": EMPTY},
        {"path": "workspace/" + "n/" * 3000 + "n", "type": "file", "sha256": EMPTY},
        {"path": "workspace%2F..%2F..%2Foutside%2Fcanary", "type": "file", "sha256": EMPTY},
        {"path": "outside/\n[error] forged", "type": "file", "sha256": EMPTY},
    ],
)
async def test_a_line_that_no_snapshot_writes_is_refused(tmp_path: Path, canary: Canary, line: dict[str, Any]) -> None:
    store = MemoryObjects()
    await refused(tmp_path, store, await planted(store, line))
    await canary.check(store)


@pytest.mark.parametrize(
    "pack",
    [
        "tenants/other/packs/uid/up-0",
        "tenants/acme-2/packs/uid/up-0",
        "tenants/acme/packs/../../other/packs/uid/up-0",
        "logs/acme/uid/0",
        "tenants/acme/packs/a\n[error] forged",
        "/etc/passwd",
        "",
    ],
)
async def test_a_manifest_that_names_packs_of_others_is_refused(tmp_path: Path, pack: str) -> None:
    """One tenant's manifest brought another's content, to whoever could name its pack and digest."""
    store = MemoryObjects()
    secret = b"of another tenant"
    blob = await stored(store, secret, "tenants/other/packs/uid/up-0")
    line = file(size=len(secret), sha256=blob[4], blobs=[blob])
    assert "no pack of its tenant" in await refused(tmp_path, store, await planted(store, line, packs=[pack]))


async def test_a_header_cannot_forge_lines_of_a_log(tmp_path: Path) -> None:
    store = MemoryObjects()
    await refused(tmp_path, store, await planted(store, format="x\n2026 [error] forged \x1b[2J" + "x" * 100_000))


@pytest.mark.parametrize(("said", "sent"), [(1_000_002, 3), (3, 1_000_100), (1_000_102, 1_000_100)])
async def test_a_manifest_of_millions_of_entries_is_refused_before_they_are_decoded(said: int, sent: int) -> None:
    header = {"format": manifests.FORMAT, "version": manifests.VERSION, "entries": said}
    head = msgspec.json.encode({**header, "files": 0, "bytes": 0, "packs": []}) + b"\n"
    line = b'{"path":"workspace/a","type":"dir"}\n'
    data = zstandard.ZstdCompressor().compress(head + line * sent)
    tracemalloc.start()
    try:
        with pytest.raises(DataLossError, match="entries"):
            manifests.decode(data, hashlib.sha256(data).hexdigest(), "tenants/acme/manifests/evil/x")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 3 * len(line) * sent + (1 << 20)


@pytest.mark.parametrize("claim", [None, 0, 100, 1 << 50])
async def test_a_manifest_of_another_size_than_its_frame_claims_is_refused(tmp_path: Path, claim: int | None) -> None:
    store = MemoryObjects()
    text = b'{"format":"cloudclaw.manifest"' + b" " * 200_000 + b"}\n"
    if claim is None:
        data = zstandard.ZstdCompressor(write_content_size=False).compress(text)
    else:
        whole = bytearray(zstandard.ZstdCompressor().compress(text))
        at = whole.index(len(text).to_bytes(4, "little"))
        whole[at : at + 4] = (claim & 0xFFFFFFFF).to_bytes(4, "little")
        data = bytes(whole)
    digest = hashlib.sha256(data).hexdigest()
    await store.put(f"tenants/acme/manifests/evil/{digest}", data)
    await refused(tmp_path, store, SnapshotPointer(id="snap-evil", manifest=digest, uid="evil"))


@pytest.mark.parametrize("door", ["checkout", "read"])
async def test_a_blob_that_unpacks_to_more_than_it_claims_is_refused(tmp_path: Path, door: str) -> None:
    """A frame whose header says 5 bytes, with a hundred megabytes in it."""
    store = MemoryObjects()
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100 << 20))
    await store.put("tenants/acme/packs/evil/up-0", bomb)
    digest = hashlib.sha256(b"hello").hexdigest()
    line = file(size=5, sha256=digest, blobs=[[0, 0, len(bomb), 5, digest]])
    manager = engine(tmp_path, store)
    pointer = await planted(store, line)
    tracemalloc.start()
    try:
        with pytest.raises(DataLossError, match=digest):
            if door == "checkout":
                await manager.checkout(TENANT, pointer, "uid")
            else:
                _ = [piece async for piece in manager.read(TENANT, pointer, b"workspace/a")]
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 8 << 20


async def test_setuid_bits_of_a_manifest_are_dropped(tmp_path: Path) -> None:
    store = MemoryObjects()
    pointer = await planted(
        store,
        file(mode=0o106755),
        {"path": "workspace/d", "type": "dir", "mode": 0o43777},
    )
    tree = await engine(tmp_path, store).checkout(TENANT, pointer, "uid")
    for path in (tree.path / WORKSPACE).iterdir():
        assert path.stat().st_mode & 0o7000 == 0


async def test_what_a_planted_tree_holds_is_judged_again_when_it_is_saved(tmp_path: Path, canary: Canary) -> None:
    """A manifest may hold what the limits of this host forbid: saving its tree refuses that."""
    store = MemoryObjects()
    deep = [{"path": "workspace/" + "d/" * n + "d", "type": "dir", "mode": 0o755} for n in range(300)]
    pointer = await planted(store, *deep, symlink(os.fsdecode(canary.file)))
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, pointer, "uid")
    with pytest.raises(CloudClawError, match="deeper than 128"):
        await manager.snapshot(TENANT, tree, "snap-1")
    await manager.release(TENANT, tree, None)
    await manager.settled()
    await canary.check(store)


@pytest.mark.parametrize(
    "digest", ["../../../../results/other/task/uid", "a/b", "", "x" * 5000, EMPTY.upper(), EMPTY + "\n"]
)
def test_a_result_that_names_an_artifact_by_a_path_is_refused(digest: str) -> None:
    result = task_pb2.Result(task_id="task-1")
    result.artifacts.add(path="a\n[error] forged", size=1, digest=digest)
    with pytest.raises(DataLossError) as error:
        ProtoArtifactLists().find(result.SerializeToString(), "a\n[error] forged")
    assert plain(error.value.message)


@pytest.mark.parametrize("name", ["../other", "a/b", "", ".", "a..b", "A", "a\n", "a@b", "x" * 64])
async def test_what_users_name_never_becomes_a_step_of_an_object(tmp_path: Path, name: str) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    pointer = SnapshotPointer(id="snap-1", manifest=EMPTY, uid="uid")
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: manager.checkout(name, None, "uid"),
        lambda: manager.snapshot(name, tree, "snap-1"),
        lambda: manager.collect(name, tree, ["*"], "artifacts/acme/task-1/uid/"),
        lambda: manager.manifest(name, pointer),
        lambda: manager.forget(name),
    ]
    if name not in ("A", "x" * 64):  # ids are freer than names
        calls += [
            lambda: manager.checkout(TENANT, None, name),
            lambda: manager.snapshot(TENANT, tree, name),
            lambda: manager.manifest(TENANT, replace(pointer, uid=name)),
        ]
    calls += [lambda: manager.manifest(TENANT, replace(pointer, manifest=name))]
    for call in calls:
        with pytest.raises(InvalidArgumentError) as error:
            await call()
        assert plain(error.value.message)
    assert [info.name async for info in store.list("")] == []
    assert [path.name for path in (tmp_path / "trees" / "live").iterdir()] == ["uid"]
