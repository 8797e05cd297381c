"""`MeteredManager`: counts what passes through a `WorkspaceManager`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from types import EllipsisType

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from cloudclaw.clock import Clock
from cloudclaw.coordination.records import SnapshotPointer
from cloudclaw.errors import CloudClawError
from cloudclaw.snapshots.port import Change, FileEntry, Kept, Pause, SnapshotResult, Tree, Watcher, WorkspaceManager

_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)


class Metrics:
    """The metrics of trees and snapshots; the table is in the service's README."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.snapshots = Counter("cloudclaw_workspace_snapshots", "Snapshots stored", registry=registry)
        self.snapshot_bytes = Counter(
            "cloudclaw_workspace_snapshot_bytes", "Content of the snapshots stored", registry=registry
        )
        self.stored_bytes = Counter(
            "cloudclaw_workspace_stored_bytes", "Bytes that snapshots added to the object store", registry=registry
        )
        self.read_bytes = Counter("cloudclaw_workspace_read_bytes", "File contents read by users", registry=registry)
        self.seconds = Histogram(
            "cloudclaw_workspace_tree_seconds",
            "Time of work on trees",
            ["operation"],
            registry=registry,
            buckets=_SECONDS,
        )
        self.failures = Counter(
            "cloudclaw_workspace_tree_failures", "Failed work on trees", ["operation", "code"], registry=registry
        )
        self.cached = Gauge("cloudclaw_workspace_cached_trees", "Trees that lie ready", registry=registry)


class MeteredManager:
    """A `WorkspaceManager` that counts and times another."""

    def __init__(self, inner: WorkspaceManager, metrics: Metrics, clock: Clock) -> None:
        self._inner = inner
        self._metrics = metrics
        self._clock = clock

    async def checkout(
        self,
        tenant: str,
        base: SnapshotPointer | None,
        uid: str,
        *,
        head: SnapshotPointer | EllipsisType | None = ...,
        watcher: Watcher | None = None,
    ) -> Tree:
        with self._timed("checkout"):
            return await self._inner.checkout(tenant, base, uid, head=head, watcher=watcher)

    async def reopen(
        self, tenant: str, base: SnapshotPointer | None, uid: str, *, head: SnapshotPointer | EllipsisType | None = ...
    ) -> Tree | None:
        return await self._inner.reopen(tenant, base, uid, head=head)

    async def snapshot(
        self, tenant: str, tree: Tree, snapshot_id: str, *, watcher: Watcher | None = None
    ) -> SnapshotResult:
        with self._timed("snapshot"):
            result = await self._inner.snapshot(tenant, tree, snapshot_id, watcher=watcher)
        self._stored(result)
        return result

    async def checkpoint(
        self, tenant: str, tree: Tree, snapshot_id: str, pause: Pause, *, watcher: Watcher | None = None
    ) -> SnapshotResult:
        with self._timed("checkpoint"):
            result = await self._inner.checkpoint(tenant, tree, snapshot_id, pause, watcher=watcher)
        self._stored(result)
        return result

    async def collect(self, tenant: str, tree: Tree, patterns: Sequence[str], prefix: str) -> Kept:
        with self._timed("collect"):
            return await self._inner.collect(tenant, tree, patterns, prefix)

    async def release(self, tenant: str, tree: Tree, committed: SnapshotPointer | None) -> None:
        with self._timed("release"):
            await self._inner.release(tenant, tree, committed)

    async def sweep(self, live: set[str]) -> None:
        await self._inner.sweep(live)
        self._metrics.cached.set(len(self._inner.cached()))

    async def manifest(self, tenant: str, pointer: SnapshotPointer) -> Sequence[FileEntry]:
        return await self._inner.manifest(tenant, pointer)

    async def diff(self, tenant: str, old: SnapshotPointer | None, new: SnapshotPointer) -> Sequence[Change]:
        return await self._inner.diff(tenant, old, new)

    async def read(
        self, tenant: str, pointer: SnapshotPointer, path: bytes, *, offset: int = 0, length: int = 0
    ) -> AsyncIterator[bytes]:
        async for piece in self._inner.read(tenant, pointer, path, offset=offset, length=length):
            self._metrics.read_bytes.inc(len(piece))
            yield piece

    def cached(self) -> Sequence[tuple[str, str]]:
        return self._inner.cached()

    async def forget(self, tenant: str) -> None:
        await self._inner.forget(tenant)
        self._metrics.cached.set(len(self._inner.cached()))

    def _stored(self, result: SnapshotResult) -> None:
        self._metrics.snapshots.inc()
        self._metrics.snapshot_bytes.inc(result.pointer.bytes)
        self._metrics.stored_bytes.inc(result.stored_bytes)

    @contextmanager
    def _timed(self, operation: str) -> Iterator[None]:
        """Time what succeeds, and count what does not."""
        started = self._clock.boottime()
        try:
            yield
        except CloudClawError as error:
            self._metrics.failures.labels(operation, error.code).inc()
            raise
        self._metrics.seconds.labels(operation).observe(self._clock.boottime() - started)
        self._metrics.cached.set(len(self._inner.cached()))
