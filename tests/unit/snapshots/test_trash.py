"""Trees are removed behind everybody's back, and nobody waits for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudclaw.snapshots import trash as module
from cloudclaw.snapshots.engine import SnapshotEngine
from cloudclaw.snapshots.port import HOME
from cloudclaw.snapshots.removal import Removed
from cloudclaw.snapshots.removal import remove as real
from cloudclaw.snapshots.threads import Stopped
from cloudclaw.snapshots.trash import Trash
from tests.support.trees import TENANT, engine


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Holds back every removal in the background until it is set."""
    event = threading.Event()

    def remove(directory: int, name: bytes, spare: int, *, stop: threading.Event | None = None) -> Removed:
        if threading.current_thread().name.startswith("trash"):
            event.wait(10)
            if stop is not None and stop.is_set():
                raise Stopped
        return real(directory, name, spare, stop=stop)

    monkeypatch.setattr("cloudclaw.snapshots.trash.remove", remove)
    yield event
    event.set()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def throw(trash: Trash, folder: Path, name: str) -> None:
    (folder / name / "below").mkdir(parents=True)
    trash.throw([name.encode()], threading.Event())


async def used(manager: SnapshotEngine, uid: str) -> None:
    """A tree in which an attempt left something, and that nobody wants."""
    tree = await manager.checkout(TENANT, None, uid)
    (tree.path / HOME / "left").write_text("x")
    await manager.release(TENANT, tree, None)


async def test_nobody_waits_for_a_removal(tmp_path: Path, gate: threading.Event) -> None:
    manager = engine(tmp_path)
    for number in range(10):
        await used(manager, f"uid-{number}")
    assert len(names(tmp_path / "trees" / "trash")) == 10
    gate.set()
    await manager.settled()
    assert names(tmp_path / "trees" / "trash") == []


async def test_a_tree_in_which_nothing_was_left_is_gone_at_once(tmp_path: Path, gate: threading.Event) -> None:
    manager = engine(tmp_path)
    await manager.release(TENANT, await manager.checkout(TENANT, None, "uid"), None)
    assert names(tmp_path / "trees" / "live") == names(tmp_path / "trees" / "trash") == []


async def test_what_is_thrown_in_too_fast_is_removed_by_who_throws(tmp_path: Path, gate: threading.Event) -> None:
    trash = Trash(tmp_path)
    for number in range(module._WAITING):
        throw(trash, tmp_path, f"tree-{number}")
    assert len(names(tmp_path)) == module._WAITING
    throw(trash, tmp_path, "one-more")
    assert "one-more" not in names(tmp_path)
    gate.set()
    await trash.settled()
    assert names(tmp_path) == []


async def test_one_that_cannot_be_removed_does_not_hold_up_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove(directory: int, name: bytes, spare: int, *, stop: threading.Event | None = None) -> Removed:
        if name == b"stubborn":
            raise PermissionError(1, "no")
        return real(directory, name, spare, stop=stop)

    monkeypatch.setattr("cloudclaw.snapshots.trash.remove", remove)
    trash = Trash(tmp_path)
    throw(trash, tmp_path, "stubborn")
    throw(trash, tmp_path, "willing")
    await trash.settled()
    assert names(tmp_path) == ["stubborn"]


async def test_closing_stops_and_leaves_the_rest_to_the_next_start(tmp_path: Path, gate: threading.Event) -> None:
    before = engine(tmp_path)
    for uid in ("a", "b"):
        await used(before, uid)
    before.close()
    gate.set()
    await before.settled()
    assert len(names(tmp_path / "trees" / "trash")) == 2
    after = engine(tmp_path)
    await after.sweep(set())
    await after.settled()
    assert names(tmp_path / "trees" / "trash") == []
