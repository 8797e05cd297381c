"""Trees of tenants that are gone, on this host."""

from __future__ import annotations

import structlog

from cloudclaw.clock import Clock
from cloudclaw.errors import CloudClawError
from cloudclaw.snapshots.port import WorkspaceManager
from cloudclaw_workspace.ports.census import Census

_log = structlog.get_logger()


class Shelves:
    """Forgets the trees that lie ready here of tenants without any key.

    A deletion forgets those of the replica that does it. Others, and trees that a write put back later whose tenant was
    deleted beneath it, are for this: every replica runs it, not just the one that collects garbage.
    """

    def __init__(self, census: Census, manager: WorkspaceManager, clock: Clock, *, interval: float) -> None:
        """`interval`: seconds between two looks of `run`."""
        self._census = census
        self._manager = manager
        self._clock = clock
        self._interval = interval

    async def run(self) -> None:
        """Look for ever. Failures are logged: the next look tries again."""
        while True:
            await self._clock.sleep(self._interval)
            try:
                await self.clear()
            except (CloudClawError, OSError) as error:
                _log.warning("trees of deleted tenants stay for now", error=str(error))

    async def clear(self) -> None:
        """Look now. The keys are read after the trees were listed: whose tree lies ready had a key before. Raises
        `UnavailableError`, `OSError`."""
        here = {tenant for tenant, _ in self._manager.cached()}
        if not here:
            return
        for tenant in sorted(here.difference(await self._census.tenants())):
            await self._manager.forget(tenant)
            _log.info("trees of a deleted tenant removed", tenant=tenant)
