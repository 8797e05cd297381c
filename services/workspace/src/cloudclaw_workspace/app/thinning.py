"""Retention: removing the snapshots that a workspace keeps no longer."""

from __future__ import annotations

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
        """Remove what is beyond retention; answers how many snapshots (or would, in a dry run).

        Snapshots are listed before it is asked which of them tasks need: a checkpoint that is listed is then needed
        still, or its key is gone with the transaction that superseded it. A task that is claimed later begins from a
        head, which is none of those that go: an old snapshot never becomes the head again under its own id. So a
        workspace that is written meanwhile is only read again, for the guard; one that is always written waits for the
        next round.
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
