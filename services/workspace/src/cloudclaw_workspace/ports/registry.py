"""The `Registry` port: which workspaces and snapshots there are, and who may write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from cloudclaw.coordination.records import SnapshotPointer, SnapshotRecord, WorkspaceRecord
from cloudclaw.coordination.transactions import Versioned
from cloudclaw_workspace.domain.retention import DEFAULT, Retention


class Registry(Protocol):
    """Workspaces by tenant and name. Another tenant's are not there. Every call raises `UnavailableError` when the
    coordination store does not answer."""

    async def create(
        self,
        tenant: str,
        name: str,
        head: SnapshotPointer | None,
        *,
        retention: Retention = DEFAULT,
        source: tuple[str, str] | None = None,
    ) -> WorkspaceRecord:
        """A new workspace with `head`. `AlreadyExistsError`.

        `source`: workspace and id of the snapshot that `head` shares a manifest with. The transaction guards that it is
        still there (`NotFoundError`), so that its objects cannot have been collected.
        """
        ...

    async def set_retention(self, tenant: str, name: str, retention: Retention) -> WorkspaceRecord:
        """Change how many snapshots are kept. `NotFoundError`; `AbortedError` when it changed all the time."""
        ...

    async def get(self, tenant: str, name: str) -> Versioned[WorkspaceRecord]:
        """The workspace now. `NotFoundError`."""
        ...

    async def list(self, tenant: str, after: str, limit: int) -> tuple[Sequence[WorkspaceRecord], bool]:
        """Up to `limit` workspaces by name, after `after`, and whether there are more."""
        ...

    async def writer(self, tenant: str, name: str) -> str:
        """Who may write now: a task, or `user:<operation>`; empty when nobody."""
        ...

    async def writers(self, tenant: str) -> Mapping[str, str]:
        """As `writer`, of all the tenant's workspaces that have one."""
        ...

    async def delete(self, tenant: str, name: str) -> None:
        """Remove a workspace with its snapshots' names. `NotFoundError`, `PreconditionError(reason="WRITER_BUSY")`."""
        ...

    async def snapshot(self, tenant: str, name: str, snapshot_id: str) -> SnapshotRecord:
        """One snapshot. `NotFoundError`."""
        ...

    async def snapshots(
        self, tenant: str, name: str, before: int, limit: int
    ) -> tuple[Sequence[tuple[int, SnapshotRecord]], bool]:
        """Up to `limit` snapshots with their revisions, newest first, older than revision `before` (0: all), and
        whether there are more."""
        ...

    def writing(self, tenant: str, name: str, operation: str) -> AbstractAsyncContextManager[int]:
        """Hold the workspace's writer key on a lease of this process; gives its fencing token.

        The key goes at the end of the block, and when this process dies. `AbortedError(reason="WRITER_BUSY")`,
        `NotFoundError`; a lease that is lost meanwhile cancels the block and raises `FencedError`.
        """
        ...

    async def commit(
        self,
        tenant: str,
        workspace: Versioned[WorkspaceRecord],
        head: SnapshotPointer,
        operation: str,
        token: int,
        *,
        source: str = "",
    ) -> WorkspaceRecord:
        """Make `head` the next version, in one transaction that also gives the writer key back.

        Guarded by the token (`FencedError`) and by the workspace's head and generation being those of `workspace`
        (`AbortedError`). `source`: as for `create`, a snapshot of the same workspace.
        """
        ...
