"""A replica's long-running work, beside its calls: mirror, election, samples. In one task group."""

from __future__ import annotations

import asyncio

from cloudclaw.coordination.election import Election
from cloudclaw_scheduler.app.gauges import Sampler
from cloudclaw_scheduler.app.leader import Leader
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.submit import Fullness


class Control:
    """Runs until it is cancelled; then it has resigned."""

    def __init__(
        self, mirror: Mirror, election: Election, leader: Leader, fullness: Fullness, sampler: Sampler
    ) -> None:
        self._mirror = mirror
        self._election = election
        self._leader = leader
        self._fullness = fullness
        self._sampler = sampler

    async def run(self) -> None:
        """Follow etcd, campaign, and lead when elected."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._mirror.run())
            await self._mirror.loaded.wait()
            group.create_task(self._fullness.run())
            group.create_task(self._sampler.run())
            group.create_task(self._election.run(self._leader.lead))
