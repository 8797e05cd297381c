"""The end of a tenant: all its bytes, then all its keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import structlog

from cloudclaw.errors import PreconditionError
from cloudclaw.ids import check_name
from cloudclaw.objects.port import ObjectStore
from cloudclaw.snapshots.port import WorkspaceManager
from cloudclaw_workspace.app.collecting import remove_all
from cloudclaw_workspace.domain import names
from cloudclaw_workspace.ports.census import Census, Tombs

_BATCH: Final = 1000

_log = structlog.get_logger()


@dataclass(slots=True)
class Deletion:
    """What went."""

    objects: int = 0
    bytes: int = 0
    keys: int = 0


class Undertaker:
    """Deletes tenants.

    First the tombstone: while it is there the tenant can neither submit nor write. Then a look at who began before: a
    task that has not ended, or somebody who holds a writer key, may still store objects, so the deletion is refused and
    the tombstone taken back. Nothing of the tenant can begin behind that look, so what is listed then is all there is.
    Objects go first and keys last, the tombstone at the very end: a deletion that died half-way left it, and goes on
    when it is called again. What a writer that lost its lease, and does not know it yet, stores after that belongs to a
    tenant without keys; garbage collection removes it.
    """

    def __init__(self, census: Census, tombs: Tombs, objects: ObjectStore, manager: WorkspaceManager) -> None:
        self._census = census
        self._tombs = tombs
        self._objects = objects
        self._manager = manager

    async def delete(self, tenant: str) -> Deletion:
        """Remove the tenant. `PreconditionError(reason="TENANT_BUSY")` while a task of it has not ended or somebody
        writes; `UnavailableError` half-way: call it again. A tenant that has nothing is no error."""
        check_name(tenant, "tenant")
        await self._tombs.bury(tenant)
        busy = await self._busy(tenant)
        if busy:
            await self._tombs.exhume(tenant)
            raise PreconditionError(
                f"tenant {tenant!r} still works: {busy}; cancel its tasks and wait",
                subject=tenant,
                reason="TENANT_BUSY",
            )
        gone = Deletion()
        for prefix in names.everything(tenant):
            # Another deletion that was refused a moment ago may have taken the tombstone along.
            await self._tombs.bury(tenant)
            await self._empty(prefix, gone)
        await self._manager.forget(tenant)
        gone.keys = await self._tombs.delete_keys(tenant)
        _log.info("tenant deleted", tenant=tenant, objects=gone.objects, bytes=gone.bytes, keys=gone.keys)
        return gone

    async def _busy(self, tenant: str) -> str:
        """What is in the way; empty when nothing is."""
        survey = await self._census.survey(tenant, lambda _: False)
        if survey.unfinished:
            return f"{survey.unfinished} has not ended"
        for workspace, holder in (await self._census.writers(tenant)).items():
            return f"{holder} writes to workspace {workspace!r}"
        return ""

    async def _empty(self, prefix: str, gone: Deletion) -> None:
        batch: list[str] = []
        size = 0
        async for info in self._objects.list(prefix):
            batch.append(info.name)
            size += info.size
            if len(batch) == _BATCH:
                await self._remove(batch, size, gone)
                batch, size = [], 0
        await self._remove(batch, size, gone)

    async def _remove(self, batch: list[str], size: int, gone: Deletion) -> None:
        await remove_all(self._objects, batch)
        gone.objects += len(batch)
        gone.bytes += size
