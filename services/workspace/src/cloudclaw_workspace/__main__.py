"""`python -m cloudclaw_workspace`: the workspace service as a process; the only place that composes it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from pathlib import Path

import structlog

from cloudclaw.clock import SystemClock
from cloudclaw.config import load
from cloudclaw.coordination.election import Election
from cloudclaw.coordination.etcd import open_etcd
from cloudclaw.errors import PreconditionError
from cloudclaw.history.store import BundleStore
from cloudclaw.lifecycle import Stack, run_service
from cloudclaw.logging import configure
from cloudclaw.objects.config import open_objects
from cloudclaw.objects.insisting import InsistingObjects
from cloudclaw.rpc.auth import Authenticator
from cloudclaw.rpc.metrics_server import serve_metrics
from cloudclaw.rpc.server import RpcServer
from cloudclaw.snapshots.engine import SnapshotEngine
from cloudclaw.snapshots.threads import TreeThreads
from cloudclaw.v1.workspace_pb2_grpc import add_WorkspaceServiceServicer_to_server
from cloudclaw_workspace.adapters.archive import BundleArchive
from cloudclaw_workspace.adapters.census import CoordinationCensus
from cloudclaw_workspace.adapters.garbage_metrics import GarbageMetrics
from cloudclaw_workspace.adapters.metered import MeteredManager, Metrics
from cloudclaw_workspace.adapters.packlists import StoredPackLists
from cloudclaw_workspace.adapters.registry import CoordinationRegistry
from cloudclaw_workspace.adapters.results import ProtoArtifactLists
from cloudclaw_workspace.app.artifacts import Artifacts
from cloudclaw_workspace.app.browsing import Browser
from cloudclaw_workspace.app.collecting import Collector
from cloudclaw_workspace.app.rounds import Rounds
from cloudclaw_workspace.app.shelves import Shelves
from cloudclaw_workspace.app.tenants import Undertaker
from cloudclaw_workspace.app.thinning import Thinner
from cloudclaw_workspace.app.workspaces import Workspaces
from cloudclaw_workspace.app.writing import Writer
from cloudclaw_workspace.config import WorkspaceSettings
from cloudclaw_workspace.ports.uploads import StaleUploads
from cloudclaw_workspace.server.health import HealthWatch
from cloudclaw_workspace.server.servicer import SERVICE, WorkspaceServicer

_log = structlog.get_logger()


async def serve(settings: WorkspaceSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; then health turns, calls end, and the clients are closed, in this order."""
    clock = SystemClock()
    limits = settings.limits.tree_limits()
    async with Stack() as stack:
        # Trees are this process's alone: another one would sweep them away.
        lock = _lock(settings.data_dir)
        stack.push("lock", lambda: asyncio.to_thread(os.close, lock))
        # Who exists, who writes, which snapshot is a head.
        kv = open_etcd(settings.etcd, clock)
        stack.push("etcd", kv.close)
        # Manifests and packs.
        objects = open_objects(settings.objects)
        stack.push("objects", objects.close)
        # A round or a large tree is many calls: one that fails now and then must not end them all.
        steady = InsistingObjects(objects, clock)
        engine = SnapshotEngine(
            steady,
            settings.data_dir / "trees",
            clock,
            limits=limits,
            cache_bytes=settings.cache_bytes,
        )
        stack.push("trees", lambda: asyncio.to_thread(engine.close))
        manager = MeteredManager(engine, Metrics(), clock)
        # What an earlier run left half-done.
        await manager.sweep(set())
        # One thread for each write under way: it waits for its client.
        threads = TreeThreads(settings.max_writes)
        stack.push("writes", lambda: asyncio.to_thread(threads.close))
        registry = CoordinationRegistry(kv, clock, writer_ttl=settings.writer_ttl)
        # Everything that refers to objects.
        census = CoordinationCensus(kv, clock)
        # What nothing refers to goes, a day after it was first seen so by default.
        rounds = Rounds(
            census,
            census,
            steady,
            Thinner(census, clock, settings.retention.retention()),
            Collector(census, steady, StoredPackLists(steady), BundleArchive(steady), clock, grace=settings.gc.grace),
            clock,
            GarbageMetrics(clock),
            uploads=objects if isinstance(objects, StaleUploads) else None,
            interval=settings.gc.interval,
            grace=settings.gc.grace,
        )
        # Trees of deleted tenants go from every replica's host.
        shelves = Shelves(census, manager, clock, interval=settings.gc.interval)
        servicer = WorkspaceServicer(
            Workspaces(registry),
            Browser(registry, manager),
            Writer(registry, manager, threads, limits),
            Artifacts(census, steady, ProtoArtifactLists(), BundleStore(steady)),
            rounds,
            Undertaker(census, census, steady, manager),
            limits,
            patience=settings.write_idle_timeout,
        )
        server = RpcServer(
            settings.server, Authenticator(settings.auth.keys, issuer=settings.auth.issuer, clock=clock), clock=clock
        )
        server.add(SERVICE, add_WorkspaceServiceServicer_to_server, servicer)
        stop_metrics = serve_metrics(settings.metrics)
        stack.push("metrics", lambda: asyncio.to_thread(stop_metrics))
        address = await server.start()
        stack.push("server", lambda: server.stop(settings.stop_grace), timeout=settings.stop_grace + 10)
        stack.push("intake", server.drain)
        _log.info("serving", address=address)
        health = HealthWatch(server, SERVICE, kv, objects, clock, interval=settings.health_interval)
        # One replica of all collects garbage.
        election = Election(kv, clock, "workspace", address, settings.gc.election_ttl)
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(health.run()),
                group.create_task(shelves.run()),
                group.create_task(election.run(lambda _: rounds.run())),
            ]
            await stop.wait()
            for task in running:
                task.cancel()


def _lock(directory: Path) -> int:
    """Lock the directory for this process. Raises `PreconditionError` when another has it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise PreconditionError(
            f"{directory} belongs to another workspace service that runs", reason="DATA_DIR_LOCKED"
        ) from None
    return fd


def main() -> int:
    """The process's entry point; answers its exit code."""
    settings = load(WorkspaceSettings)
    configure(settings.log, "workspace")
    return asyncio.run(run_service(lambda stop: serve(settings, stop)))


if __name__ == "__main__":
    sys.exit(main())
