"""A store that neither takes nor refuses: whoever gives a snapshot up does not wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots import packs
from cloudclaw.snapshots.port import WORKSPACE
from tests.support.trees import TENANT, engine


class Hanging(MemoryObjects):
    """Puts hang while `hangs`; `entered` is set by each."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs = False
        self.entered = asyncio.Event()

    async def put(self, name: str, data: bytes, *, if_absent: bool = False) -> bool:
        if self.hangs:
            self.entered.set()
            await asyncio.get_running_loop().create_future()
        return await super().put(name, data, if_absent=if_absent)


@contextlib.asynccontextmanager
async def pause() -> AsyncIterator[Sequence[int]]:
    yield ()


@pytest.mark.parametrize("how", ["snapshot", "checkpoint"])
@pytest.mark.parametrize("pack", [4000, packs.PACK], ids=["many packs", "one pack"])
async def test_a_snapshot_is_given_up_at_once_and_the_next_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, pack: int
) -> None:
    monkeypatch.setattr(packs, "PACK", pack)
    store = Hanging()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    for number in range(6):
        (tree.path / WORKSPACE / f"file-{number}").write_bytes(os.urandom(3000))
    store.hangs = True
    work = manager.snapshot(TENANT, tree, "s1") if how == "snapshot" else manager.checkpoint(TENANT, tree, "s1", pause)
    saving = asyncio.ensure_future(work)
    await asyncio.wait_for(store.entered.wait(), 10)
    saving.cancel()
    done, _ = await asyncio.wait((saving,), timeout=10)
    assert done, "it waits for the store"
    assert saving.cancelled()
    assert [info.name async for info in store.list("")] == []
    store.hangs = False
    stored = await manager.snapshot(TENANT, tree, "s2")
    assert stored.pointer.files == 6
    manager.close()
