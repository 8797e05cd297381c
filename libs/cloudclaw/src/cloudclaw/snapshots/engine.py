"""`SnapshotEngine`: the `WorkspaceManager` over an object store and a directory of this host."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination.records import SnapshotPointer
from cloudclaw.errors import PreconditionError
from cloudclaw.ids import check_name, new_id
from cloudclaw.objects.port import ObjectStore
from cloudclaw.snapshots import manifest as manifests
from cloudclaw.snapshots import safe
from cloudclaw.snapshots.checkouts import Checkouts
from cloudclaw.snapshots.manifest import Blob, Manifest
from cloudclaw.snapshots.packs import PackWriter
from cloudclaw.snapshots.port import Change, FileEntry, SnapshotResult, Tree, TreeLimits, Watcher
from cloudclaw.snapshots.reader import SnapshotReader, compare, manifest_name
from cloudclaw.snapshots.restore import open_tree
from cloudclaw.snapshots.scan import Scan
from cloudclaw.snapshots.shelf import Shelf, check_uid
from cloudclaw.snapshots.threads import TreeThreads
from cloudclaw.snapshots.trash import Trash

_log = structlog.get_logger()


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
    Content that the tree's base holds is not stored again (rule 8).

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
        self._scanned: dict[str, _Scanned] = {}

    async def checkout(
        self,
        tenant: str,
        base: SnapshotPointer | None,
        uid: str,
        *,
        head: SnapshotPointer | None = None,
        watcher: Watcher | None = None,
    ) -> Tree:
        check_name(tenant, "tenant")
        self._scanned.pop(uid, None)
        return Tree(await self._checkouts.make(tenant, base, uid, watcher), base, uid, head or base)

    async def reopen(
        self, tenant: str, base: SnapshotPointer | None, uid: str, *, head: SnapshotPointer | None = None
    ) -> Tree | None:
        check_name(tenant, "tenant")
        path = self._shelf.live(uid)
        there = await self._threads.run(lambda _: path.is_dir() and not path.is_symlink())
        return Tree(path, base, uid, head or base) if there else None

    async def snapshot(self, tenant: str, tree: Tree, snapshot_id: str) -> SnapshotResult:
        check_name(tenant, "tenant")
        check_uid(snapshot_id, "snapshot_id")
        started = self._clock.boottime()
        self._scanned.pop(tree.uid, None)
        base = await self._reader.manifest(tenant, tree.base) if tree.base is not None else None
        loop = asyncio.get_running_loop()
        prefix = f"tenants/{tenant}/packs/{check_uid(tree.uid, 'uid')}/{new_id('up')}"

        def upload(name: str, data: bytes) -> Future[bool]:
            return asyncio.run_coroutine_threadsafe(self._store.put(name, data), loop)

        def work(stop: threading.Event) -> tuple[Manifest, bytes, str, bool, int]:
            known: dict[str, Blob] = base.blobs() if base is not None else {}
            packs = PackWriter(prefix, known, upload)
            scan = Scan(self._limits, packs, stop)
            try:
                with safe.closing(open_tree(tree.path)) as root:
                    scan.tree(root)
                packs.finish()
            except BaseException:
                packs.abandon()
                raise
            manifest = Manifest(scan.items)
            data, digest = manifests.encode(manifest)
            return manifest, data, digest, scan.faithful, packs.stored_bytes

        manifest, data, digest, faithful, stored = await self._threads.run(work)
        pointer = SnapshotPointer(
            id=snapshot_id,
            manifest=digest,
            parent=tree.base.id if tree.base is not None else "",
            files=manifest.files,
            bytes=manifest.bytes,
            uid=tree.uid,
        )
        await self._store.put(manifest_name(tenant, pointer), data)
        self._reader.keep(tenant, digest, manifest)
        self._scanned[tree.uid] = _Scanned(pointer, faithful)
        changes = await self._threads.run(lambda _: compare(base, manifest))
        _log.info(
            "snapshot stored",
            tenant=tenant,
            uid=tree.uid,
            snapshot=snapshot_id,
            files=manifest.files,
            bytes=manifest.bytes,
            stored_bytes=stored + len(data),
            seconds=round(self._clock.boottime() - started, 4),
        )
        return SnapshotResult(pointer, changes, stored + len(data))

    async def release(self, tenant: str, tree: Tree, committed: SnapshotPointer | None) -> None:
        check_name(tenant, "tenant")
        scanned = self._scanned.pop(tree.uid, None)
        if committed is None or scanned is None or not scanned.stands_for(committed):
            await self._checkouts.discard(tree.uid)
            return
        await self._threads.run(
            lambda stop: self._trash.throw(self._shelf.put(tenant, committed, tree.uid, committed.bytes), stop)
        )

    async def sweep(self, live: set[str]) -> None:
        await self._threads.run(lambda stop: self._trash.throw(self._shelf.sweep(live), stop))

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
        self._trash.close()
        self._threads.close()
