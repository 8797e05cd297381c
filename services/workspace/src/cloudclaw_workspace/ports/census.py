"""The `Census` port: all that refers to a tenant's objects."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cloudclaw.coordination.records import SnapshotPointer, SnapshotRecord, TaskRecord, WorkspaceRecord
from cloudclaw.coordination.transactions import Versioned
from cloudclaw_workspace.domain.garbage import TaskOutputs


@dataclass(frozen=True, slots=True)
class TaskSurvey:
    """A tenant's tasks, all at one revision.

    Attributes:
        pinned: ids of the snapshots that tasks which have not ended began from, in any attempt, or will go on from.
        uids: all attempts of tasks that have not ended.
        outputs: of the tasks that were asked for and have a record.
        unfinished: one task that has not ended, empty when there is none.
    """

    pinned: frozenset[str]
    uids: frozenset[str]
    outputs: Mapping[str, TaskOutputs]
    unfinished: str = ""


class Census(Protocol):
    """Read from the coordination store. Every call raises `UnavailableError` when that does not answer."""

    async def tenants(self) -> Sequence[str]:
        """Tenants that have a key, by name."""
        ...

    async def roots(self, tenant: str) -> tuple[Sequence[SnapshotPointer], Collection[str]]:
        """Every snapshot that something points to, and the uids of running attempts and users' operations, all at one
        revision."""
        ...

    async def survey(self, tenant: str, wanted: Callable[[str], bool]) -> TaskSurvey:
        """The tenant's tasks; outputs of those that are `wanted`."""
        ...

    async def workspaces(self, tenant: str) -> Sequence[Versioned[WorkspaceRecord]]:
        """All the tenant's workspaces, by name."""
        ...

    async def workspace(self, tenant: str, name: str) -> Versioned[WorkspaceRecord] | None:
        """One workspace; None when there is none."""
        ...

    async def snapshots_of(self, tenant: str, workspace: str) -> Sequence[SnapshotRecord]:
        """All snapshots of a workspace, oldest first."""
        ...

    async def delete_snapshots(self, tenant: str, workspace: Versioned[WorkspaceRecord], ids: Sequence[str]) -> None:
        """Remove snapshots from a workspace that is as it was when it was read, else `AbortedError`."""
        ...

    async def task(self, tenant: str, task: str) -> TaskRecord | None:
        """One task; None when it does not exist or was archived."""
        ...

    async def writers(self, tenant: str) -> Mapping[str, str]:
        """Who may write now, by workspace."""
        ...


class Tombs(Protocol):
    """Tenants that are being deleted. Errors as of `Census`."""

    async def bury(self, tenant: str) -> None:
        """From now on the tenant's submits and writes are refused. Once is enough; twice does no harm."""
        ...

    async def buried(self, tenant: str) -> bool:
        """Whether the tenant is being deleted."""
        ...

    async def exhume(self, tenant: str) -> None:
        """Take `bury` back."""
        ...

    async def delete_keys(self, tenant: str) -> int:
        """Remove the tenant's keys, the tombstone last; answers how many.

        `PreconditionError(reason="TENANT_BUSY")` while a task has not ended or somebody writes.
        """
        ...
