"""A snapshot that is cut short at any step leaves the store consistent, and the next one succeeds."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from cloudclaw.errors import QuotaExceededError, UnavailableError
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots import packs
from cloudclaw.snapshots.port import WORKSPACE, Tree
from tests.support.trees import TENANT, engine, facts


class Failing(MemoryObjects):
    """Fails at the n-th call of `put`: before or after it took effect."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.fail_at = 0
        self.error: BaseException = UnavailableError("the store is away", reason="STORE_AWAY")
        self.late = False

    async def put(self, name: str, data: bytes, *, if_absent: bool = False) -> bool:
        self.calls += 1
        if self.calls == self.fail_at:
            if self.late:
                await super().put(name, data, if_absent=if_absent)
            raise self.error
        return await super().put(name, data, if_absent=if_absent)


@contextlib.asynccontextmanager
async def pause() -> AsyncIterator[Sequence[int]]:
    yield ()


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that there are several uploads."""
    monkeypatch.setattr(packs, "PACK", 4000)


def grow(tree: Tree, names: str) -> None:
    for name in names:
        (tree.path / WORKSPACE / name).write_bytes(os.urandom(3000))


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("how", ["snapshot", "checkpoint"])
@pytest.mark.parametrize(
    "error",
    [
        UnavailableError("the store is away", reason="STORE_AWAY"),
        QuotaExceededError("full", subject="store", reason="OBJECT_STORE_FULL"),
        asyncio.CancelledError(),
    ],
    ids=["away", "full", "cancelled"],
)
async def test_every_put_may_fail(tmp_path: Path, how: str, late: bool, error: BaseException) -> None:
    store = Failing()
    store.late, store.error = late, error
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    grow(tree, "abc")
    good = (await manager.snapshot(TENANT, tree, "good")).pointer
    before = facts(tree.path)
    n = 0
    while True:
        n += 1
        grow(tree, "bcdefg")
        store.calls, store.fail_at = 0, n
        try:
            if how == "snapshot":
                await manager.snapshot(TENANT, tree, f"snap-{n}")
            else:
                await manager.checkpoint(TENANT, tree, f"snap-{n}", pause)
        except type(error):
            pass
        else:
            break
        store.fail_at = 0
        other = engine(tmp_path / f"other-{n}", store)
        assert facts((await other.checkout(TENANT, good, "copy")).path) == before, "what was committed stays whole"
        good = (await manager.snapshot(TENANT, tree, f"good-{n}")).pointer
        before = facts(tree.path)
        assert facts((await other.checkout(TENANT, good, "copy")).path) == before
        other.close()
    assert n > 4, "there were several uploads to fail"
    assert not list((tmp_path / "trees").glob("staging/*"))
    assert not list((tmp_path / "trees").glob("index/.new*"))
    manager.close()


async def test_staging_files_of_a_crash_are_swept(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    (tmp_path / "trees" / "staging").mkdir()
    (tmp_path / "trees" / "staging" / "uid").write_bytes(b"x")
    await manager.sweep(set())
    assert not list((tmp_path / "trees" / "staging").iterdir())
