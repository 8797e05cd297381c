"""`BundleArchive`: what archived tasks refer to, out of the bundles of the history."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from cloudclaw.errors import DataLossError
from cloudclaw.history import bundles
from cloudclaw.history.bundles import ArchivedTask, BundleName
from cloudclaw.history.store import BundleStore, BytesLru
from cloudclaw.objects.port import ObjectStore
from cloudclaw_workspace.domain.outputs import Outputs

CACHE: Final = 32 * 1024 * 1024
"""Bytes of what bundles say that are kept from one round to the next: of about a million archived tasks, of which each
bundle is read once then. Above it the rounds read bundles again."""


class BundleArchive:
    """An `Archive`. A bundle never changes, so what one says is read once, and kept."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        # Its own: a round goes through all bundles, and would push out what others look at.
        self._bundles = BundleStore(objects)
        self._known: BytesLru[Outputs] = BytesLru(CACHE)

    async def outputs(self, tenant: str) -> Outputs:
        """What all archived tasks of the tenant refer to, with one bundle at a time in memory.

        Raises `NotFoundError` for a bundle that goes meanwhile, and `DataLossError` too for an object of the history
        that is no bundle of a kind that this release knows.
        """
        whole = Outputs()
        async for info in self._objects.list(bundles.prefix(tenant)):
            name = bundles.parse_name(info.name)
            if name is None:
                raise DataLossError(f"the history of {tenant!r} holds an object that is no bundle: {info.name}")
            whole.merge(await self._of(name))
        return whole

    async def _of(self, name: BundleName) -> Outputs:
        found = self._known.get(name)
        if found is None:
            rows = range(len(await self._bundles.index(name)))
            tasks = await self._bundles.tasks(name, rows)
            found = await asyncio.to_thread(_outputs_of, tasks.values())
            self._known.put(name, found, found.size)
        return found


def _outputs_of(tasks: Iterable[ArchivedTask]) -> Outputs:
    found = Outputs()
    for archived in tasks:
        found.add(archived.task.record)
    return found
