"""Many snapshots of one tree, one after the other, as it changes: each is the tree at its moment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots.engine import SnapshotEngine
from cloudclaw.snapshots.packs import CHUNK
from cloudclaw.snapshots.port import HOME, WORKSPACE, Tree
from tests.support.trees import TENANT, Facts, engine, facts

NAMES = [b"a", b"b", b"c.txt", b"caf\xe9", b"line\nbreak", b"%41", b"-rf"]
MODES = [0o644, 0o755, 0o600, 0o444, 0o000] if os.geteuid() == 0 else [0o644, 0o755, 0o600]
KINDS = ["write", "append", "patch", "sparse", "hole", "mkdir", "symlink", "link", "remove", "rename", "chmod", "touch"]


def names_of(tree: Path) -> set[frozenset[bytes]]:
    """Which paths are names of one file."""
    found: dict[int, set[bytes]] = {}
    for path in facts(tree):
        status = os.lstat(os.fsencode(tree) + b"/" + path)
        found.setdefault(status.st_ino, set()).add(path)
    return {frozenset(paths) for paths in found.values() if len(paths) > 1}


def everything(tree: Path) -> tuple[dict[bytes, Facts], set[frozenset[bytes]]]:
    return facts(tree), names_of(tree)


def mutate(tree: Tree, seed: int) -> None:
    """One random change. What cannot be done at that place is not done."""
    chance = random.Random(seed)
    paths = sorted(facts(tree.path))
    root = os.fsencode(tree.path) + b"/"
    folders = [p for p in paths if os.path.isdir(root + p) and not os.path.islink(root + p)]
    others = [p for p in paths if p not in (WORKSPACE.encode(), HOME.encode())]
    new = root + chance.choice(folders) + b"/" + chance.choice(NAMES)
    old = root + chance.choice(others) if others else new
    kind = chance.choice(KINDS)
    with contextlib.suppress(OSError):
        match kind:
            case "write":
                Path(os.fsdecode(new)).write_bytes(chance.randbytes(chance.choice([0, 1, 40, 5000])))
            case "append":
                with open(old, "ab") as file:
                    file.write(b"more")
            case "patch":
                with open(old, "r+b") as file:
                    file.write(b"Z")
            case "sparse":
                with open(new, "wb") as file:
                    file.truncate(chance.choice([10_000, CHUNK + 5]))
                    file.seek(5000)
                    file.write(b"x")
            case "hole":
                os.truncate(old, os.stat(old).st_size + 9000)
            case "mkdir":
                os.mkdir(new)
            case "symlink":
                os.symlink(chance.choice([b"a", b"../x", b"/etc/passwd"]), new)
            case "link":
                if not os.path.islink(old):
                    os.link(old, new)
            case "remove":
                if os.path.isdir(old) and not os.path.islink(old):
                    os.rmdir(old)
                else:
                    os.unlink(old)
            case "rename":
                os.rename(old, new)
            case "chmod":
                if not os.path.islink(old):
                    directory = os.path.isdir(old)
                    os.chmod(old, chance.choice([0o755, 0o700, 0o555]) if directory else chance.choice(MODES))
            case _:
                os.utime(old, ns=(chance.randrange(2**60), chance.randrange(2**60)), follow_symlinks=False)


class Run:
    """One tree, saved again and again, and each time restored elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.store = MemoryObjects()
        self.folder = folder
        self.manager = engine(folder, self.store)
        self.count = 0

    async def cycle(self, tree: Tree, seeds: Sequence[int], during: Sequence[int] | None) -> None:
        """Change the tree, save it, compare; with `during` by a checkpoint, those changes coming while it begins."""
        self.count += 1
        for seed in seeds:
            mutate(tree, seed)
        at_rest: list[tuple[dict[bytes, Facts], set[frozenset[bytes]]]] = []

        @contextlib.asynccontextmanager
        async def pause() -> AsyncIterator[Sequence[int]]:
            for seed in during or ():
                mutate(tree, seed)
            at_rest.append(everything(tree.path))
            yield ()
            assert everything(tree.path) == at_rest[0], "saving must not change the tree"
            for seed in during or ():
                mutate(tree, seed + 1)

        if during is None:
            at_rest.append(everything(tree.path))
            saved = await self.manager.snapshot(TENANT, tree, f"snap-{self.count}")
        else:
            saved = await self.manager.checkpoint(TENANT, tree, f"snap-{self.count}", pause)
        other = engine(self.folder / "other", self.store)
        again = await other.checkout(TENANT, saved.pointer, f"copy-{self.count}")
        assert everything(again.path) == at_rest[0]
        await other.release(TENANT, again, None)
        other.close()

    async def reopen(self) -> SnapshotEngine:
        self.manager.close()
        self.manager = engine(self.folder, self.store)
        return self.manager


SEEDS = st.lists(st.integers(0, 2**32), max_size=8)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(st.tuples(SEEDS, st.one_of(st.none(), SEEDS)), min_size=1, max_size=6))
def test_every_snapshot_and_checkpoint_is_the_tree_at_its_moment(
    steps: list[tuple[list[int], list[int] | None]],
) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            cycles = Run(Path(folder))
            tree = await cycles.manager.checkout(TENANT, None, "uid")
            for seeds, during in steps:
                await cycles.cycle(tree, seeds, during)
            cycles.manager.close()

    asyncio.run(run())


async def test_fifty_cycles_in_a_row(tmp_path: Path) -> None:
    cycles = Run(tmp_path)
    tree = await cycles.manager.checkout(TENANT, None, "uid-0")
    for number in range(50):
        seeds = [number * 1000 + step for step in range(6)]
        await cycles.cycle(tree, seeds, [seed + 500 for seed in seeds[:3]] if number % 2 else None)
        if number % 10 == 9:  # the next attempt: on the tree itself, or on a restored one
            pointer = (await cycles.manager.snapshot(TENANT, tree, f"end-{number}")).pointer
            before = everything(tree.path)
            await cycles.manager.release(TENANT, tree, pointer if number % 20 == 9 else None)
            await cycles.reopen()
            tree = await cycles.manager.checkout(TENANT, pointer, f"uid-{number}")
            assert everything(tree.path) == before
    assert len(facts(tree.path)) > 10
