"""What did not change is not stored anew; a slow store keeps nobody's processes from going on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots.port import WORKSPACE
from tests.support.processes import eventually
from tests.support.trees import TENANT, engine


@contextlib.asynccontextmanager
async def pause() -> AsyncIterator[Sequence[int]]:
    yield ()


class Counting(MemoryObjects):
    """Counts what is stored; holds it back while `gate` is clear."""

    def __init__(self) -> None:
        super().__init__()
        self.puts: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def put(self, name: str, data: bytes, *, if_absent: bool = False) -> bool:
        self.puts.append(name)
        await self.gate.wait()
        return await super().put(name, data, if_absent=if_absent)


async def test_a_checkpoint_of_an_unchanged_tree_is_the_one_before(tmp_path: Path) -> None:
    store = Counting()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / WORKSPACE / "a").write_bytes(b"1")
    first = (await manager.checkpoint(TENANT, tree, "ckpt-1", pause)).pointer
    stored = len(store.puts)
    again = await manager.checkpoint(TENANT, tree, "ckpt-2", pause)
    assert (again.pointer, len(store.puts)) == (first, stored)
    final = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    assert (final.id, final.manifest) == ("snap-1", first.manifest), "a commit has a name of its own"


async def test_a_success_that_changed_nothing_is_the_head(tmp_path: Path) -> None:
    store = Counting()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / WORKSPACE / "a").write_bytes(b"1")
    head = (await manager.snapshot(TENANT, tree, "snap-1")).pointer
    await manager.release(TENANT, tree, head)
    stored = len(store.puts)
    for uid in ("warm", "cold"):
        tree = await manager.checkout(TENANT, head, uid)
        result = await manager.snapshot(TENANT, tree, f"snap-{uid}")
        assert (result.pointer, list(result.changes), len(store.puts)) == (head, [], stored)
        await manager.release(TENANT, tree, None)


async def test_a_store_that_hangs_keeps_nobody_frozen(tmp_path: Path) -> None:
    store = Counting()
    manager = engine(tmp_path, store)
    trees = [await manager.checkout(TENANT, None, f"uid-{number}") for number in range(6)]
    for tree in trees:
        (tree.path / WORKSPACE / "a").write_bytes(tree.uid.encode())
    store.gate.clear()
    saving = [asyncio.create_task(manager.snapshot(TENANT, tree, f"snap-{tree.uid}")) for tree in trees[:5]]
    await eventually("four wait for the store", lambda: len(store.puts) >= 4)
    went_on = asyncio.Event()

    @contextlib.asynccontextmanager
    async def shortly() -> AsyncIterator[Sequence[int]]:
        yield ()
        went_on.set()

    last = asyncio.create_task(manager.checkpoint(TENANT, trees[5], "ckpt", shortly))
    await asyncio.wait_for(went_on.wait(), 10)
    await asyncio.wait_for(manager.checkout(TENANT, None, "another"), 10)
    store.gate.set()
    await asyncio.gather(last, *saving)
