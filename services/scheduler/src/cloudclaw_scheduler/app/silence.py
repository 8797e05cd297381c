"""Watches the nodes by ticks, and requeues early what a silent one holds (rule 4). Leader only."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Entry, KeyValue
from cloudclaw.errors import UnavailableError
from cloudclaw_scheduler.app.links import Links, NodeLink
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.recovery import Recovery
from cloudclaw_scheduler.app.spawner import Spawner
from cloudclaw_scheduler.domain.silence import PERIOD, SILENCE, Suspicion, TickClock, ticks

_log = structlog.get_logger()

_SILENT_TICKS: Final = ticks(SILENCE)


class Silence:
    """Suspects a node whose stream broke in this term, or that sent no heartbeat for `SILENCE`."""

    def __init__(
        self,
        kv: KeyValue,
        mirror: Mirror,
        links: Links,
        recovery: Recovery,
        spawner: Spawner,
        clock: Clock,
        grace: float,
    ) -> None:
        self._kv = kv
        self._mirror = mirror
        self._links = links
        self._recovery = recovery
        self._spawner = spawner
        self._clock = clock
        self._needed = ticks(grace) + 1  # the first tick may come at once, and covers no time
        self._suspects: dict[str, Suspicion] = {}
        self._entries: dict[str, Entry] = {}
        self._requeues: dict[str, asyncio.Event] = {}

    def broken(self, node: str) -> None:
        """The node's stream broke, in this term."""
        suspicion = self._suspects[node] = Suspicion()
        self._spawner.spawn(self._look(node, suspicion))
        _log.warning("node disconnected", node=node)

    async def returned(self, node: str) -> None:
        """The node is back: it is not waited for any more. Returns when no requeue of its attempts is on its way, so
        that none happens after the node has heard from this leader again."""
        self.forget(node)
        while (requeue := self._requeues.get(node)) is not None:
            await requeue.wait()

    def forget(self, node: str) -> None:
        """Wait for it no more."""
        self._suspects.pop(node, None)
        self._entries.pop(node, None)

    async def run(self) -> None:
        """Tick for ever."""
        watch = TickClock(self._clock.boottime())
        while True:
            await self._clock.sleep(PERIOD)
            on_time = watch.tick(self._clock.boottime())
            if not on_time:
                _log.warning("this leader was stopped or slow; every wait starts anew")
            self._tick(on_time)

    def _tick(self, on_time: bool) -> None:
        for link in self._links:
            link.silent_ticks = link.silent_ticks + 1 if on_time else 0
            if link.silent_ticks >= _SILENT_TICKS:
                self._cut(link)
        for node, suspicion in tuple(self._suspects.items()):
            known = self._mirror.state.nodes.get(node)
            if known and node in self._entries and known.entry.mod_revision > self._entries[node].mod_revision:
                self._entries[node] = known.entry
            version = known.entry.mod_revision if known else 0
            if suspicion.tick(on_time, version, self._needed):
                suspicion.version = -1  # until the requeue is through
                self._spawner.spawn(self._requeue(node, suspicion, self._entries[node]))

    def _cut(self, link: NodeLink) -> None:
        _log.warning("node silent", node=link.node, seconds=SILENCE)
        error = UnavailableError("no heartbeat came; connect again", reason="NODE_SILENT", retry_after=0.2)
        if self._links.leave(link, error):
            self.broken(link.node)

    async def _look(self, node: str, suspicion: Suspicion) -> None:
        """Read the node's key (linearizable), and let the wait begin."""
        while self._suspects.get(node) is suspicion:
            try:
                entry = await self._kv.get(keys.node(node))
            except UnavailableError:
                await self._clock.sleep(PERIOD)
                continue
            if self._suspects.get(node) is not suspicion:
                return
            if entry is None:
                # Its lease is gone, and its attempts' keys with it: expiry takes over.
                self.forget(node)
                return
            self._entries[node] = entry
            suspicion.seen(entry.mod_revision)
            return

    async def _requeue(self, node: str, suspicion: Suspicion, entry: Entry) -> None:
        if self._suspects.get(node) is not suspicion:
            return
        finished = self._requeues[node] = asyncio.Event()
        try:
            done = await self._recovery.requeue_silent(node, entry, lambda: self._suspects.get(node) is suspicion)
        except UnavailableError as error:
            _log.warning("a silent node's attempts cannot be requeued yet", node=node, error=error.message)
            done = False
        finally:
            del self._requeues[node]
            finished.set()
        if self._suspects.get(node) is not suspicion:
            return
        if done:
            self.forget(node)
        else:
            await self._look(node, suspicion)
