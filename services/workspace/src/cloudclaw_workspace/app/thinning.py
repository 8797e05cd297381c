"""Retention: removing the snapshots that a workspace keeps no longer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination.records import WorkspaceRecord
from cloudclaw.coordination.transactions import Versioned
from cloudclaw.errors import AbortedError
from cloudclaw_workspace.domain.retention import Retention, Version, surplus
from cloudclaw_workspace.ports.census import Census

_TRIES: Final = 10

_log = structlog.get_logger()


class Thinner:
    """Applies the retention of every workspace of a tenant. Only names go; their objects are garbage then."""

    def __init__(self, census: Census, clock: Clock, default: Retention) -> None:
        """`default`: for workspaces that say nothing themselves."""
        self._census = census
        self._clock = clock
        self._default = default

    async def thin(self, tenant: str, *, dry_run: bool) -> int:
        """Remove what is beyond retention, and what workspaces left that are gone; answers how many snapshots (or
        would, in a dry run).

        Snapshots are listed before it is asked which of them tasks need: a checkpoint that is listed is then needed
        still, or its key is gone with the transaction that superseded it. A task that is claimed later begins from a
        head, which is none of those that go: an old snapshot never becomes the head again under its own id. So a
        workspace that is written meanwhile is only read again, for the guard; one that is always written waits for the
        next round.
        """
        workspaces = await self._census.workspaces(tenant)
        count = await self._orphans(tenant, workspaces, dry_run=dry_run)
        over: list[tuple[Versioned[WorkspaceRecord], list[Version]]] = []
        for workspace in workspaces:
            versions = await self._versions(tenant, workspace.record)
            if self._surplus(workspace.record, versions, ()):
                over.append((workspace, versions))
        if not over:
            return count
        pinned = (await self._census.survey(tenant)).pinned
        for workspace, versions in over:
            going = self._surplus(workspace.record, versions, pinned)
            if going and (dry_run or await self._delete(tenant, workspace, going)):
                count += len(going)
        return count

    async def _orphans(self, tenant: str, workspaces: Sequence[Versioned[WorkspaceRecord]], *, dry_run: bool) -> int:
        """Snapshots of workspaces that are gone. One that is made meanwhile keeps what it has: by a guard, and since
        its making removed what was left."""
        present = {workspace.record.name for workspace in workspaces}
        count = 0
        for name in await self._census.listed_workspaces(tenant):
            if name in present:
                continue
            if dry_run:
                count += len(await self._census.snapshots_of(tenant, name))
            elif (gone := await self._census.delete_orphans(tenant, name)) is not None:
                _log.info("snapshots of a deleted workspace removed", tenant=tenant, workspace=name, count=gone)
                count += gone
        return count

    async def _versions(self, tenant: str, workspace: WorkspaceRecord) -> list[Version]:
        return [
            Version(record.pointer.id, record.created, record.head)
            for record in await self._census.snapshots_of(tenant, workspace.name)
        ]

    def _surplus(self, workspace: WorkspaceRecord, versions: Sequence[Version], pinned: Collection[str]) -> list[str]:
        return surplus(
            versions,
            head=workspace.head.id if workspace.head is not None else "",
            pinned=pinned,
            retention=Retention(workspace.keep_last, workspace.keep_daily).over(self._default),
            now=self._clock.wall(),
        )

    async def _delete(self, tenant: str, workspace: Versioned[WorkspaceRecord], going: list[str]) -> bool:
        name = workspace.record.name
        current: Versioned[WorkspaceRecord] | None = workspace
        for _ in range(_TRIES):
            if current is None or _settings(current.record) != _settings(workspace.record):
                break
            try:
                await self._census.delete_snapshots(tenant, current, going)
            except AbortedError:
                current = await self._census.workspace(tenant, name)
                continue
            _log.info("old snapshots removed", tenant=tenant, workspace=name, count=len(going))
            return True
        _log.info("the workspace changed; its retention waits", tenant=tenant, workspace=name)
        return False


def _settings(workspace: WorkspaceRecord) -> tuple[float, int, int]:
    """What decides with its snapshots' ages about them; another creation time is another workspace of that name."""
    return workspace.created, workspace.keep_last, workspace.keep_daily
