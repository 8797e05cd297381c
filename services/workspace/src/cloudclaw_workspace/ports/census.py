"""The `Census` port: all that refers to a tenant's objects."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cloudclaw.coordination.records import (
    SnapshotPointer,
    SnapshotRecord,
    TaskRecord,
    TombstoneRecord,
    WorkspaceRecord,
)
from cloudclaw.coordination.transactions import Versioned
from cloudclaw_workspace.domain.outputs import Outputs


@dataclass(frozen=True, slots=True)
class TaskSurvey:
    """A tenant's tasks, all at one revision.

    Attributes:
        pinned: ids of the snapshots that tasks which have not ended began from, in any attempt, or will go on from.
        uids: all attempts of tasks that have not ended.
        outputs: what the tasks' records say of objects; empty when that was not asked for.
        unfinished: one task that has not ended, empty when there is none.
    """

    pinned: frozenset[str]
    uids: frozenset[str]
    outputs: Outputs
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

    async def survey(self, tenant: str, *, outputs: bool = False) -> TaskSurvey:
        """The tenant's tasks, with their `outputs` if asked for."""
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

    async def listed_workspaces(self, tenant: str) -> Sequence[str]:
        """Names of workspaces that have snapshots; some may be gone."""
        ...

    async def delete_orphans(self, tenant: str, workspace: str) -> int | None:
        """Remove the snapshots of a workspace that is gone, and answer how many; None when it is there."""
        ...

    async def task(self, tenant: str, task: str) -> TaskRecord | None:
        """One task; None when it does not exist or was archived."""
        ...

    async def writers(self, tenant: str) -> Mapping[str, str]:
        """Who may write now, by workspace."""
        ...


class Tombs(Protocol):
    """Tenants that are being deleted. Errors as of `Census`."""

    async def bury(self, tenant: str) -> Versioned[TombstoneRecord]:
        """From now on the tenant's submits and writes are refused. A tombstone that is there stays; the answer."""
        ...

    async def buried(self, tenant: str) -> bool:
        """Whether the tenant is being deleted."""
        ...

    async def seal(self, tenant: str, tombstone: Versioned[TombstoneRecord]) -> None:
        """Nothing of the tenant was at work behind this tombstone: it stays now until the tenant is gone.
        `AbortedError(reason="TENANT_EXHUMED")` when it was taken back."""
        ...

    async def sealed(self, tenant: str, tombstone: Versioned[TombstoneRecord]) -> bool:
        """Whether this very tombstone is there, and sealed."""
        ...

    async def exhume(self, tenant: str) -> bool:
        """Take `bury` back, whoever did it. False when the tombstone is sealed, and stays."""
        ...

    async def delete_keys(self, tenant: str, tombstone: Versioned[TombstoneRecord]) -> int:
        """Remove the tenant's keys, the tombstone last; answers how many.

        `PreconditionError(reason="TENANT_BUSY")` while a task has not ended or somebody writes;
        `AbortedError(reason="TENANT_EXHUMED")` when this tombstone is gone.
        """
        ...
