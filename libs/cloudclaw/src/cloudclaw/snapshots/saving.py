"""Taking snapshots and checkpoints: from a tree to objects in the store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination.records import SnapshotPointer
from cloudclaw.errors import PreconditionError
from cloudclaw.ids import new_id
from cloudclaw.objects.port import ObjectStore
from cloudclaw.snapshots import manifest as manifests
from cloudclaw.snapshots import safe
from cloudclaw.snapshots.assembly import assemble, store_copies
from cloudclaw.snapshots.changes import compare
from cloudclaw.snapshots.index import Index, index_path
from cloudclaw.snapshots.manifest import Blob, Manifest
from cloudclaw.snapshots.packs import PackWriter
from cloudclaw.snapshots.pipeline import Contents, Pipeline
from cloudclaw.snapshots.port import Change, Pause, SnapshotResult, Tree, TreeLimits, Watcher
from cloudclaw.snapshots.progress import Meter, reported
from cloudclaw.snapshots.reader import SnapshotReader, manifest_name
from cloudclaw.snapshots.restore import open_tree
from cloudclaw.snapshots.scan import Fresh, Scan
from cloudclaw.snapshots.sentries import Sentries
from cloudclaw.snapshots.shelf import check_uid
from cloudclaw.snapshots.staging import Staged, Staging
from cloudclaw.snapshots.threads import TreeThreads

_THREADS: Final = 2
"""That hash and compress, beside the one that reads. More bring nothing: reading is as slow as two of these."""
_LOOKS: Final = 16
"""Trees whose processes stand still at once without waiting for one another."""

_log = structlog.get_logger()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Saved:
    """A stored snapshot; `faithful`: the tree itself is the same as a restored copy."""

    result: SnapshotResult
    faithful: bool


@dataclass(frozen=True, slots=True)
class _Known:
    """What a snapshot starts from: its tree's index, the manifest to compare with, and content stored already."""

    index: Index
    head: Manifest | None
    blobs: dict[str, Blob]


@dataclass(frozen=True, slots=True)
class _Built:
    """What a snapshot comes to, its packs stored."""

    manifest: Manifest
    data: bytes
    digest: str
    index: Index
    changed: int
    stored: int
    faithful: bool


class _Uploads:
    """Puts that a thread asks of the event loop. `cancel` ends them and whoever waits for them, so that a store that
    hangs does not hold up a cancellation; the store's own call may still run to its end."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._flying: set[Future[bool]] = set()
        self._over = False

    def start(self, name: str, data: bytes) -> Future[bool]:
        future = asyncio.run_coroutine_threadsafe(self._store.put(name, data), self._loop)
        self._flying.add(future)
        future.add_done_callback(self._flying.discard)
        if self._over:
            future.cancel()
        return future

    def cancel(self) -> None:
        self._over = True
        for future in list(self._flying):
            future.cancel()


class Saver:
    """Stores trees of `trees_dir`. The names of objects: see `SnapshotEngine`.

    A tree is saved by one call at a time: `PreconditionError(reason="TREE_BUSY")` for a second one.
    """

    def __init__(
        self,
        store: ObjectStore,
        reader: SnapshotReader,
        threads: TreeThreads,
        clock: Clock,
        limits: TreeLimits,
        trees_dir: Path,
    ) -> None:
        self._store = store
        self._reader = reader
        self._threads = threads
        self._clock = clock
        self._limits = limits
        self._trees = trees_dir
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="packs")
        # Threads that wait for a slow store must not keep those from their work whose processes stand still.
        self._storing = TreeThreads()
        self._looking = TreeThreads(_LOOKS)
        self._busy: set[str] = set()
        self._last: dict[str, SnapshotPointer] = {}

    async def snapshot(self, tenant: str, tree: Tree, snapshot_id: str, watcher: Watcher | None) -> Saved:
        """As `WorkspaceManager.snapshot`."""
        with self._alone(tree):
            started = self._clock.boottime()
            known = await self._known(tenant, tree)
            meter = Meter()

            def work(stop: threading.Event) -> _Built:
                with self._packing(tenant, tree, known, uploads, meter, stop) as (packs, pipeline):
                    scan = Scan(self._limits, known.index, pipeline, self._now_ns, stop)
                    with safe.closing(open_tree(tree.path)) as root:
                        scan.tree(root)
                    pipeline.finish()
                    return _build(scan, _content, packs, known.index.base)

            uploads = _Uploads(self._store)
            async with reported(meter, watcher, self._clock):
                built = await self._storing.run(work, on_cancel=uploads.cancel)
                return await self._publish(tenant, tree, snapshot_id, built, known.head, started, 0.0, (tree.head,))

    async def checkpoint(
        self, tenant: str, tree: Tree, snapshot_id: str, pause: Pause, watcher: Watcher | None
    ) -> Saved:
        """As `WorkspaceManager.checkpoint`.

        The tree is scanned twice by the same code: while its processes run, which copies most of what changed, and
        while they stand still, which copies what changed since then; what is stored are these copies.
        """
        with self._alone(tree):
            started = self._clock.boottime()
            known = await self._known(tenant, tree)
            meter = Meter()
            uploads = _Uploads(self._store)
            async with self._copying(tree) as (root, staging, sentries):

                def first(stop: threading.Event) -> Scan[Staged]:
                    sentries.start(len(known.index.seen))
                    scan = Scan(self._limits, known.index, staging, self._now_ns, stop, moving=True)
                    scan.tree(root)
                    sentries.post(scan.listing())
                    return scan

                scan = await self._threads.run(first, on_cancel=sentries.kill)

                def second(mapped: Collection[int], stop: threading.Event) -> None:
                    scan.again(root, sentries.look(), mapped, stop)

                stopped = self._clock.boottime()
                async with pause() as mapped:
                    await self._looking.run(lambda stop: second(mapped, stop), on_cancel=sentries.kill)
                frozen = self._clock.boottime() - stopped

                def third(stop: threading.Event) -> _Built:
                    with self._packing(tenant, tree, known, uploads, meter, stop) as (packs, pipeline):
                        contents = store_copies(scan, lambda staged, path: staging.store(staged, path, pipeline))
                        pipeline.finish()
                        return _build(scan, lambda fresh: contents[fresh.entry.path], packs, known.index.base)

                async with reported(meter, watcher, self._clock):
                    built = await self._storing.run(third, on_cancel=uploads.cancel)
                    earlier = (self._last.get(tree.uid), tree.base, tree.head)
                    saved = await self._publish(tenant, tree, snapshot_id, built, known.head, started, frozen, earlier)
                    self._last[tree.uid] = saved.result.pointer
                    return saved

    def forget(self, uid: str) -> None:
        """The tree of `uid` is saved no more."""
        self._last.pop(uid, None)

    @asynccontextmanager
    async def _copying(self, tree: Tree) -> AsyncIterator[tuple[int, Staging, Sentries]]:
        """The open tree, a place for copies, and who looks again."""
        stack = ExitStack()

        def enter(_: threading.Event) -> tuple[int, Staging, Sentries]:
            root = stack.enter_context(safe.closing(open_tree(tree.path)))
            staging = stack.enter_context(Staging(self._staging(tree.uid), 2 * self._limits.total_bytes))
            return root, staging, stack.enter_context(Sentries(root, self._limits.files))

        try:
            yield await self._threads.run(enter)
        finally:
            await self._threads.run(lambda _: stack.close())

    def sweep(self) -> None:
        """Remove what a crash left of staging files."""
        staging = self._staging("")
        if staging.is_dir():
            for path in staging.iterdir():
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let the threads go."""
        self._pool.shutdown(wait=False)
        self._storing.close()
        self._looking.close()

    @contextmanager
    def _alone(self, tree: Tree) -> Iterator[None]:
        check_uid(tree.uid, "uid")
        if tree.uid in self._busy:
            raise PreconditionError(f"the tree {tree.uid} is being saved already", subject=tree.uid, reason="TREE_BUSY")
        self._busy.add(tree.uid)
        try:
            yield
        finally:
            self._busy.discard(tree.uid)

    async def _known(self, tenant: str, tree: Tree) -> _Known:
        base = tree.base.manifest if tree.base is not None else ""
        head = tree.head
        old = await self._reader.manifest(tenant, head) if head is not None else None
        index = await self._threads.run(lambda _: Index.load(index_path(self._trees, tree.uid)))
        # Another tree's content may be gone from the store by now (rule 8).
        if index is not None and base not in (index.base, index.snapshot):
            index = None
        origin = old
        if tree.base is not None and (head is None or head.manifest != base):
            origin = await self._reader.manifest(tenant, tree.base) if index is None else None

        def collect(_: threading.Event) -> _Known:
            found = index if index is not None else Index()
            found.base = base
            blobs = origin.blobs() if origin is not None else {}
            blobs.update((blob.digest, blob) for blob in found.blobs())
            return _Known(found, old, blobs)

        return await self._threads.run(collect)

    @contextmanager
    def _packing(
        self,
        tenant: str,
        tree: Tree,
        known: _Known,
        uploads: _Uploads,
        meter: Meter,
        stop: threading.Event,
    ) -> Iterator[tuple[PackWriter, Pipeline]]:
        """Where contents go; given up when the block fails."""
        packs = PackWriter(f"tenants/{tenant}/packs/{tree.uid}/{new_id('up')}", known.blobs, uploads.start)
        pipeline = Pipeline(packs, self._pool, stop, meter)
        try:
            yield packs, pipeline
        except BaseException:
            pipeline.abandon()
            raise

    async def _publish(
        self,
        tenant: str,
        tree: Tree,
        snapshot_id: str,
        built: _Built,
        old: Manifest | None,
        started: float,
        frozen: float,
        earlier: Sequence[SnapshotPointer | None],
    ) -> Saved:
        """Store the manifest, unless one of the `earlier` snapshots is the same: then that is the answer."""
        head = tree.head
        manifest = built.manifest
        pointer = SnapshotPointer(
            id=snapshot_id,
            manifest=built.digest,
            parent=head.id if head is not None else "",
            files=manifest.files,
            bytes=manifest.bytes,
            uid=tree.uid,
        )

        def conclude(_: threading.Event) -> list[Change]:
            # The packs that the index names are stored, and stay as long as the tree's uid lives.
            _keep(built.index, index_path(self._trees, tree.uid))
            return list(compare(old, manifest))

        same = next((each for each in earlier if each is not None and each.manifest == built.digest), None)
        if same is not None:
            pointer = same
        try:
            async with asyncio.TaskGroup() as group:
                concluding = group.create_task(self._threads.run(conclude))
                if same is None:
                    await self._store.put(manifest_name(tenant, pointer), built.data)
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        changes = concluding.result()
        self._reader.keep(tenant, built.digest, manifest)
        stored = built.stored + (len(built.data) if same is None else 0)
        _log.info(
            "checkpoint stored" if frozen else "snapshot stored",
            tenant=tenant,
            uid=tree.uid,
            snapshot=pointer.id,
            files=manifest.files,
            changed=built.changed,
            bytes=manifest.bytes,
            stored_bytes=stored,
            seconds=round(self._clock.boottime() - started, 4),
            frozen=round(frozen, 4),
        )
        return Saved(SnapshotResult(pointer, changes, stored, frozen), built.faithful)

    def _staging(self, uid: str) -> Path:
        return self._trees / "staging" / uid

    def _now_ns(self) -> int:
        return int(self._clock.wall() * 1e9)


def _keep(index: Index, path: Path) -> None:
    """Keep the index of a tree; when that fails, none: the one before may name packs of an attempt that its task's
    record does not know any more."""
    try:
        index.save(path)
    except OSError as error:
        _log.warning("a tree's index cannot be kept", path=str(path), error=str(error))
        try:
            path.unlink(missing_ok=True)
        except OSError as again:
            _log.warning("what stands in its place cannot be removed", path=str(path), error=str(again))


def _content(fresh: Fresh[Contents]) -> Contents:
    if fresh.content is None:
        raise ValueError(f"{safe.brief(fresh.entry.path)} was not read")
    return fresh.content


def _build(scan: Scan[T], contents: Callable[[Fresh[T]], Contents], packs: PackWriter, base: str) -> _Built:
    index = Index(base=base)
    manifest = Manifest(assemble(scan, contents, index))
    data, digest = manifests.encode(manifest)
    index.snapshot = digest
    return _Built(manifest, data, digest, index, scan.read, packs.stored_bytes, scan.faithful)
