"""One suite for the `WorkspaceManager` port, over every object store that it may stand on."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Collection, Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster

from cloudclaw.clock import SystemClock
from cloudclaw.coordination.records import SnapshotPointer
from cloudclaw.errors import (
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    PreconditionError,
    QuotaExceededError,
)
from cloudclaw.objects.filesystem import FilesystemObjects
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.objects.port import ObjectStore
from cloudclaw.objects.s3 import S3Objects
from cloudclaw.objects.s3_client import S3Endpoint
from cloudclaw.snapshots.engine import SnapshotEngine
from cloudclaw.snapshots.port import HOME, WORKSPACE, FileType, Progress, Tree, TreeLimits, WorkspaceManager
from tests.support.minio_server import MinioServer
from tests.support.trees import TENANT, facts

LIMITS = TreeLimits(file_bytes=20 << 20, total_bytes=40 << 20, files=2000)


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    server = MinioServer(tmp_path_factory.mktemp("minio"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["memory", "filesystem", pytest.param("s3", marks=pytest.mark.minio)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    made: ObjectStore
    if request.param == "memory":
        made = MemoryObjects()
    elif request.param == "filesystem":
        made = FilesystemObjects(tmp_path / "objects")
    else:
        server: MinioServer = request.getfixturevalue("minio")
        bucket = "b" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]
        made = S3Objects(
            S3Endpoint(bucket, server.endpoint, access_key=server.access_key, secret_key=server.secret_key, tls=False)
        )
    yield made
    await made.close()


@pytest.fixture
async def manager(store: ObjectStore, tmp_path: Path) -> AsyncIterator[WorkspaceManager]:
    engine = SnapshotEngine(store, tmp_path / "trees", SystemClock(), limits=LIMITS)
    # A call that blocks the event loop from within the library fails the test.
    guard = BlockBuster(scanned_modules=["cloudclaw"])
    guard.activate()
    try:
        yield engine
    finally:
        guard.deactivate()
        engine.close()


@pytest.fixture
def other_host(store: ObjectStore, tmp_path: Path) -> WorkspaceManager:
    """Another manager over the same store, which holds no trees."""
    return SnapshotEngine(store, tmp_path / "other", SystemClock(), limits=LIMITS)


def fill(tree: Tree) -> None:
    """A small tree with one of everything."""
    root = tree.path / WORKSPACE
    (root / "src").mkdir()
    (root / "src" / "main.py").write_bytes(b"print('hello')\n")
    (root / "src" / "main.py").chmod(0o755)
    (root / "empty").mkdir(mode=0o700)
    (root / "latest").symlink_to("src/main.py")
    with open(os.fsencode(root) + b"/caf\xe9\n", "wb") as file:
        file.write(b"odd name")
    (root / "large").write_bytes(os.urandom(9 << 20))
    (tree.path / HOME / ".session").write_bytes(b"the agent's own")


async def saved(
    manager: WorkspaceManager, uid: str = "uid-1", snapshot: str = "snap-1"
) -> tuple[Tree, SnapshotPointer]:
    tree = await manager.checkout(TENANT, None, uid)
    fill(tree)
    return tree, (await manager.snapshot(TENANT, tree, snapshot)).pointer


async def test_an_empty_checkout_has_the_two_top_directories(manager: WorkspaceManager) -> None:
    tree = await manager.checkout(TENANT, None, "uid")
    assert sorted(path.name for path in tree.path.iterdir()) == [HOME, WORKSPACE]
    assert (tree.base, tree.uid) == (None, "uid")


async def test_a_snapshot_is_the_same_tree_on_another_host(
    manager: WorkspaceManager, other_host: WorkspaceManager
) -> None:
    tree, pointer = await saved(manager)
    there = await other_host.checkout(TENANT, pointer, "uid-2")
    assert facts(there.path) == facts(tree.path)
    assert there.base == pointer
    assert (pointer.id, pointer.parent, pointer.files) == ("snap-1", "", 4)
    assert pointer.bytes == 15 + 8 + (9 << 20) + 15


async def test_checkouts_are_private(manager: WorkspaceManager) -> None:
    _, pointer = await saved(manager)
    one = await manager.checkout(TENANT, pointer, "one")
    two = await manager.checkout(TENANT, pointer, "two")
    (one.path / WORKSPACE / "src" / "main.py").write_bytes(b"changed")
    assert (two.path / WORKSPACE / "src" / "main.py").read_bytes() == b"print('hello')\n"


async def test_an_existing_tree_of_the_uid_is_replaced(manager: WorkspaceManager) -> None:
    tree, pointer = await saved(manager)
    again = await manager.checkout(TENANT, None, tree.uid)
    assert list((again.path / WORKSPACE).iterdir()) == []
    with pytest.raises(NotFoundError):
        await anext(aiter(manager.read(TENANT, pointer, b"workspace/nothing")))


async def test_a_manifest_lists_everything_by_path(manager: WorkspaceManager) -> None:
    _, pointer = await saved(manager)
    entries = await manager.manifest(TENANT, pointer)
    assert [(entry.path, entry.type) for entry in entries] == [
        (b"home", FileType.DIRECTORY),
        (b"home/.session", FileType.REGULAR),
        (b"workspace", FileType.DIRECTORY),
        (b"workspace/caf\xe9\n", FileType.REGULAR),
        (b"workspace/empty", FileType.DIRECTORY),
        (b"workspace/large", FileType.REGULAR),
        (b"workspace/latest", FileType.SYMLINK),
        (b"workspace/src", FileType.DIRECTORY),
        (b"workspace/src/main.py", FileType.REGULAR),
    ]
    main = entries[-1]
    assert (main.size, main.mode, main.digest) == (15, 0o755, hashlib.sha256(b"print('hello')\n").hexdigest())
    assert entries[6].target == b"src/main.py"


async def test_changes_are_against_the_base_and_of_workspace_files_only(manager: WorkspaceManager) -> None:
    _, first = await saved(manager)
    tree = await manager.checkout(TENANT, first, "uid-2")
    (tree.path / WORKSPACE / "src" / "main.py").unlink()
    (tree.path / WORKSPACE / "new").write_bytes(b"123")
    (tree.path / WORKSPACE / "new-dir").mkdir()
    (tree.path / HOME / ".session").write_bytes(b"longer than before")
    result = await manager.snapshot(TENANT, tree, "snap-2")
    assert [(c.path, c.old_size, c.new_size) for c in result.changes] == [(b"new", None, 3), (b"src/main.py", 15, None)]
    assert result.pointer.parent == "snap-1"
    assert result.stored_bytes < 4096
    assert list(await manager.diff(TENANT, first, result.pointer)) == list(result.changes)
    assert [c.path for c in await manager.diff(TENANT, None, first)] == [
        b"caf\xe9\n",
        b"large",
        b"latest",
        b"src/main.py",
    ]


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 0), (5, 0), (0, 7), ((4 << 20) - 3, 10), (9 << 20, 0), (1, 8 << 20)]
)
async def test_any_part_of_a_file_is_read(manager: WorkspaceManager, offset: int, length: int) -> None:
    tree, pointer = await saved(manager)
    whole = (tree.path / WORKSPACE / "large").read_bytes()
    pieces = [p async for p in manager.read(TENANT, pointer, b"workspace/large", offset=offset, length=length)]
    assert b"".join(pieces) == (whole[offset:] if length == 0 else whole[offset : offset + length])
    assert all(len(piece) <= 256 << 10 for piece in pieces)


async def test_reads_that_cannot_be_raise_what_the_port_says(manager: WorkspaceManager) -> None:
    _, pointer = await saved(manager)

    async def read(path: bytes, offset: int = 0) -> None:
        async for _ in manager.read(TENANT, pointer, path, offset=offset):
            pass

    with pytest.raises(NotFoundError):
        await read(b"workspace/missing")
    for path in (b"workspace/src", b"workspace/latest"):
        with pytest.raises(PreconditionError):
            await read(path)
    with pytest.raises(OutOfRangeError):
        await read(b"workspace/large", (9 << 20) + 1)


async def test_limits_and_refusals_name_the_path(manager: WorkspaceManager) -> None:
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / WORKSPACE / "huge").write_bytes(b"")
    os.truncate(tree.path / WORKSPACE / "huge", 21 << 20)
    with pytest.raises(QuotaExceededError, match="workspace/huge"):
        await manager.snapshot(TENANT, tree, "snap-1")
    (tree.path / WORKSPACE / "huge").unlink()
    os.mkfifo(tree.path / HOME / "pipe")
    with pytest.raises(InvalidArgumentError, match="home/pipe"):
        await manager.snapshot(TENANT, tree, "snap-1")
    (tree.path / HOME / "pipe").unlink()
    await manager.snapshot(TENANT, tree, "snap-1")


async def test_a_released_tree_serves_the_next_checkout_of_its_snapshot(manager: WorkspaceManager) -> None:
    tree, pointer = await saved(manager)
    before = facts(tree.path)
    await manager.release(TENANT, tree, pointer)
    assert not tree.path.exists()
    assert list(manager.cached()) == [(TENANT, "snap-1")]
    again = await manager.checkout(TENANT, pointer, "uid-2")
    assert facts(again.path) == before
    await manager.release(TENANT, again, None)
    assert list(manager.cached()) == []
    assert not again.path.exists()


async def test_a_running_tree_is_found_again_after_a_restart(manager: WorkspaceManager) -> None:
    tree, pointer = await saved(manager)
    assert await manager.reopen(TENANT, pointer, "unknown") is None
    again = await manager.reopen(TENANT, pointer, tree.uid)
    assert again == Tree(tree.path, pointer, tree.uid, pointer)
    other = await manager.checkout(TENANT, None, "stray")
    await manager.sweep({tree.uid})
    assert tree.path.is_dir()
    assert not other.path.exists()


async def test_a_missing_object_is_data_loss_that_names_it(
    manager: WorkspaceManager, other_host: WorkspaceManager, store: ObjectStore
) -> None:
    _, pointer = await saved(manager)
    packs = [info.name async for info in store.list(f"tenants/{TENANT}/packs/uid-1/")]
    await store.delete(packs[0])
    with pytest.raises(DataLossError, match=packs[0]):
        await other_host.checkout(TENANT, pointer, "uid-2")


async def test_objects_are_named_by_tenant_and_uid(manager: WorkspaceManager, store: ObjectStore) -> None:
    _, pointer = await saved(manager)
    names = [info.name async for info in store.list("")]
    assert pointer.uid == "uid-1"
    assert f"tenants/{TENANT}/manifests/uid-1/{pointer.manifest}" in names
    assert all(n.startswith((f"tenants/{TENANT}/manifests/uid-1/", f"tenants/{TENANT}/packs/uid-1/")) for n in names)


@contextlib.asynccontextmanager
async def still() -> AsyncIterator[Collection[int]]:
    """A pause of a tree in which nothing runs."""
    yield ()


async def test_a_checkpoint_is_a_snapshot_of_the_tree_within_its_pause(
    manager: WorkspaceManager, other_host: WorkspaceManager
) -> None:
    tree, first = await saved(manager)
    (tree.path / WORKSPACE / "src" / "main.py").write_bytes(b"checkpoint")
    result = await manager.checkpoint(TENANT, tree, "cp-1", still)
    assert result.frozen > 0
    assert (result.pointer.id, result.pointer.uid) == ("cp-1", tree.uid)
    assert result.stored_bytes < 4096
    there = await other_host.checkout(TENANT, result.pointer, "uid-2", head=first)
    assert facts(there.path) == facts(tree.path)
    final = await other_host.snapshot(TENANT, there, "snap-2")
    assert final.pointer.parent == first.id
    assert [change.path for change in final.changes] == [b"src/main.py"]


async def test_hard_links_and_holes_are_the_same_on_another_host(
    manager: WorkspaceManager, other_host: WorkspaceManager
) -> None:
    tree = await manager.checkout(TENANT, None, "uid-1")
    fill(tree)
    os.link(tree.path / WORKSPACE / "large", tree.path / HOME / "linked")
    with (tree.path / WORKSPACE / "sparse").open("wb") as file:
        file.truncate(10 << 20)
        file.write(b"x")
    pointer = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    there = await other_host.checkout(TENANT, pointer, "uid-2")
    assert facts(there.path) == facts(tree.path)
    assert (there.path / WORKSPACE / "large").samefile(there.path / HOME / "linked")
    assert (there.path / WORKSPACE / "sparse").stat().st_blocks * 512 < 1 << 20


async def test_artifacts_are_objects_of_their_own(manager: WorkspaceManager, store: ObjectStore) -> None:
    tree, _ = await saved(manager)
    kept = await manager.collect(TENANT, tree, ["**/*.py", "large"], "artifacts/acme/task/uid/")
    assert [file.path for file in kept.files] == [b"large", b"src/main.py"]
    assert not kept.truncated
    for file in kept.files:
        data = await store.get(f"artifacts/acme/task/uid/{file.digest}")
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.digest)


async def test_trees_of_a_forgotten_tenant_do_not_lie_ready(manager: WorkspaceManager) -> None:
    tree, pointer = await saved(manager)
    await manager.release(TENANT, tree, pointer)
    await manager.forget("other")
    assert list(manager.cached()) == [(TENANT, "snap-1")]
    await manager.forget(TENANT)
    assert list(manager.cached()) == []
    assert (await manager.checkout(TENANT, pointer, "uid-2")).path.is_dir()


async def test_watchers_hear_of_the_end(manager: WorkspaceManager) -> None:
    tree = await manager.checkout(TENANT, None, "uid")
    fill(tree)
    heard: list[Progress] = []
    await manager.snapshot(TENANT, tree, "snap-1", watcher=heard.append)
    assert (heard[-1].files, heard[-1].bytes) == (4, 15 + 8 + (9 << 20) + 15)
