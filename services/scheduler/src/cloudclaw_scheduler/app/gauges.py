"""Keeps the gauges current: they are sampled, since counting them at each change would cost more."""

from __future__ import annotations

from collections import Counter
from typing import Final

from cloudclaw.clock import Clock
from cloudclaw_scheduler.app.leader import Leader
from cloudclaw_scheduler.app.metrics import Metrics
from cloudclaw_scheduler.app.mirror import Mirror

SAMPLE_EVERY: Final = 5.0


class Sampler:
    """Samples the mirror and the term."""

    def __init__(self, mirror: Mirror, leader: Leader, metrics: Metrics, clock: Clock) -> None:
        self._mirror = mirror
        self._leader = leader
        self._metrics = metrics
        self._clock = clock

    async def run(self) -> None:
        """Sample for ever."""
        while True:
            self.sample()
            await self._clock.sleep(SAMPLE_EVERY)

    def sample(self) -> None:
        """Set every gauge to what is now."""
        state, metrics, term = self._mirror.state, self._metrics, self._leader.term
        by_pool: Counter[str] = Counter()
        metrics.tenant_queued.clear()
        for (pool, tenant), count in state.queued_by.items():
            by_pool[pool] += count
            metrics.tenant_queued.labels(pool, tenant).set(count)
        for pool in {*state.pools, *by_pool}:
            metrics.queued.labels(pool).set(by_pool[pool])
        metrics.delayed.set(len(state.delayed) - len(state.parked))
        metrics.waiting_for_input.set(len(state.parked))
        metrics.running.set(len(state.running))
        metrics.parked.set(term.dispatcher.parked if term else 0)
        metrics.nodes.set(len(term.links) if term else 0)
        metrics.log_pending.set(term.hub.pending if term else 0)
        metrics.mirror_revision.set(state.revision)
