"""A tenant's file trees."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Final

import grpc

from cloudclaw.client.retry import Patience
from cloudclaw.v1 import task_pb2, workspace_pb2_grpc
from cloudclaw.v1 import workspace_pb2 as pb

CALL_TIMEOUT: Final = 30.0
ROUND_TIMEOUT: Final = 3600.0
"""Seconds for what goes through all of a tenant's objects."""
PIECE: Final = 256 * 1024
"""Most bytes in one message of an upload."""


class Workspaces:
    """The workspaces of the tenant.

    What reads is retried while the service is away; what changes something is not, because a second try could not
    tell its own success from somebody else's. Names of workspaces that do not exist, or belong to another tenant,
    raise `NotFoundError`; writing while a task or another user writes raises `AbortedError(reason="WRITER_BUSY")`.
    """

    def __init__(self, channel: grpc.aio.Channel, patience: Patience):
        self._stub = workspace_pb2_grpc.WorkspaceServiceStub(channel)
        self._patience = patience

    async def create(self, name: str, *, keep_last: int = 0, keep_daily: int = 0) -> pb.Workspace:
        """Create an empty workspace; `keep_last` and `keep_daily` as for `update`. Raises `AlreadyExistsError`."""
        request = pb.CreateWorkspaceRequest(name=name)
        if keep_last or keep_daily:
            request.retention.CopyFrom(pb.Retention(keep_last=keep_last, keep_daily=keep_daily))
        return (await self._stub.CreateWorkspace(request, timeout=CALL_TIMEOUT)).workspace

    async def update(self, name: str, *, keep_last: int = 0, keep_daily: int = 0) -> pb.Workspace:
        """Keep the newest `keep_last` versions, and the newest of each of the last `keep_daily` days; 0 for the
        service's default. The head is always kept."""
        retention = pb.Retention(keep_last=keep_last, keep_daily=keep_daily)
        request = pb.UpdateWorkspaceRequest(name=name, retention=retention)
        return (await self._stub.UpdateWorkspace(request, timeout=CALL_TIMEOUT)).workspace

    async def get(self, name: str) -> pb.Workspace:
        """One workspace."""
        request = pb.GetWorkspaceRequest(name=name)
        return (await self._patience.call(lambda: self._stub.GetWorkspace(request, timeout=CALL_TIMEOUT))).workspace

    async def list(self, *, page_size: int = 0) -> AsyncGenerator[pb.Workspace, None]:
        """All workspaces of the tenant, by name."""
        request = pb.ListWorkspacesRequest(page_size=page_size)
        while True:
            page = await self._patience.call(lambda: self._stub.ListWorkspaces(request, timeout=CALL_TIMEOUT))
            for workspace in page.workspaces:
                yield workspace
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def delete(self, name: str) -> None:
        """Remove a workspace and its snapshots. Raises `PreconditionError` while somebody writes."""
        await self._stub.DeleteWorkspace(pb.DeleteWorkspaceRequest(name=name), timeout=CALL_TIMEOUT)

    async def fork(self, source: str, name: str, *, snapshot_id: str = "") -> pb.Workspace:
        """A new workspace `name` from the head of `source`, or from one of its snapshots. Raises
        `AlreadyExistsError`."""
        request = pb.ForkWorkspaceRequest(source=source, name=name, snapshot_id=snapshot_id)
        return (await self._stub.ForkWorkspace(request, timeout=CALL_TIMEOUT)).workspace

    async def snapshots(self, workspace: str, *, page_size: int = 0) -> AsyncGenerator[pb.Snapshot, None]:
        """The versions of a workspace, newest first."""
        request = pb.ListSnapshotsRequest(workspace=workspace, page_size=page_size)
        while True:
            page = await self._patience.call(lambda: self._stub.ListSnapshots(request, timeout=CALL_TIMEOUT))
            for snapshot in page.snapshots:
                yield snapshot
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def snapshot(self, workspace: str, snapshot_id: str) -> pb.Snapshot:
        """One version."""
        request = pb.GetSnapshotRequest(workspace=workspace, snapshot_id=snapshot_id)
        return (await self._patience.call(lambda: self._stub.GetSnapshot(request, timeout=CALL_TIMEOUT))).snapshot

    async def diff(
        self, workspace: str, *, from_snapshot_id: str = "", to_snapshot_id: str = "", page_size: int = 0
    ) -> AsyncGenerator[task_pb2.ChangedFile, None]:
        """What differs between two versions, by path; by default between the head and its parent."""
        request = pb.DiffSnapshotsRequest(
            workspace=workspace,
            from_snapshot_id=from_snapshot_id,
            to_snapshot_id=to_snapshot_id,
            page_size=page_size,
        )
        while True:
            page = await self._patience.call(lambda: self._stub.DiffSnapshots(request, timeout=CALL_TIMEOUT))
            for file in page.files:
                yield file
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def restore(self, workspace: str, snapshot_id: str) -> pb.Workspace:
        """Make an old version the head again, as a new version."""
        request = pb.RestoreSnapshotRequest(workspace=workspace, snapshot_id=snapshot_id)
        return (await self._stub.RestoreSnapshot(request, timeout=CALL_TIMEOUT)).workspace

    async def list_files(
        self, workspace: str, path: str = "", *, snapshot_id: str = "", recursive: bool = False, page_size: int = 0
    ) -> AsyncGenerator[pb.File, None]:
        """Files below a directory, by name. Raises `NotFoundError`, `InvalidArgumentError` for a path that is none."""
        request = pb.ListFilesRequest(
            workspace=workspace, snapshot_id=snapshot_id, path=path, recursive=recursive, page_size=page_size
        )
        while True:
            page = await self._patience.call(lambda: self._stub.ListFiles(request, timeout=CALL_TIMEOUT))
            for file in page.files:
                yield file
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def read_file(
        self, workspace: str, path: str, *, snapshot_id: str = "", offset: int = 0
    ) -> AsyncGenerator[bytes, None]:
        """One file's bytes from `offset`, in pieces; survives breaks of a named snapshot.

        Raises `NotFoundError`, `PreconditionError` for what is no regular file, `OutOfRangeError` past the end.
        """
        position = offset

        async def pieces() -> AsyncGenerator[bytes, None]:
            nonlocal position
            request = pb.ReadFileRequest(workspace=workspace, snapshot_id=snapshot_id, path=path, offset=position)
            call = self._stub.ReadFile(request)
            try:
                async for response in call:
                    position += len(response.data)
                    yield response.data
            finally:
                call.cancel()

        # Without a named snapshot the head may have moved: the rest could be another file's.
        patience = self._patience if snapshot_id else Patience(0)
        async with aclosing(patience.stream(pieces)) as stream:
            async for data in stream:
                yield data

    async def write_files(
        self,
        workspace: str,
        files: Mapping[str, bytes],
        *,
        remove: Iterable[str] = (),
        modes: Mapping[str, int] | None = None,
        expected_head: str = "",
    ) -> task_pb2.SnapshotRef:
        """Write files (path → content) and remove paths, as one new version.

        Raises `AbortedError` when `expected_head` is given and is not the head.
        """

        async def messages() -> AsyncGenerator[pb.WriteFilesRequest, None]:
            yield pb.WriteFilesRequest(header=pb.WriteHeader(workspace=workspace, expected_head=expected_head))
            for path in remove:
                yield pb.WriteFilesRequest(remove=path)
            for path, content in files.items():
                yield pb.WriteFilesRequest(file=pb.FileHeader(path=path, mode=(modes or {}).get(path, 0)))
                for start in range(0, len(content), PIECE):
                    yield pb.WriteFilesRequest(data=content[start : start + PIECE])

        return (await self._stub.WriteFiles(messages())).snapshot

    async def upload_archive(
        self, workspace: str, archive: AsyncIterator[bytes], *, replace: bool = False, expected_head: str = ""
    ) -> task_pb2.SnapshotRef:
        """Write a tar stream (plain, gzip or zstd) as one new version, over the tree or in its place."""

        async def messages() -> AsyncGenerator[pb.UploadArchiveRequest, None]:
            header = pb.ArchiveHeader(workspace=workspace, replace=replace, expected_head=expected_head)
            yield pb.UploadArchiveRequest(header=header)
            async for data in archive:
                for start in range(0, len(data), PIECE):
                    yield pb.UploadArchiveRequest(data=data[start : start + PIECE])

        return (await self._stub.UploadArchive(messages())).snapshot

    async def download_archive(self, workspace: str, *, snapshot_id: str = "") -> AsyncGenerator[bytes, None]:
        """The whole tree as a tar stream, in pieces."""
        request = pb.DownloadArchiveRequest(workspace=workspace, snapshot_id=snapshot_id)
        call = self._stub.DownloadArchive(request)
        try:
            async for response in call:
                yield response.data
        finally:
            call.cancel()

    async def download_artifact(self, task_id: str, path: str) -> AsyncGenerator[bytes, None]:
        """One artifact of a task's result, in pieces.

        Raises `NotFoundError`; `PreconditionError` while the task has not ended, and once it was archived;
        `DataLossError`, perhaps only after the last piece, when these are not the bytes that the task left.
        """
        request = pb.DownloadArtifactRequest(task_id=task_id, path=path)
        call = self._stub.DownloadArtifact(request)
        try:
            async for response in call:
                yield response.data
        finally:
            call.cancel()

    async def collect_garbage(self, tenant: str = "", *, dry_run: bool = False) -> Sequence[pb.GarbageReport]:
        """For operators: remove what nothing refers to, of one tenant or of all, and say what went (or would)."""
        request = pb.CollectGarbageRequest(tenant=tenant, dry_run=dry_run)
        return list((await self._stub.CollectGarbage(request, timeout=ROUND_TIMEOUT)).reports)

    async def delete_tenant(self, tenant: str) -> pb.DeleteTenantResponse:
        """For operators: remove a tenant with all its bytes. Raises `PreconditionError(reason="TENANT_BUSY")` while a
        task of it has not ended or somebody writes. After a break call it again: it goes on."""
        return await self._stub.DeleteTenant(pb.DeleteTenantRequest(tenant=tenant), timeout=ROUND_TIMEOUT)
