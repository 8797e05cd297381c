"""The workspaces themselves: create, list, fork, delete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from cloudclaw.coordination.records import SnapshotPointer, WorkspaceRecord
from cloudclaw.ids import check_name, check_opaque_id, new_id
from cloudclaw_workspace.app.browsing import Page
from cloudclaw_workspace.domain import paging
from cloudclaw_workspace.domain.retention import DEFAULT, Retention
from cloudclaw_workspace.ports.registry import Registry


@dataclass(frozen=True, slots=True)
class View:
    """A workspace, and who may write to it now."""

    record: WorkspaceRecord
    writer: str = ""


class Workspaces:
    """A tenant's workspaces. `NotFoundError` for what is not there, or another's."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def create(self, tenant: str, name: str, retention: Retention = DEFAULT) -> View:
        """A new, empty workspace. `AlreadyExistsError`."""
        return View(await self._registry.create(tenant, check_name(name, "name"), None, retention=retention))

    async def set_retention(self, tenant: str, name: str, retention: Retention) -> View:
        """Change how many snapshots a workspace keeps, from the next round on."""
        record = await self._registry.set_retention(tenant, check_name(name, "name"), retention)
        return View(record, await self._registry.writer(tenant, name))

    async def get(self, tenant: str, name: str) -> View:
        """One workspace."""
        workspace = await self._registry.get(tenant, check_name(name, "name"))
        return View(workspace.record, await self._registry.writer(tenant, name))

    async def list(self, tenant: str, page: Page) -> tuple[Sequence[View], str]:
        """Workspaces by name, and the next page's token."""
        scope = ("workspaces", tenant)
        cursor = paging.decode(scope, page.token, 1)
        after = check_name(cursor[0], "page_token") if cursor else ""
        found, more = await self._registry.list(tenant, after, page.size)
        writers = await self._registry.writers(tenant) if found else {}
        token = paging.encode(scope, (found[-1].name,)) if more else ""
        return [View(record, writers.get(record.name, "")) for record in found], token

    async def delete(self, tenant: str, name: str) -> None:
        """Remove a workspace and its snapshots. `PreconditionError` while a writer holds it."""
        await self._registry.delete(tenant, check_name(name, "name"))

    async def fork(self, tenant: str, source: str, snapshot_id: str, name: str) -> View:
        """A new workspace whose head is another's (or one of its snapshots): the manifest is shared, nothing copied.

        It takes on nothing but the files: its retention is the service's default.
        """
        check_name(source, "source")
        check_name(name, "name")
        if snapshot_id:
            check_opaque_id(snapshot_id, "snapshot_id")
            origin: SnapshotPointer | None = (await self._registry.snapshot(tenant, source, snapshot_id)).pointer
        else:
            origin = (await self._registry.get(tenant, source)).record.head
        if origin is None:
            return View(await self._registry.create(tenant, name, None))
        head = replace(origin, id=new_id("snap"), parent="")
        return View(await self._registry.create(tenant, name, head, source=(source, origin.id)))
