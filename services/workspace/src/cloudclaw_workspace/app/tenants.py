"""The end of a tenant: all its bytes, then all its keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import structlog

from cloudclaw.coordination.records import TombstoneRecord
from cloudclaw.coordination.transactions import Versioned
from cloudclaw.errors import AbortedError, PreconditionError
from cloudclaw.ids import check_name
from cloudclaw.objects.port import ObjectStore
from cloudclaw.snapshots.port import WorkspaceManager
from cloudclaw_workspace.app.collecting import remove_all
from cloudclaw_workspace.domain import names
from cloudclaw_workspace.ports.census import Census, Tombs

EXHUMED: Final = "TENANT_EXHUMED"
"""Reason of the refusal of what needs a tombstone that is gone."""

_BATCH: Final = 1000
_TRIES: Final = 10

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
    the tombstone taken back. Else it is sealed. Nothing of the tenant can begin behind that look, so what is listed
    then is all there is. Objects go first and keys last, the tombstone at the very end: a deletion that died half-way
    left it, and goes on when it is called again. What a writer that was cut off stores later is nobody's; garbage
    collection removes it.

    Several calls at once do no harm. A refused one takes back only a tombstone that is not sealed, and then the others,
    which cannot seal it any more, look again behind a new one. Once it is sealed only the last transaction of a
    deletion takes it away: so objects that were listed, after which it was still there, are those of the tenant that
    was buried, and none of one that was made anew under its name.
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
        tombstone = await self._seal(tenant)
        gone = Deletion()
        try:
            for prefix in names.everything(tenant):
                await self._empty(tenant, tombstone, prefix, gone)
            await self._manager.forget(tenant)
            gone.keys = await self._tombs.delete_keys(tenant, tombstone)
        except AbortedError as error:
            if error.reason != EXHUMED:
                raise
            # A sealed tombstone goes with the last key: another call has come to the end.
            _log.info("tenant deleted by another call", tenant=tenant, objects=gone.objects, bytes=gone.bytes)
            return gone
        _log.info("tenant deleted", tenant=tenant, objects=gone.objects, bytes=gone.bytes, keys=gone.keys)
        return gone

    async def _seal(self, tenant: str) -> Versioned[TombstoneRecord]:
        """The tombstone, behind which nothing of the tenant works, and which stays."""
        for _ in range(_TRIES - 1):
            try:
                return await self._look(tenant)
            except AbortedError as error:
                if error.reason != EXHUMED:
                    raise
        return await self._look(tenant)

    async def _look(self, tenant: str) -> Versioned[TombstoneRecord]:
        tombstone = await self._tombs.bury(tenant)
        busy = await self._busy(tenant)
        if busy:
            # Not when another call has sealed it meanwhile: then the tenant's work is over by now, and so is it.
            await self._tombs.exhume(tenant)
            raise PreconditionError(
                f"tenant {tenant!r} still works: {busy}; cancel its tasks and wait",
                subject=tenant,
                reason="TENANT_BUSY",
            )
        await self._tombs.seal(tenant, tombstone)
        return tombstone

    async def _busy(self, tenant: str) -> str:
        """What is in the way; empty when nothing is."""
        survey = await self._census.survey(tenant)
        if survey.unfinished:
            return f"{survey.unfinished} has not ended"
        for workspace, holder in (await self._census.writers(tenant)).items():
            return f"{holder} writes to workspace {workspace!r}"
        return ""

    async def _empty(self, tenant: str, tombstone: Versioned[TombstoneRecord], prefix: str, gone: Deletion) -> None:
        batch: list[str] = []
        size = 0
        async for info in self._objects.list(prefix):
            batch.append(info.name)
            size += info.size
            if len(batch) == _BATCH:
                await self._remove(tenant, tombstone, batch, gone)
                gone.bytes += size
                batch, size = [], 0
        if batch:
            await self._remove(tenant, tombstone, batch, gone)
            gone.bytes += size

    async def _remove(
        self, tenant: str, tombstone: Versioned[TombstoneRecord], batch: list[str], gone: Deletion
    ) -> None:
        # After they were listed: so they are of the tenant that was buried.
        if not await self._tombs.sealed(tenant, tombstone):
            raise AbortedError(f"tenant {tenant!r} was deleted by another call", reason=EXHUMED)
        await remove_all(self._objects, batch)
        gone.objects += len(batch)
