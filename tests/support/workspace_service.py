"""The workspace service on loopback, over whatever stores a test hands it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import tarfile
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import grpc
from prometheus_client import CollectorRegistry

from cloudclaw.clock import Clock, SystemClock
from cloudclaw.config import ServerSettings
from cloudclaw.coordination import keys
from cloudclaw.coordination.port import KeyValue
from cloudclaw.coordination.records import SnapshotPointer
from cloudclaw.history.store import BundleStore
from cloudclaw.objects.port import ObjectStore
from cloudclaw.rpc.auth import Authenticator, Minter
from cloudclaw.rpc.channel import open_channel
from cloudclaw.rpc.keys import write_development_key
from cloudclaw.rpc.server import RpcServer
from cloudclaw.snapshots.engine import SnapshotEngine
from cloudclaw.snapshots.port import Tree, TreeLimits
from cloudclaw.snapshots.threads import TreeThreads
from cloudclaw.v1 import task_pb2, workspace_pb2_grpc
from cloudclaw.v1 import workspace_pb2 as pb
from cloudclaw_workspace.adapters.archive import BundleArchive
from cloudclaw_workspace.adapters.census import CoordinationCensus
from cloudclaw_workspace.adapters.garbage_metrics import GarbageMetrics
from cloudclaw_workspace.adapters.packlists import StoredPackLists
from cloudclaw_workspace.adapters.registry import CoordinationRegistry
from cloudclaw_workspace.adapters.results import ProtoArtifactLists
from cloudclaw_workspace.app.artifacts import Artifacts
from cloudclaw_workspace.app.browsing import Browser
from cloudclaw_workspace.app.collecting import Collector
from cloudclaw_workspace.app.rounds import Rounds
from cloudclaw_workspace.app.tenants import Undertaker
from cloudclaw_workspace.app.thinning import Thinner
from cloudclaw_workspace.app.workspaces import Workspaces
from cloudclaw_workspace.app.writing import Writer
from cloudclaw_workspace.domain.retention import Retention
from cloudclaw_workspace.ports.uploads import StaleUploads
from cloudclaw_workspace.server.servicer import SERVICE, WorkspaceServicer

PIECE = 256 << 10
KEPT: Final = Retention(20, 7)


class User:
    """A tenant's view of the service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = workspace_pb2_grpc.WorkspaceServiceStub(channel)

    async def create(self, name: str) -> pb.Workspace:
        return (await self.stub.CreateWorkspace(pb.CreateWorkspaceRequest(name=name))).workspace

    async def get(self, name: str) -> pb.Workspace:
        return (await self.stub.GetWorkspace(pb.GetWorkspaceRequest(name=name))).workspace

    async def write(
        self, name: str, files: Mapping[str, bytes], *, remove: Iterable[str] = (), expected_head: str = ""
    ) -> task_pb2.SnapshotRef:
        """Write whole files as one version."""

        async def messages() -> AsyncIterator[pb.WriteFilesRequest]:
            yield pb.WriteFilesRequest(header=pb.WriteHeader(workspace=name, expected_head=expected_head))
            for path in remove:
                yield pb.WriteFilesRequest(remove=path)
            for path, content in files.items():
                yield pb.WriteFilesRequest(file=pb.FileHeader(path=path))
                for start in range(0, len(content), PIECE):
                    yield pb.WriteFilesRequest(data=content[start : start + PIECE])

        return (await self.stub.WriteFiles(messages())).snapshot

    async def upload(
        self, name: str, archive: bytes, *, replace: bool = False, expected_head: str = "", piece: int = PIECE
    ) -> task_pb2.SnapshotRef:
        """Upload an archive in pieces."""

        async def messages() -> AsyncIterator[pb.UploadArchiveRequest]:
            header = pb.ArchiveHeader(workspace=name, replace=replace, expected_head=expected_head)
            yield pb.UploadArchiveRequest(header=header)
            for start in range(0, len(archive), piece):
                yield pb.UploadArchiveRequest(data=archive[start : start + piece])

        return (await self.stub.UploadArchive(messages())).snapshot

    async def read(self, name: str, path: str, *, snapshot: str = "", offset: int = 0, length: int = 0) -> bytes:
        request = pb.ReadFileRequest(workspace=name, snapshot_id=snapshot, path=path, offset=offset, length=length)
        return b"".join([response.data async for response in self.stub.ReadFile(request)])

    async def download(self, name: str, *, snapshot: str = "") -> bytes:
        request = pb.DownloadArchiveRequest(workspace=name, snapshot_id=snapshot)
        return b"".join([response.data async for response in self.stub.DownloadArchive(request)])

    async def files(self, name: str, path: str = "", *, recursive: bool = True, snapshot: str = "") -> list[pb.File]:
        """All pages of a listing."""
        request = pb.ListFilesRequest(workspace=name, snapshot_id=snapshot, path=path, recursive=recursive)
        found: list[pb.File] = []
        while True:
            page = await self.stub.ListFiles(request)
            found += page.files
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def contents(self, name: str) -> dict[str, bytes]:
        """Every name of a regular file of the head, as an ordinary tar reader sees its archive."""
        with tarfile.open(fileobj=io.BytesIO(await self.download(name))) as archive:
            return {
                member.name: opened.read()
                for member in archive
                if (member.isfile() or member.islnk()) and (opened := archive.extractfile(member)) is not None
            }


class WatchedEngine(SnapshotEngine):
    """An engine that tells when no tree is in use."""

    def __init__(self, objects: ObjectStore, trees: Path, limits: TreeLimits) -> None:
        super().__init__(objects, trees, SystemClock(), limits=limits)
        self._changed = asyncio.Condition()
        self._in_use = 0
        self._released = 0

    async def checkout(self, *args: Any, **kwargs: Any) -> Tree:
        tree = await super().checkout(*args, **kwargs)
        self._in_use += 1
        return tree

    async def release(self, tenant: str, tree: Tree, committed: SnapshotPointer | None) -> None:
        await super().release(tenant, tree, committed)
        async with self._changed:
            self._in_use -= 1
            self._released += 1
            self._changed.notify_all()

    async def finished(self, count: int) -> None:
        """Wait until `count` trees were released since the beginning."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._released >= count)

    async def idle(self) -> None:
        """Wait until every tree that was checked out is released."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._in_use == 0)


class WorkspaceStack:
    """Service, stores and users of one test.

    Attributes:
        rounds: retention and garbage collection, as the service does them; nothing but a test starts any.
    """

    def __init__(
        self, folder: Path, kv: KeyValue, objects: ObjectStore, engine: WatchedEngine, rounds: Rounds, address: str
    ) -> None:
        self.folder = folder
        self.kv = kv
        self.objects = objects
        self.engine = engine
        self.rounds = rounds
        self.address = address
        self.closing = contextlib.AsyncExitStack()

    def user(self, tenant: str = "acme", *, role: str = "user") -> User:
        """A client with a token of `tenant`."""
        channel = open_channel(self.address, None, Minter(self.folder / "dev.key").mint(tenant, [role], 600))
        self.closing.push_async_callback(channel.close)
        return User(channel)

    async def writers(self) -> list[str]:
        """Writer keys that are held."""
        return [entry.key for entry in (await self.kv.range(keys.WRITERS)).entries]

    async def held(self) -> None:
        """Wait until somebody holds a writer key."""
        listed = await self.kv.range(keys.WRITERS)
        if not listed.entries:
            async with contextlib.aclosing(self.kv.watch(keys.WRITERS, listed.revision)) as batches:
                while not (await anext(batches)).events:
                    pass

    async def quiet(self) -> None:
        """Wait until no writer key is held and no tree is in use."""
        listed = await self.kv.range(keys.WRITERS)
        if listed.entries:
            async with contextlib.aclosing(self.kv.watch(keys.WRITERS, listed.revision)) as batches:
                async for batch in batches:
                    if batch.events and not await self.writers():
                        break
        await self.engine.idle()

    async def trees(self) -> list[str]:
        """Trees in use, and those that did not go when they should have."""
        await self.engine.settled()
        trees = self.folder / "trees"
        return [path.name for part in ("live", "trash") for path in (trees / part).iterdir()]


def rounds_over(
    kv: KeyValue,
    objects: ObjectStore,
    clock: Clock,
    *,
    retention: Retention = KEPT,
    grace: float = 86_400.0,
    metrics: GarbageMetrics | None = None,
) -> Rounds:
    """Retention and garbage collection over these stores, as one replica has them."""
    census = CoordinationCensus(kv, clock)
    return Rounds(
        census,
        census,
        objects,
        Thinner(census, clock, retention),
        Collector(census, objects, StoredPackLists(objects), BundleArchive(objects), clock, grace=grace),
        clock,
        metrics or GarbageMetrics(clock, CollectorRegistry()),
        uploads=objects if isinstance(objects, StaleUploads) else None,
        interval=3600.0,
        grace=grace,
    )


@contextlib.asynccontextmanager
async def workspace_service(
    folder: Path,
    kv: KeyValue,
    objects: ObjectStore,
    *,
    limits: TreeLimits | None = None,
    patience: float = 30.0,
    clock: Clock | None = None,
    retention: Retention = KEPT,
    grace: float = 86_400.0,
) -> AsyncIterator[WorkspaceStack]:
    """Serve until the block ends. `clock` is that of leases, times and the grace."""
    limits = limits or TreeLimits()
    folder.mkdir(parents=True, exist_ok=True)
    write_development_key(folder / "dev.key")
    engine = WatchedEngine(objects, folder / "trees", limits)
    threads = TreeThreads(8)
    clock = clock or SystemClock()
    registry = CoordinationRegistry(kv, clock)
    rounds = rounds_over(kv, objects, clock, retention=retention, grace=grace)
    census = CoordinationCensus(kv, clock)
    servicer = WorkspaceServicer(
        Workspaces(registry),
        Browser(registry, engine),
        Writer(registry, engine, threads, limits),
        Artifacts(census, objects, ProtoArtifactLists(), BundleStore(objects)),
        rounds,
        Undertaker(census, census, objects, engine),
        limits,
        patience=patience,
    )
    server = RpcServer(ServerSettings(listen="127.0.0.1:0"), Authenticator([folder / "dev.key"]), clock=SystemClock())
    server.add(SERVICE, workspace_pb2_grpc.add_WorkspaceServiceServicer_to_server, servicer)
    stack = WorkspaceStack(folder, kv, objects, engine, rounds, await server.start())
    try:
        yield stack
    finally:
        await stack.closing.aclose()
        await server.stop(0)
        threads.close()
        engine.close()
