"""Retention: removing the snapshots that a workspace keeps no longer."""

from __future__ import annotations

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination.records import WorkspaceRecord
from cloudclaw.coordination.transactions import Versioned
from cloudclaw.errors import AbortedError
from cloudclaw_workspace.domain.retention import Retention, Version, surplus
from cloudclaw_workspace.ports.census import Census

_log = structlog.get_logger()


class Thinner:
    """Applies the retention of every workspace of a tenant. Only names go; their objects are garbage then."""

    def __init__(self, census: Census, clock: Clock, default: Retention) -> None:
        """`default`: for workspaces that say nothing themselves."""
        self._census = census
        self._clock = clock
        self._default = default

    async def thin(self, tenant: str, *, dry_run: bool) -> int:
        """Remove what is beyond retention; answers how many snapshots (or would, in a dry run).

        A workspace that is written meanwhile is left for the next round: its head may be what was to go. Snapshots are
        listed before it is asked which of them tasks need: a checkpoint that is listed is then needed still, or its
        key is gone with the transaction that superseded it. A task that is claimed later begins from the head.
        """
        over: list[tuple[Versioned[WorkspaceRecord], list[str]]] = []
        for workspace in await self._census.workspaces(tenant):
            found = await self._surplus(tenant, workspace.record)
            if found:
                over.append((workspace, found))
        if not over:
            return 0
        pinned = (await self._census.survey(tenant, lambda _: False)).pinned
        count = 0
        for workspace, found in over:
            going = [snapshot for snapshot in found if snapshot not in pinned]
            if going and (dry_run or await self._delete(tenant, workspace, going)):
                count += len(going)
        return count

    async def _surplus(self, tenant: str, workspace: WorkspaceRecord) -> list[str]:
        versions = [
            Version(record.pointer.id, record.created)
            for record in await self._census.snapshots_of(tenant, workspace.name)
        ]
        return surplus(
            versions,
            head=workspace.head.id if workspace.head is not None else "",
            pinned=(),
            retention=Retention(workspace.keep_last, workspace.keep_daily).over(self._default),
            now=self._clock.wall(),
        )

    async def _delete(self, tenant: str, workspace: Versioned[WorkspaceRecord], going: list[str]) -> bool:
        try:
            await self._census.delete_snapshots(tenant, workspace, going)
        except AbortedError:
            _log.info("the workspace changed; its retention waits", tenant=tenant, workspace=workspace.record.name)
            return False
        _log.info("old snapshots removed", tenant=tenant, workspace=workspace.record.name, count=len(going))
        return True
