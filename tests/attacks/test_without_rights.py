"""Modes that a task sets to keep a manager out, which runs as a user that modes stop."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from cloudclaw.snapshots import sentries
from cloudclaw.snapshots.port import WORKSPACE
from cloudclaw.snapshots.threads import TreeThreads
from tests.support.trees import OUTSIDER, TENANT, engine, give_away, without_rights

T = TypeVar("T")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that such a user reaches: pytest's own are closed."""
    with tempfile.TemporaryDirectory(prefix="claw-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture(autouse=True)
def _manager_without_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    real = TreeThreads.run

    async def run(
        self: TreeThreads, work: Callable[[threading.Event], T], *, on_cancel: Callable[[], None] | None = None
    ) -> T:
        return await real(self, lambda stop: without_rights(lambda: work(stop)), on_cancel=on_cancel)

    monkeypatch.setattr(TreeThreads, "run", run)
    # Processes of their own would have root's rights again.
    monkeypatch.setattr(sentries, "FEW", 10**9)


MODES = [0o000, 0o100, 0o200, 0o300, 0o400, 0o500, 0o600]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("when", ["before", "between"])
@pytest.mark.parametrize("kind", ["file", "folder", "top"])
async def test_a_mode_that_keeps_the_owner_out_keeps_nothing_out_of_a_checkpoint(
    folder: Path, mode: int, when: str, kind: str
) -> None:
    """A folder that may be listed and not entered failed every checkpoint, without a name."""
    manager = engine(folder)
    give_away(folder)
    tree = await manager.checkout(TENANT, None, "uid")
    deep = tree.path / WORKSPACE / "closed" / "deep"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"mine")
    give_away(folder)
    target = {"file": deep / "file", "folder": deep.parent, "top": tree.path / WORKSPACE}[kind]
    if when == "before":
        target.chmod(mode)

    @asynccontextmanager
    async def pause() -> AsyncIterator[tuple[int, ...]]:
        target.chmod(mode)
        yield ()

    saved = (await manager.checkpoint(TENANT, tree, "ckpt-1", pause)).pointer
    entries = {entry.path: entry for entry in await manager.manifest(TENANT, saved)}
    assert b"workspace/closed/deep/file" in entries
    assert target.stat().st_mode & 0o777 == mode, "it has its mode again"
    name = {"file": b"workspace/closed/deep/file", "folder": b"workspace/closed", "top": b"workspace"}[kind]
    assert entries[name].mode == mode
    await manager.release(TENANT, tree, None)
    await manager.settled()


@pytest.mark.parametrize("mode", MODES)
async def test_what_cannot_be_read_keeps_nothing_out_of_the_artifacts(folder: Path, mode: int) -> None:
    manager = engine(folder)
    give_away(folder)
    tree = await manager.checkout(TENANT, None, "uid")
    deep = tree.path / WORKSPACE / "closed"
    deep.mkdir()
    (deep / "file").write_bytes(b"mine")
    (tree.path / WORKSPACE / "twin").hardlink_to(deep / "file")
    give_away(folder)
    (deep / "file").chmod(mode)
    deep.chmod(mode)
    kept = await manager.collect(TENANT, tree, ["twin"], "artifacts/acme/task-1/uid/")
    assert [file.path for file in kept.files] == [b"twin"]
    assert (deep.stat().st_mode & 0o777, deep.stat().st_uid) == (mode, OUTSIDER if os.geteuid() == 0 else os.geteuid())
