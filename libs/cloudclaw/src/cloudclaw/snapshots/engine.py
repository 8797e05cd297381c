"""`SnapshotEngine`: the `WorkspaceManager` over an object store and a directory of this host."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType

from cloudclaw.clock import Clock
from cloudclaw.coordination.records import SnapshotPointer
from cloudclaw.errors import PreconditionError
from cloudclaw.ids import check_name
from cloudclaw.objects.port import ObjectStore
from cloudclaw.snapshots.artifacts import collect
from cloudclaw.snapshots.changes import compare
from cloudclaw.snapshots.checkouts import Checkouts
from cloudclaw.snapshots.port import Change, FileEntry, Kept, Pause, SnapshotResult, Tree, TreeLimits, Watcher
from cloudclaw.snapshots.reader import SnapshotReader
from cloudclaw.snapshots.saving import Saver
from cloudclaw.snapshots.shelf import Shelf, check_uid
from cloudclaw.snapshots.threads import TreeThreads
from cloudclaw.snapshots.trash import Trash


@dataclass(frozen=True, slots=True)
class _Scanned:
    """The last snapshot of a live tree, and whether the tree may stand in for it."""

    pointer: SnapshotPointer
    faithful: bool

    def stands_for(self, committed: SnapshotPointer) -> bool:
        same = (self.pointer.id, self.pointer.manifest) == (committed.id, committed.manifest)
        return self.faithful and same


class SnapshotEngine:
    """Trees beneath `trees_dir`, contents in `store`.

    Objects: `tenants/{tenant}/manifests/{uid}/{digest}` (see `manifest.py`), and packs (see `packs.py`) named
    `tenants/{tenant}/packs/{uid}/{upload}-{n}` with a random `upload`, so that no pack is ever written twice.
    Content that the tree's base or its own latest checkpoint holds is not stored again (rule 8).

    Args:
        store: where manifests and packs are.
        trees_dir: a directory of this engine alone, on the file system that sandboxes run on.
        clock: for the duration that is logged.
        files_uid: owner of all files in trees; None for whoever runs this. Another than oneself needs root.
        limits: what a tree may hold.
        cache_bytes: content of the trees kept ready.

    Raises `PreconditionError` when `files_uid` cannot be had.
    """

    def __init__(
        self,
        store: ObjectStore,
        trees_dir: Path,
        clock: Clock,
        *,
        files_uid: int | None = None,
        limits: TreeLimits | None = None,
        cache_bytes: int = 4 << 30,
    ) -> None:
        if files_uid is not None and files_uid != os.geteuid() and os.geteuid() != 0:
            raise PreconditionError(
                f"files cannot belong to uid {files_uid}: that needs root", reason="FILES_UID_NEEDS_ROOT"
            )
        self._store = store
        self._clock = clock
        self._uid = files_uid
        self._limits = limits or TreeLimits()
        self._shelf = Shelf(trees_dir, cache_bytes, clock)
        self._trash = Trash(self._shelf.trash)
        self._reader = SnapshotReader(store)
        self._threads = TreeThreads()
        self._checkouts = Checkouts(store, self._reader, self._shelf, self._trash, self._threads, clock, files_uid)
        self._saver = Saver(store, self._reader, self._threads, clock, self._limits, trees_dir)
        self._scanned: dict[str, _Scanned] = {}

    async def checkout(
        self,
        tenant: str,
        base: SnapshotPointer | None,
        uid: str,
        *,
        head: SnapshotPointer | EllipsisType | None = ...,
        watcher: Watcher | None = None,
    ) -> Tree:
        check_name(tenant, "tenant")
        self._scanned.pop(uid, None)
        return Tree(await self._checkouts.make(tenant, base, uid, watcher), base, uid, base if head is ... else head)

    async def reopen(
        self, tenant: str, base: SnapshotPointer | None, uid: str, *, head: SnapshotPointer | EllipsisType | None = ...
    ) -> Tree | None:
        check_name(tenant, "tenant")
        path = self._shelf.live(uid)
        there = await self._threads.run(lambda _: path.is_dir() and not path.is_symlink())
        return Tree(path, base, uid, base if head is ... else head) if there else None

    async def snapshot(
        self, tenant: str, tree: Tree, snapshot_id: str, *, watcher: Watcher | None = None
    ) -> SnapshotResult:
        check_name(tenant, "tenant")
        check_uid(snapshot_id, "snapshot_id")
        self._scanned.pop(tree.uid, None)
        saved = await self._saver.snapshot(tenant, tree, snapshot_id, watcher)
        self._scanned[tree.uid] = _Scanned(saved.result.pointer, saved.faithful)
        return saved.result

    async def checkpoint(
        self, tenant: str, tree: Tree, snapshot_id: str, pause: Pause, *, watcher: Watcher | None = None
    ) -> SnapshotResult:
        check_name(tenant, "tenant")
        check_uid(snapshot_id, "snapshot_id")
        self._scanned.pop(tree.uid, None)
        return (await self._saver.checkpoint(tenant, tree, snapshot_id, pause, watcher)).result

    async def collect(self, tenant: str, tree: Tree, patterns: Sequence[str], prefix: str) -> Kept:
        check_name(tenant, "tenant")
        return await collect(self._store, self._threads, self._limits, tree, patterns, prefix)

    async def release(self, tenant: str, tree: Tree, committed: SnapshotPointer | None) -> None:
        check_name(tenant, "tenant")
        scanned = self._scanned.pop(tree.uid, None)
        self._saver.forget(tree.uid)
        if committed is None or scanned is None or not scanned.stands_for(committed):
            await self._checkouts.discard(tree.uid)
            return
        await self._threads.run(
            lambda stop: self._trash.throw(self._shelf.put(tenant, committed, tree.uid, committed.bytes), stop)
        )

    async def sweep(self, live: set[str]) -> None:
        def sweep(stop: threading.Event) -> None:
            self._saver.sweep()
            self._trash.throw(self._shelf.sweep(live), stop)

        await self._threads.run(sweep)

    async def forget(self, tenant: str) -> None:
        check_name(tenant, "tenant")
        self._reader.forget(tenant)
        await self._threads.run(lambda stop: self._trash.throw(self._shelf.forget(tenant), stop))

    async def manifest(self, tenant: str, pointer: SnapshotPointer) -> Sequence[FileEntry]:
        check_name(tenant, "tenant")
        return [item.entry for item in (await self._reader.manifest(tenant, pointer)).items]

    async def diff(self, tenant: str, old: SnapshotPointer | None, new: SnapshotPointer) -> Sequence[Change]:
        check_name(tenant, "tenant")
        before = await self._reader.manifest(tenant, old) if old is not None else None
        after = await self._reader.manifest(tenant, new)
        return await self._threads.run(lambda _: compare(before, after))

    async def read(
        self, tenant: str, pointer: SnapshotPointer, path: bytes, *, offset: int = 0, length: int = 0
    ) -> AsyncIterator[bytes]:
        check_name(tenant, "tenant")
        async for piece in self._reader.read(tenant, pointer, path, offset, length):
            yield piece

    def cached(self) -> Sequence[tuple[str, str]]:
        return self._shelf.cached()

    async def settled(self) -> None:
        """Return when the trees that were thrown away by now are gone from the disk."""
        await self._trash.settled()

    def close(self) -> None:
        """Let the threads go. Trees stay as they are; what is in the trash goes at the next start."""
        self._saver.close()
        self._trash.close()
        self._threads.close()
