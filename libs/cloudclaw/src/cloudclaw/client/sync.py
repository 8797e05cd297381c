"""The client for programs without asyncio: the same calls, run by a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Self, TypeVar

from cloudclaw.client.client import DEFAULT_PATIENCE, AsyncClient
from cloudclaw.client.pool import Pool
from cloudclaw.config import ClientTls
from cloudclaw.rpc.channel import Token
from cloudclaw.v1 import pool_manager_pb2, scheduler_pb2, task_pb2, workspace_pb2

T = TypeVar("T")


class _Loop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cloudclaw-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` answers or raises; an interrupt (Ctrl-C) cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """The items, one at a time; leaving the iteration early ends the stream."""
        try:
            while True:
                item = self.run(_next(items))
                if item is None:
                    return
                yield item
        finally:
            self.run(items.aclose())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _next(items: AsyncGenerator[T, None]) -> T | None:
    """The next item; None (which no stream of messages holds) at the end."""
    return await anext(items, None)


class Client:
    """CloudClaw without asyncio. Its methods are those of `AsyncClient`, with the same arguments and errors;
    streams are ordinary iterators. Use it as a context manager, or `close` it.

    Attributes:
        workspaces: the tenant's file trees.
    """

    def __init__(
        self,
        endpoint: str,
        token: Token,
        *,
        workspace_endpoint: str | None = None,
        tls: ClientTls | None = None,
        patience: float = DEFAULT_PATIENCE,
    ):
        """Prepare the client; arguments as for `AsyncClient`."""
        self._loop = _Loop()

        async def build() -> AsyncClient:
            return AsyncClient(endpoint, token, workspace_endpoint=workspace_endpoint, tls=tls, patience=patience)

        try:
            self._client = self._loop.run(build())
        except BaseException:
            self._loop.close()
            raise
        self.workspaces = SyncWorkspaces(self._loop, self._client)

    def submit(self, argv: Sequence[str] = (), **arguments: Any) -> task_pb2.Task:
        """Submit a task, and answer it; arguments as for `AsyncClient.submit`."""
        return self._loop.run(self._client.submit(argv, **arguments)).task

    def get(self, task_id: str) -> task_pb2.Task:
        """One task."""
        return self._loop.run(self._client.get(task_id))

    def list(
        self,
        *,
        states: Iterable[task_pb2.TaskState] = (),
        labels: Mapping[str, str] | None = None,
        workspace: str = "",
        create_after: datetime | None = None,
        create_before: datetime | None = None,
    ) -> Iterator[task_pb2.Task]:
        """The tenant's tasks, newest first."""
        tasks = self._client.list(
            states=states,
            labels=labels,
            workspace=workspace,
            create_after=create_after,
            create_before=create_before,
        )
        return self._loop.iterate(tasks)

    def cancel(self, task_id: str) -> task_pb2.Task:
        """Ask for a task's end."""
        return self._loop.run(self._client.cancel(task_id))

    def watch(self, *, task_id: str = "", after_revision: int = 0) -> Iterator[scheduler_pb2.WatchTasksResponse]:
        """Changes of tasks."""
        return self._loop.iterate(self._client.watch(task_id=task_id, after_revision=after_revision))

    def tail(
        self, task_id: str, *, attempt: int = 0, offset: int = 0, follow: bool = True
    ) -> Iterator[scheduler_pb2.TailLogsResponse]:
        """What a task wrote."""
        return self._loop.iterate(self._client.tail(task_id, attempt=attempt, offset=offset, follow=follow))

    def watch_events(
        self, task_id: str, *, from_sequence: int = 1, follow: bool = True
    ) -> Iterator[scheduler_pb2.RunEvent]:
        """What a task's agent does."""
        events = self._client.watch_events(task_id, from_sequence=from_sequence, follow=follow)
        return self._loop.iterate(events)

    def send_input(
        self, task_id: str, text: str = "", *, message_id: str = "", end: bool = False, delay: timedelta | None = None
    ) -> scheduler_pb2.SendInputResponse:
        """Send a message to a conversation."""
        return self._loop.run(self._client.send_input(task_id, text, message_id=message_id, end=end, delay=delay))

    def set_model_key(self, upstream: str, key: str) -> None:
        """Keep the tenant's key for a model endpoint."""
        self._loop.run(self._client.set_model_key(upstream, key))

    def list_model_keys(self) -> Sequence[scheduler_pb2.ModelKey]:
        """Which model endpoints the tenant has keys for."""
        return self._loop.run(self._client.list_model_keys())

    def delete_model_key(self, upstream: str) -> None:
        """Forget a key."""
        self._loop.run(self._client.delete_model_key(upstream))

    def wait(self, task_id: str) -> task_pb2.Task:
        """The task, once it has ended."""
        return self._loop.run(self._client.wait(task_id))

    def explain(self, task_id: str) -> scheduler_pb2.ExplainTaskResponse:
        """Why a task waits, and why its attempts ended."""
        return self._loop.run(self._client.explain(task_id))

    def result(self, task_id: str) -> task_pb2.Result:
        """How a task ended."""
        return self._loop.run(self._client.result(task_id))

    def results(
        self,
        consumer: str,
        *,
        visibility: timedelta | None = None,
        from_oldest: bool = False,
        max_outstanding: int = 0,
        drain: bool = False,
    ) -> Iterator[scheduler_pb2.StreamResultsResponse]:
        """Results as tasks end, each at least once; `ack` what has been dealt with."""
        results = self._client.results(
            consumer,
            visibility=visibility,
            from_oldest=from_oldest,
            max_outstanding=max_outstanding,
            drain=drain,
        )
        return self._loop.iterate(results)

    def ack(self, consumer: str, *receipts: str) -> Sequence[str]:
        """Acknowledge deliveries; answers the receipts that came too late."""
        return self._loop.run(self._client.ack(consumer, *receipts))

    def consumers(self) -> Sequence[scheduler_pb2.Consumer]:
        """Who consumes the tenant's results."""
        return self._loop.run(self._client.consumers.list())

    def delete_consumer(self, consumer: str) -> None:
        """Forget a consumer and where it stands."""
        self._loop.run(self._client.consumers.delete(consumer))

    def checkpoint(self, task_id: str) -> scheduler_pb2.CheckpointTaskResponse:
        """Take a checkpoint of a running task now."""
        return self._loop.run(self._client.checkpoint(task_id))

    def status(self) -> scheduler_pb2.GetClusterStatusResponse:
        """Leader, pools, queue lengths."""
        return self._loop.run(self._client.status())

    def slots(self, node_endpoint: str, pool: str = "") -> Iterator[pool_manager_pb2.Slot]:
        """The slots of one node, for operators."""
        return self._loop.iterate(self._pool(node_endpoint).slots(pool))

    def drain(self, node_endpoint: str, *, hand_over: bool = False) -> int:
        """Let a node take no new work; answers how many attempts still run."""
        return self._loop.run(self._pool(node_endpoint).drain(hand_over=hand_over))

    def undrain(self, node_endpoint: str) -> None:
        """Let a node take work again."""
        self._loop.run(self._pool(node_endpoint).undrain())

    def _pool(self, node_endpoint: str) -> Pool:
        """The node's service; made in the loop, to which its connection belongs."""

        async def make() -> Pool:
            return self._client.pool(node_endpoint)

        return self._loop.run(make())

    def close(self) -> None:
        """Close the connections and end the thread."""
        self._loop.run(self._client.close())
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SyncWorkspaces:
    """The workspaces of the tenant; methods as in `Workspaces`, files and archives as whole bytes."""

    def __init__(self, loop: _Loop, client: AsyncClient):
        self._loop = loop
        self._workspaces = client.workspaces

    def create(self, name: str, *, keep_last: int = 0, keep_daily: int = 0) -> workspace_pb2.Workspace:
        """Create an empty workspace."""
        return self._loop.run(self._workspaces.create(name, keep_last=keep_last, keep_daily=keep_daily))

    def update(self, name: str, *, keep_last: int = 0, keep_daily: int = 0) -> workspace_pb2.Workspace:
        """Say how many old versions are kept; 0 for the service's default."""
        return self._loop.run(self._workspaces.update(name, keep_last=keep_last, keep_daily=keep_daily))

    def get(self, name: str) -> workspace_pb2.Workspace:
        """One workspace."""
        return self._loop.run(self._workspaces.get(name))

    def list(self) -> Iterator[workspace_pb2.Workspace]:
        """All of them, by name."""
        return self._loop.iterate(self._workspaces.list())

    def delete(self, name: str) -> None:
        """Remove a workspace and its snapshots."""
        self._loop.run(self._workspaces.delete(name))

    def fork(self, source: str, name: str, *, snapshot_id: str = "") -> workspace_pb2.Workspace:
        """A new workspace from another."""
        return self._loop.run(self._workspaces.fork(source, name, snapshot_id=snapshot_id))

    def snapshots(self, workspace: str) -> Iterator[workspace_pb2.Snapshot]:
        """The versions of a workspace, newest first."""
        return self._loop.iterate(self._workspaces.snapshots(workspace))

    def diff(
        self, workspace: str, *, from_snapshot_id: str = "", to_snapshot_id: str = ""
    ) -> Iterator[task_pb2.ChangedFile]:
        """What differs between two versions."""
        return self._loop.iterate(
            self._workspaces.diff(workspace, from_snapshot_id=from_snapshot_id, to_snapshot_id=to_snapshot_id)
        )

    def restore(self, workspace: str, snapshot_id: str) -> workspace_pb2.Workspace:
        """Make an old version the head again."""
        return self._loop.run(self._workspaces.restore(workspace, snapshot_id))

    def list_files(
        self, workspace: str, path: str = "", *, snapshot_id: str = "", recursive: bool = False
    ) -> Iterator[workspace_pb2.File]:
        """Files below a directory."""
        return self._loop.iterate(
            self._workspaces.list_files(workspace, path, snapshot_id=snapshot_id, recursive=recursive)
        )

    def read_file(self, workspace: str, path: str, *, snapshot_id: str = "") -> bytes:
        """One file's content."""
        return b"".join(self._loop.iterate(self._workspaces.read_file(workspace, path, snapshot_id=snapshot_id)))

    def write_files(self, workspace: str, files: Mapping[str, bytes], **arguments: Any) -> task_pb2.SnapshotRef:
        """Write files as one new version; arguments as for `Workspaces.write_files`."""
        return self._loop.run(self._workspaces.write_files(workspace, files, **arguments))

    def upload_archive(
        self, workspace: str, archive: Iterable[bytes], *, replace: bool = False
    ) -> task_pb2.SnapshotRef:
        """Write a tar stream as one new version. `archive` is read in the client's thread, piece by piece."""

        async def pieces() -> AsyncGenerator[bytes, None]:
            for piece in archive:
                yield piece

        return self._loop.run(self._workspaces.upload_archive(workspace, pieces(), replace=replace))

    def download_archive(self, workspace: str, *, snapshot_id: str = "") -> Iterator[bytes]:
        """The whole tree as a tar stream, in pieces."""
        return self._loop.iterate(self._workspaces.download_archive(workspace, snapshot_id=snapshot_id))

    def download_artifact(self, task_id: str, path: str) -> Iterator[bytes]:
        """One artifact of a task's result, in pieces."""
        return self._loop.iterate(self._workspaces.download_artifact(task_id, path))

    def collect_garbage(self, tenant: str = "", *, dry_run: bool = False) -> Sequence[workspace_pb2.GarbageReport]:
        """For operators: remove what nothing refers to, of one tenant or of all."""
        return self._loop.run(self._workspaces.collect_garbage(tenant, dry_run=dry_run))

    def delete_tenant(self, tenant: str) -> workspace_pb2.DeleteTenantResponse:
        """For operators: remove a tenant with all its bytes."""
        return self._loop.run(self._workspaces.delete_tenant(tenant))
