"""What a node has beside its slots, in memory: what it remembers, and its trees."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from pathlib import Path
from types import EllipsisType

from cloudclaw.coordination.records import SnapshotPointer
from cloudclaw.snapshots.port import (
    Change,
    FileEntry,
    Kept,
    KeptFile,
    Pause,
    Progress,
    SnapshotResult,
    Tree,
    Watcher,
)
from cloudclaw_pool_manager.ports.state import Drain, Started


class FakeState:
    """`NodeState` that survives managers."""

    def __init__(self) -> None:
        self.lease_id: int | None = None
        self.generation = 0
        self.newest_term = 0
        self.drained = Drain.NONE
        self.started: dict[str, Started] = {}
        self.offsets: dict[str, int] = {}
        self.transcripts: dict[str, bytes] = {}

    async def lease(self) -> int | None:
        return self.lease_id

    async def incarnation(self) -> int:
        return self.generation

    async def remember_lease(self, lease: int, incarnation: int) -> None:
        self.lease_id, self.generation = lease, incarnation

    async def term(self) -> int:
        return self.newest_term

    async def remember_term(self, term: int) -> None:
        self.newest_term = term

    async def drain(self) -> Drain:
        return self.drained

    async def remember_drain(self, drain: Drain) -> None:
        self.drained = drain

    async def remember_attempt(self, started: Started) -> None:
        self.started[started.uid] = started

    async def forget_attempt(self, uid: str) -> None:
        self.started.pop(uid, None)
        self.offsets.pop(uid, None)
        self.transcripts.pop(uid, None)

    async def remember_forgotten(self, uid: str, offset: int) -> None:
        self.offsets[uid] = offset

    async def forgotten(self, uid: str) -> int:
        return self.offsets.get(uid, 0)

    async def remember_transcript(self, uid: str, data: bytes) -> None:
        self.transcripts[uid] = data

    async def transcript(self, uid: str) -> bytes | None:
        return self.transcripts.get(uid)

    async def attempts(self) -> Sequence[Started]:
        return list(self.started.values())


class FakeWorkspaces:
    """`WorkspaceManager` that keeps names only, and fails or waits where a test says so.

    Steps that wait and fail by name: checkout, snapshot, release, collect, and of a checkpoint `scan` (its processes
    stand still) and `upload`.

    Attributes:
        checkpoints: (snapshot id, inodes that were mapped), of those that were stored.
        collected: (patterns, prefix), in order.
        kept: what `collect` answers.
        progress: told by every step while it waits.
        busy: trees that something works on; a second one at a time fails the test.
    """

    def __init__(self) -> None:
        self.trees: dict[str, Tree] = {}
        self.snapshots: list[str] = []
        self.checkpoints: list[tuple[str, Collection[int]]] = []
        self.collected: list[tuple[tuple[str, ...], str]] = []
        self.kept = Kept((KeptFile(b"out/report", 5, "ef" * 32),))
        self.progress: Progress | None = None
        self.released: list[tuple[str, SnapshotPointer | None]] = []
        self.swept: list[set[str]] = []
        self.forgotten: list[str] = []
        self.errors: dict[str, list[Exception]] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.waiting: dict[str, asyncio.Event] = {}
        self.busy: set[str] = set()

    async def _step(self, name: str, watcher: Watcher | None = None) -> None:
        if watcher is not None and self.progress is not None:
            watcher(self.progress)
        if gate := self.gates.get(name):
            self.waiting.setdefault(name, asyncio.Event()).set()
            await gate.wait()
        if self.errors.get(name):
            raise self.errors[name].pop(0)

    @contextlib.contextmanager
    def _alone(self, tree: Tree) -> Iterator[None]:
        assert tree.uid not in self.busy, "two work on one tree at once"
        self.busy.add(tree.uid)
        try:
            yield
        finally:
            self.busy.discard(tree.uid)

    async def checkout(
        self,
        tenant: str,
        base: SnapshotPointer | None,
        uid: str,
        *,
        head: SnapshotPointer | EllipsisType | None = ...,
        watcher: Watcher | None = None,
    ) -> Tree:
        await self._step("checkout", watcher)
        tree = Tree(Path("/trees") / uid, base, uid, base if head is ... else head)
        self.trees[uid] = tree
        return tree

    async def reopen(
        self, tenant: str, base: SnapshotPointer | None, uid: str, *, head: SnapshotPointer | EllipsisType | None = ...
    ) -> Tree | None:
        return self.trees.get(uid)

    async def snapshot(
        self, tenant: str, tree: Tree, snapshot_id: str, *, watcher: Watcher | None = None
    ) -> SnapshotResult:
        with self._alone(tree):
            await self._step("snapshot", watcher)
        self.snapshots.append(snapshot_id)
        changes = (Change(b"new\xff", None, 5), Change(b"old", 3, None), Change(b"x", 1, 2))
        return SnapshotResult(self._pointer(tree, snapshot_id), changes)

    async def checkpoint(
        self, tenant: str, tree: Tree, snapshot_id: str, pause: Pause, *, watcher: Watcher | None = None
    ) -> SnapshotResult:
        with self._alone(tree):
            async with pause() as mapped:
                await self._step("scan", watcher)
            await self._step("upload", watcher)
        self.checkpoints.append((snapshot_id, mapped))
        return SnapshotResult(self._pointer(tree, snapshot_id), stored_bytes=10)

    async def collect(self, tenant: str, tree: Tree, patterns: Sequence[str], prefix: str) -> Kept:
        with self._alone(tree):
            await self._step("collect")
        self.collected.append((tuple(patterns), prefix))
        return self.kept

    async def forget(self, tenant: str) -> None:
        await self._step("forget")
        self.forgotten.append(tenant)

    def _pointer(self, tree: Tree, snapshot_id: str) -> SnapshotPointer:
        parent = tree.head.id if tree.head else ""
        return SnapshotPointer(id=snapshot_id, manifest="ab" * 32, parent=parent, files=2, bytes=20, uid=tree.uid)

    async def release(self, tenant: str, tree: Tree, committed: SnapshotPointer | None) -> None:
        assert tree.uid not in self.busy, "released while something works on it"
        await self._step("release")
        self.trees.pop(tree.uid, None)
        self.released.append((tree.uid, committed))

    async def sweep(self, live: set[str]) -> None:
        self.swept.append(set(live))
        self.trees = {uid: tree for uid, tree in self.trees.items() if uid in live}

    async def manifest(self, tenant: str, pointer: SnapshotPointer) -> Sequence[FileEntry]:
        return ()

    async def diff(self, tenant: str, old: SnapshotPointer | None, new: SnapshotPointer) -> Sequence[Change]:
        return ()

    async def read(
        self, tenant: str, pointer: SnapshotPointer, path: bytes, *, offset: int = 0, length: int = 0
    ) -> AsyncIterator[bytes]:
        yield b""

    def cached(self) -> Sequence[tuple[str, str]]:
        return [("acme", "snap-cached")]
