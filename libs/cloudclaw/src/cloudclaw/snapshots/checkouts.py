"""Trees for attempts: taken from the shelf, or restored, with what a related tree on the shelf has in common."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from pathlib import Path

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination.records import SnapshotPointer
from cloudclaw.objects.port import ObjectStore
from cloudclaw.snapshots.index import SLACK_NS, Index, Seen
from cloudclaw.snapshots.manifest import Item, Manifest
from cloudclaw.snapshots.port import FileType, Progress, Watcher
from cloudclaw.snapshots.reader import SnapshotReader
from cloudclaw.snapshots.renew import prune
from cloudclaw.snapshots.restore import Restoring, make_empty, restore
from cloudclaw.snapshots.shelf import Shelf
from cloudclaw.snapshots.threads import TreeThreads
from cloudclaw.snapshots.trash import Trash

_log = structlog.get_logger()


class Checkouts:
    """Makes live trees on `shelf`, and throws them away.

    Where the tree of a snapshot does not lie ready, that of its parent or of another near relation may (an attempt
    elsewhere went on from there): it is taken and renewed, so that only what differs is fetched and written.

    A tree that was restored gets an index at once, so that the first snapshot of it reads only what changed.
    """

    def __init__(
        self,
        store: ObjectStore,
        reader: SnapshotReader,
        shelf: Shelf,
        trash: Trash,
        threads: TreeThreads,
        clock: Clock,
        uid: int | None,
    ) -> None:
        self._store = store
        self._reader = reader
        self._shelf = shelf
        self._trash = trash
        self._threads = threads
        self._clock = clock
        self._uid = uid

    async def make(self, tenant: str, base: SnapshotPointer | None, uid: str, watcher: Watcher | None) -> Path:
        """As `WorkspaceManager.checkout`. A tree that could not be completed is gone when the error is raised."""
        path = self._shelf.live(uid)

        def prepare(stop: threading.Event) -> bool:
            self._trash.throw(self._shelf.discard(uid), stop)
            if base is not None:
                return self._shelf.take(tenant, base, uid)
            make_empty(path, self._uid)
            return True

        try:
            ready = await self._threads.run(prepare)
            if base is not None and not ready:
                await self._restore(tenant, base, uid, path, watcher)
        except BaseException:
            await self.discard(uid)
            raise
        if base is not None and ready and watcher is not None:
            watcher(Progress(base.files, base.bytes, base.files, base.bytes))
        return path

    async def discard(self, uid: str) -> None:
        """Throw the live tree of `uid` away, if there is one."""
        await self._threads.run(lambda stop: self._trash.throw(self._shelf.discard(uid), stop))

    async def _restore(self, tenant: str, base: SnapshotPointer, uid: str, path: Path, watcher: Watcher | None) -> None:
        started = self._clock.boottime()
        manifest = await self._reader.manifest(tenant, base)
        noted = _Noted(base.manifest)
        have = await self._threads.run(lambda stop: self._begin(tenant, base, uid, manifest, noted, stop))
        how = Restoring(self._uid, have=have, seen=noted.see, watcher=watcher)
        await restore(self._store, self._threads, self._clock, manifest, path, how)
        await self._threads.run(lambda _: noted.save(self._shelf.index(uid), self._clock.wall()))
        _log.info(
            "snapshot restored",
            tenant=tenant,
            uid=uid,
            snapshot=base.id,
            files=manifest.files,
            bytes=manifest.bytes,
            kept=len(have),
            seconds=round(self._clock.boottime() - started, 4),
        )

    def _begin(
        self,
        tenant: str,
        base: SnapshotPointer,
        uid: str,
        manifest: Manifest,
        noted: _Noted,
        stop: threading.Event,
    ) -> Collection[bytes]:
        """A live tree to restore into; the paths that it holds already."""
        if self._shelf.take_near(tenant, base, uid):
            index = Index.load(self._shelf.index(uid))
            if index is not None:
                have = prune(self._shelf.live(uid), self._shelf.trash, index, manifest, stop)
                noted.keep(index, manifest, have)
                return have
            self._trash.throw(self._shelf.discard(uid), stop)
        make_empty(self._shelf.live(uid), self._uid)
        return frozenset()


class _Noted:
    """Gathers the index of a tree while it is restored."""

    def __init__(self, base: str) -> None:
        self._index = Index(base=base)

    def see(self, item: Item, status: os.stat_result) -> None:
        """As `fill.Seen`; a single assignment, so threads need no lock."""
        if item.entry.type is not FileType.DIRECTORY:
            self._index.seen[item.entry.path] = Seen(status.st_ino, status.st_ctime_ns, item)

    def keep(self, index: Index, manifest: Manifest, paths: Collection[bytes]) -> None:
        """What `index` knows of these paths still holds, and the content of each is stored where `manifest` says."""
        for path in paths:
            seen, item = index.seen.get(path), manifest.get(path)
            if seen is not None and item is not None:
                self._index.seen[path] = Seen(seen.ino, seen.ctime_ns, item)

    def save(self, path: Path, now: float) -> None:
        """Write the index. Nobody has written to the tree up to now. What was made within the last ticks is entered
        without trust: a change that follows could leave the same time (see `index.py`)."""
        late = int(now * 1e9) - SLACK_NS
        for seen in [seen for seen in self._index.seen.values() if seen.ctime_ns >= late]:
            self._index.seen[seen.item.entry.path] = Seen(0, seen.ctime_ns, seen.item)
        try:
            self._index.save(path)
        except OSError as error:
            # The tree is whole; without an index its first snapshot reads all of it.
            _log.warning("the index of a restored tree was not written", path=str(path), error=str(error))
