"""`cloudclaw.v1.WorkspaceService`: converts, calls, converts back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import structlog

from cloudclaw.errors import CloudClawError, InvalidArgumentError
from cloudclaw.ids import check_name
from cloudclaw.refs import ref_of
from cloudclaw.rpc.auth import caller, require_role
from cloudclaw.snapshots.port import TreeLimits
from cloudclaw.v1 import workspace_pb2 as pb
from cloudclaw.v1 import workspace_pb2_grpc
from cloudclaw_workspace.app.artifacts import Artifacts
from cloudclaw_workspace.app.browsing import Browser
from cloudclaw_workspace.app.feed import Feed
from cloudclaw_workspace.app.rounds import Rounds
from cloudclaw_workspace.app.tenants import Undertaker
from cloudclaw_workspace.app.upload import extract
from cloudclaw_workspace.app.workspaces import View, Workspaces
from cloudclaw_workspace.app.writing import Writer, apply_edits
from cloudclaw_workspace.server import convert

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = "cloudclaw.v1.WorkspaceService"

HEAR_OUT: Final = 10.0
"""Seconds that a client whose write was refused may go on sending."""

PAUSE: Final = 0.5
"""Seconds without a message after which it is told all the same."""

_log = structlog.get_logger()


class WorkspaceServicer(workspace_pb2_grpc.WorkspaceServiceServicer):
    """The tenant is the caller's, never the request's, but for what operators do to a tenant."""

    def __init__(
        self,
        workspaces: Workspaces,
        browser: Browser,
        writer: Writer,
        artifacts: Artifacts,
        rounds: Rounds,
        undertaker: Undertaker,
        limits: TreeLimits,
        *,
        patience: float,
    ) -> None:
        """`patience`: seconds that a write waits for the client's next message."""
        self._artifacts = artifacts
        self._rounds = rounds
        self._undertaker = undertaker
        self._workspaces = workspaces
        self._browser = browser
        self._writer = writer
        self._limits = limits
        self._patience = patience

    async def CreateWorkspace(self, request: pb.CreateWorkspaceRequest, context: Context) -> pb.CreateWorkspaceResponse:
        tenant = caller().tenant
        view = await self._workspaces.create(tenant, request.name, convert.retention(request.retention))
        return pb.CreateWorkspaceResponse(workspace=convert.workspace(tenant, view))

    async def GetWorkspace(self, request: pb.GetWorkspaceRequest, context: Context) -> pb.GetWorkspaceResponse:
        tenant = caller().tenant
        view = await self._workspaces.get(tenant, request.name)
        return pb.GetWorkspaceResponse(workspace=convert.workspace(tenant, view))

    async def ListWorkspaces(self, request: pb.ListWorkspacesRequest, context: Context) -> pb.ListWorkspacesResponse:
        tenant = caller().tenant
        views, token = await self._workspaces.list(tenant, convert.page(request.page_size, request.page_token))
        found = [convert.workspace(tenant, view) for view in views]
        return pb.ListWorkspacesResponse(workspaces=found, next_page_token=token)

    async def UpdateWorkspace(self, request: pb.UpdateWorkspaceRequest, context: Context) -> pb.UpdateWorkspaceResponse:
        tenant = caller().tenant
        if not request.HasField("retention"):
            raise InvalidArgumentError("say what to change", field="retention")
        view = await self._workspaces.set_retention(tenant, request.name, convert.retention(request.retention))
        return pb.UpdateWorkspaceResponse(workspace=convert.workspace(tenant, view))

    async def DeleteWorkspace(self, request: pb.DeleteWorkspaceRequest, context: Context) -> pb.DeleteWorkspaceResponse:
        await self._workspaces.delete(caller().tenant, request.name)
        return pb.DeleteWorkspaceResponse()

    async def ForkWorkspace(self, request: pb.ForkWorkspaceRequest, context: Context) -> pb.ForkWorkspaceResponse:
        tenant = caller().tenant
        view = await self._workspaces.fork(tenant, request.source, request.snapshot_id, request.name)
        return pb.ForkWorkspaceResponse(workspace=convert.workspace(tenant, view))

    async def ListSnapshots(self, request: pb.ListSnapshotsRequest, context: Context) -> pb.ListSnapshotsResponse:
        name = check_name(request.workspace, "workspace")
        page = convert.page(request.page_size, request.page_token)
        records, token = await self._browser.snapshots(caller().tenant, name, page)
        return pb.ListSnapshotsResponse(
            snapshots=[convert.snapshot(name, record) for record in records], next_page_token=token
        )

    async def GetSnapshot(self, request: pb.GetSnapshotRequest, context: Context) -> pb.GetSnapshotResponse:
        name = check_name(request.workspace, "workspace")
        record = await self._browser.snapshot(caller().tenant, name, request.snapshot_id)
        return pb.GetSnapshotResponse(snapshot=convert.snapshot(name, record))

    async def DiffSnapshots(self, request: pb.DiffSnapshotsRequest, context: Context) -> pb.DiffSnapshotsResponse:
        changes, token = await self._browser.diff(
            caller().tenant,
            check_name(request.workspace, "workspace"),
            request.from_snapshot_id,
            request.to_snapshot_id,
            convert.page(request.page_size, request.page_token),
        )
        return pb.DiffSnapshotsResponse(files=[convert.changed(change) for change in changes], next_page_token=token)

    async def RestoreSnapshot(self, request: pb.RestoreSnapshotRequest, context: Context) -> pb.RestoreSnapshotResponse:
        tenant = caller().tenant
        name = check_name(request.workspace, "workspace")
        await self._browser.snapshot(tenant, name, request.snapshot_id)
        record = await self._writer.restore(tenant, name, request.snapshot_id)
        return pb.RestoreSnapshotResponse(workspace=convert.workspace(tenant, View(record)))

    async def ListFiles(self, request: pb.ListFilesRequest, context: Context) -> pb.ListFilesResponse:
        entries, token = await self._browser.files(
            caller().tenant,
            check_name(request.workspace, "workspace"),
            request.snapshot_id,
            request.path,
            recursive=request.recursive,
            page=convert.page(request.page_size, request.page_token),
        )
        return pb.ListFilesResponse(files=[convert.file(entry) for entry in entries], next_page_token=token)

    async def ReadFile(self, request: pb.ReadFileRequest, context: Context) -> AsyncIterator[pb.ReadFileResponse]:
        name = check_name(request.workspace, "workspace")
        pieces = self._browser.read(
            caller().tenant, name, request.snapshot_id, request.path, request.offset, request.length
        )
        async for piece in pieces:
            yield pb.ReadFileResponse(data=piece)

    async def DownloadArchive(
        self, request: pb.DownloadArchiveRequest, context: Context
    ) -> AsyncIterator[pb.DownloadArchiveResponse]:
        name = check_name(request.workspace, "workspace")
        gathered = bytearray()
        async for piece in self._browser.archive(caller().tenant, name, request.snapshot_id):
            gathered += piece
            if len(gathered) >= convert.MAX_DATA:
                yield pb.DownloadArchiveResponse(data=bytes(gathered))
                gathered.clear()
        yield pb.DownloadArchiveResponse(data=bytes(gathered))

    async def WriteFiles(
        self, request_iterator: AsyncIterator[pb.WriteFilesRequest], context: Context
    ) -> pb.WriteFilesResponse:
        first = await anext(request_iterator, pb.WriteFilesRequest())
        if first.WhichOneof("message") != "header":
            raise InvalidArgumentError("the first message must be a header", field="header")
        async with _hearing_out(request_iterator):
            edits = Feed((convert.edit(request) async for request in request_iterator), patience=self._patience)
            pointer = await self._writer.write(
                caller().tenant,
                check_name(first.header.workspace, "workspace"),
                apply_edits(edits),
                expected_head=first.header.expected_head,
                on_cancel=edits.close,
            )
        return pb.WriteFilesResponse(snapshot=ref_of(pointer))

    async def UploadArchive(
        self, request_iterator: AsyncIterator[pb.UploadArchiveRequest], context: Context
    ) -> pb.UploadArchiveResponse:
        first = await anext(request_iterator, pb.UploadArchiveRequest())
        if first.WhichOneof("message") != "header":
            raise InvalidArgumentError("the first message must be a header", field="header")
        async with _hearing_out(request_iterator):
            chunks = Feed(_archive(request_iterator), patience=self._patience)
            pointer = await self._writer.write(
                caller().tenant,
                check_name(first.header.workspace, "workspace"),
                extract(chunks, self._limits, replace=first.header.replace),
                expected_head=first.header.expected_head,
                on_cancel=chunks.close,
            )
        return pb.UploadArchiveResponse(snapshot=ref_of(pointer))

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, context: Context
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        async for piece in self._artifacts.read(caller().tenant, request.task_id, request.path):
            yield pb.DownloadArtifactResponse(data=piece)

    async def CollectGarbage(self, request: pb.CollectGarbageRequest, context: Context) -> pb.CollectGarbageResponse:
        require_role("operator")
        reports = await self._rounds.collect(request.tenant, dry_run=request.dry_run)
        return pb.CollectGarbageResponse(reports=[convert.report(report) for report in reports])

    async def DeleteTenant(self, request: pb.DeleteTenantRequest, context: Context) -> pb.DeleteTenantResponse:
        require_role("operator")
        gone = await self._undertaker.delete(request.tenant)
        return pb.DeleteTenantResponse(objects_removed=gone.objects, bytes_removed=gone.bytes, keys_removed=gone.keys)


@asynccontextmanager
async def _hearing_out(requests: AsyncIterator[object]) -> AsyncIterator[None]:
    """When a write is refused, take what the client still sends, for a while, before it is told.

    A client that is cut off in the middle of a message may see a broken stream instead of the reason.
    """
    try:
        yield
    except CloudClawError as error:
        if error.reason not in ("CLIENT_GONE", "CLIENT_IDLE"):
            try:
                async with asyncio.timeout(HEAR_OUT):
                    while await asyncio.wait_for(anext(requests, None), PAUSE) is not None:
                        pass
            except (TimeoutError, CloudClawError):
                _log.info("a client went on sending what was refused", reason=error.reason)
        raise


async def _archive(requests: AsyncIterator[pb.UploadArchiveRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("message") != "data":
            raise InvalidArgumentError("after the header come only data", field="data")
        if request.data:
            yield convert.data(request.data)
