"""What a checkpoint answers, and what the next attempt makes of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Collection
from pathlib import Path

from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots.port import WORKSPACE, Progress
from tests.support.trees import TENANT, engine


@contextlib.asynccontextmanager
async def still() -> AsyncIterator[Collection[int]]:
    """A pause of a tree in which nothing runs."""
    yield ()


async def test_a_checkpoint_stores_only_what_is_new_since_the_last_one(tmp_path: Path) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    for number in range(10):
        (tree.path / WORKSPACE / f"f{number}").write_bytes(os.urandom(20_000))
    head = (await manager.snapshot(TENANT, tree, "head")).pointer
    await manager.release(TENANT, tree, None)
    tree = await manager.checkout(TENANT, head, "attempt-1")
    (tree.path / WORKSPACE / "new").write_bytes(os.urandom(20_000))
    first = await manager.checkpoint(TENANT, tree, "cp-1", still)
    (tree.path / WORKSPACE / "newer").write_bytes(os.urandom(10_000))
    second = await manager.checkpoint(TENANT, tree, "cp-2", still)
    assert 20_000 < first.stored_bytes < 25_000
    assert 10_000 < second.stored_bytes < 15_000
    # The next attempt starts from the checkpoint; parent and changes are told against the head.
    tree = await manager.checkout(TENANT, second.pointer, "attempt-2", head=head)
    (tree.path / WORKSPACE / "f0").unlink()
    final = await manager.snapshot(TENANT, tree, "final")
    assert final.stored_bytes < 5000
    assert final.pointer.parent == first.pointer.parent == head.id
    assert final.pointer.uid == "attempt-2"
    assert [change.path for change in final.changes] == [b"f0", b"new", b"newer"]


async def test_watchers_hear_of_the_end(tmp_path: Path) -> None:
    manager = engine(tmp_path, MemoryObjects())
    tree = await manager.checkout(TENANT, None, "uid")
    for number in range(5):
        (tree.path / WORKSPACE / f"f{number}").write_bytes(b"12345")
    heard: list[Progress] = []
    await manager.checkpoint(TENANT, tree, "snap-1", still, watcher=heard.append)
    assert (heard[-1].files, heard[-1].bytes) == (5, 25)
