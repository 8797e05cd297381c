"""Trees that fight back while a snapshot, a checkpoint or a collection of artifacts looks at them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cloudclaw.errors import CloudClawError, InvalidArgumentError
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots import artifacts, safe
from cloudclaw.snapshots.engine import SnapshotEngine
from cloudclaw.snapshots.port import HOME, WORKSPACE, FileType, Tree
from tests.attacks.hostile import SECRET, Canary, no_object_has, plain, racing
from tests.support.trees import TENANT, engine

ROUNDS = 12
PREFIX = "artifacts/acme/task-1/uid/"


@asynccontextmanager
async def no_pause() -> AsyncIterator[tuple[int, ...]]:
    yield ()


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    return Canary(tmp_path / "outside")


async def look(manager: SnapshotEngine, tree: Tree, door: str, name: str = "snap-1") -> None:
    """Let `manager` look at the whole tree."""
    match door:
        case "snapshot":
            await manager.snapshot(TENANT, tree, name)
        case "checkpoint":
            await manager.checkpoint(TENANT, tree, name, no_pause)
        case _:
            await manager.collect(TENANT, tree, ["**"], PREFIX)


DOORS = pytest.mark.parametrize("door", ["snapshot", "checkpoint", "collect"])

# -- one real process that swaps, a bounded number of rounds --

SWAPS = {
    "parent": """
        os.rename("folder", "aside")
        os.symlink(outside, "folder")
        os.unlink("folder")
        os.rename("aside", "folder")
    """,
    "file": """
        os.rename("folder/canary", "folder/aside")
        os.symlink(outside + "/canary", "folder/canary")
        os.unlink("folder/canary")
        os.rename("folder/aside", "folder/canary")
    """,
    "exchange": """
        os.symlink(outside, "link")
        os.rename("folder", "other")
        os.rename("link", "folder")
        os.rename("folder", "link")
        os.rename("other", "folder")
        os.unlink("link")
    """,
    "kinds": """
        os.mkfifo("folder/new")
        os.unlink("folder/new")
        os.mkdir("folder/new")
        os.rmdir("folder/new")
        os.symlink(outside, "folder/new")
        os.rename("folder/new", "folder/deep/new")
        os.unlink("folder/deep/new")
    """,
    "deeper": """
        os.rename("folder/deep", "up")
        os.rename("folder", "up/folder")
        os.symlink(outside, "folder")
        os.unlink("folder")
        os.rename("up/folder", "folder")
        os.rename("up", "folder/deep")
    """,
}


@DOORS
@pytest.mark.parametrize("swap", SWAPS)
async def test_a_process_that_swaps_names_gains_nothing(tmp_path: Path, canary: Canary, door: str, swap: str) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    deep = tree.path / WORKSPACE / "folder" / "deep"
    deep.mkdir(parents=True)
    for folder in (deep, deep.parent, tree.path / WORKSPACE):
        for number in range(60):
            (folder / f"f{number}").write_bytes(b"x" * number)
    (deep.parent / "canary").write_bytes(b"harmless")
    refusals: list[str] = []
    with racing(tree.path / WORKSPACE, canary.folder, SWAPS[swap]) as racer:
        for number in range(ROUNDS):
            try:
                if door == "checkpoint":
                    await manager.checkpoint(TENANT, tree, f"ckpt-{number}", racer.pause)
                else:
                    await look(manager, tree, door, f"snap-{number}")
            except (CloudClawError, FileNotFoundError) as error:
                refusals.append(str(error))
    if door == "checkpoint":
        assert all("FIFO" in refusal for refusal in refusals), "what only moves is no error for a checkpoint"
    await manager.release(TENANT, tree, None)
    await manager.settled()
    await canary.check(store)


async def test_a_process_that_swaps_names_while_its_tree_is_removed_gains_nothing(
    tmp_path: Path, canary: Canary
) -> None:
    manager = engine(tmp_path)
    for number in range(ROUNDS):
        tree = await manager.checkout(TENANT, None, f"uid{number}")
        folder = tree.path / WORKSPACE / "folder"
        (folder / "deep").mkdir(parents=True)
        for name in range(100):
            (folder / "deep" / f"f{name}").touch()
        with racing(tree.path / WORKSPACE, canary.folder, SWAPS["exchange"]):
            await manager.release(TENANT, tree, None)
            await manager.settled()
    manager.close()
    again = engine(tmp_path)
    await again.sweep(set())
    await again.settled()
    assert not list((tmp_path / "trees" / "trash").iterdir())
    await canary.check()


async def test_a_process_that_links_the_canary_in_while_a_checkpoint_looks_stores_nothing_of_it(
    tmp_path: Path, canary: Canary
) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    for number in range(200):
        (tree.path / WORKSPACE / f"f{number:03}").write_bytes(b"x")
    body = """
        os.link(outside + "/canary", "a")
        os.unlink("a")
        os.link(outside + "/canary", "z")
        os.rename("z", "f000")
        os.unlink("f000")
    """
    with racing(tree.path / WORKSPACE, canary.folder, body) as racer:
        for number in range(ROUNDS):
            try:
                await manager.checkpoint(TENANT, tree, f"ckpt-{number}", racer.pause)
            except InvalidArgumentError as error:
                assert "outside of the tree" in error.message  # noqa: PT017 - both ends are right
    await no_object_has(store, SECRET)


# -- the moment between the look and the use, by hand --


@DOORS
async def test_a_folder_swapped_at_the_moment_it_is_entered_leads_nowhere(
    tmp_path: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    inside = tree.path / WORKSPACE / "folder"
    inside.mkdir()
    (inside / "canary").write_bytes(b"harmless")
    real = safe.open_child
    swapped: list[bytes] = []

    def swap(directory: int, name: bytes, flags: int, mode: int = 0o600, *, path: bytes = b"") -> int:
        if name == b"folder" and not swapped:
            swapped.append(name)
            inside.rename(tree.path / WORKSPACE / "moved")
            inside.symlink_to(canary.folder)
        return real(directory, name, flags, mode, path=path)

    monkeypatch.setattr(safe, "open_child", swap)
    if door == "checkpoint":
        await look(manager, tree, door)
    else:
        with pytest.raises(InvalidArgumentError, match="folder"):
            await look(manager, tree, door)
    assert swapped
    await canary.check(store)


async def test_a_folder_swapped_between_the_looks_of_a_checkpoint_leads_nowhere(tmp_path: Path, canary: Canary) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    inside = tree.path / WORKSPACE / "folder"
    inside.mkdir()
    (inside / "canary").write_bytes(b"harmless")

    @asynccontextmanager
    async def pause() -> AsyncIterator[tuple[int, ...]]:
        inside.rename(tree.path / WORKSPACE / "moved")
        inside.symlink_to(canary.folder)
        yield ()

    saved = (await manager.checkpoint(TENANT, tree, "ckpt-1", pause)).pointer
    entries = {entry.path: entry for entry in await manager.manifest(TENANT, saved)}
    assert entries[b"workspace/folder"].type is FileType.SYMLINK
    assert b"workspace/folder/canary" not in entries
    assert b"workspace/moved/canary" in entries
    await canary.check(store)


async def test_a_parent_swapped_between_the_looks_of_a_checkpoint_leads_nowhere(tmp_path: Path, canary: Canary) -> None:
    """Below the symlink there is a folder of the same name, with a file of the same name."""
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    inside = tree.path / WORKSPACE / "above" / canary.folder.name
    inside.mkdir(parents=True)
    (inside / "canary").write_bytes(b"harmless")

    @asynccontextmanager
    async def pause() -> AsyncIterator[tuple[int, ...]]:
        inside.parent.rename(tree.path / WORKSPACE / "moved")
        inside.parent.symlink_to(canary.folder.parent)
        yield ()

    saved = (await manager.checkpoint(TENANT, tree, "ckpt-1", pause)).pointer
    paths = {entry.path for entry in await manager.manifest(TENANT, saved)}
    assert not [path for path in paths if path.startswith(b"workspace/above/")]
    await canary.check(store)


@pytest.mark.parametrize("swap", ["parent", "file", "fifo", "link"])
async def test_an_artifact_swapped_after_it_was_found_is_refused(
    tmp_path: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch, swap: str
) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    file = tree.path / WORKSPACE / "folder" / "canary"
    file.parent.mkdir()
    file.write_bytes(b"harmless")
    real = artifacts._open
    swapped: list[str] = []

    def late(*args: object) -> int:
        if not swapped:
            swapped.append(swap)
            match swap:
                case "parent":
                    file.parent.rename(tree.path / "moved")
                    file.parent.symlink_to(canary.folder)
                case "file":
                    file.unlink()
                    file.symlink_to(canary.file)
                case "fifo":
                    file.unlink()
                    os.mkfifo(file)
                case _:
                    (tree.path / "kept").hardlink_to(file)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(artifacts, "_open", late)
    with pytest.raises(InvalidArgumentError, match="folder/canary"):
        await manager.collect(TENANT, tree, ["folder/*"], PREFIX)
    await canary.check(store)


# -- hard links across the boundary --


@DOORS
@pytest.mark.parametrize("names", [1, 3])
async def test_a_hard_link_to_the_outside_is_refused_by_name_at_every_door(
    tmp_path: Path, canary: Canary, door: str, names: int
) -> None:
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    for number in range(names):
        os.link(canary.file, tree.path / WORKSPACE / f"linked{number}")
    with pytest.raises(InvalidArgumentError, match=r"linked0.*outside of the tree") as refused:
        await look(manager, tree, door)
    assert refused.value.field == "path"
    await no_object_has(store, SECRET)


async def test_artifacts_with_all_their_names_in_the_tree_are_kept(tmp_path: Path) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / HOME / "deep").mkdir()
    (tree.path / HOME / "deep" / "first").write_bytes(b"mine")
    (tree.path / WORKSPACE / "second").hardlink_to(tree.path / HOME / "deep" / "first")
    kept = await manager.collect(TENANT, tree, ["*"], PREFIX)
    assert [file.path for file in kept.files] == [b"second"]


# -- names --

ODD = [b"new\nline", b"\x1b[2J\x07", b"100%", b"%41", b"\xff\xfe", "\u202egnp.exe".encode(), b"\xc2\x85", b"n" * 255]


@DOORS
@pytest.mark.parametrize("name", ODD)
async def test_names_for_terminals_and_logs_are_escaped_in_errors(
    tmp_path: Path, canary: Canary, door: str, name: bytes
) -> None:
    manager = engine(tmp_path)
    tree = await manager.checkout(TENANT, None, "uid")
    os.link(canary.file, os.fsencode(tree.path / WORKSPACE) + b"/" + name)
    with pytest.raises(InvalidArgumentError) as refused:
        await look(manager, tree, door)
    assert plain(refused.value.message)
    assert len(refused.value.message) < 600


async def test_odd_names_pass_through_a_checkpoint_that_processes_look_at(tmp_path: Path) -> None:
    """Enough entries that processes of their own look again: their names go through pipes."""
    store = MemoryObjects()
    manager = engine(tmp_path, store)
    tree = await manager.checkout(TENANT, None, "uid")
    top = tree.path / WORKSPACE
    for number in range(4200):
        (top / os.fsdecode(b"\xff%d\n%%" % number)).touch()
    for name in ODD:
        (top / os.fsdecode(name)).write_bytes(name)

    @asynccontextmanager
    async def pause() -> AsyncIterator[tuple[int, ...]]:
        for name in ODD:
            (top / os.fsdecode(name)).write_bytes(name + b"!")
        yield ()

    saved = (await manager.checkpoint(TENANT, tree, "ckpt-1", pause)).pointer
    again = await engine(tmp_path / "other", store).checkout(TENANT, saved, "other")
    for name in ODD:
        assert (again.path / WORKSPACE / os.fsdecode(name)).read_bytes() == name + b"!"
