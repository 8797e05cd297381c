"""Keeps an agent waiting in the idle slots of a pool, so that a task finds it started."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.errors import CloudClawError
from cloudclaw_pool_manager.app.runner import Template
from cloudclaw_pool_manager.app.slots import SlotEntry
from cloudclaw_pool_manager.domain.slot import SlotState
from cloudclaw_pool_manager.ports.backend import FencedIncarnationError, SlotFailedError
from cloudclaw_pool_manager.ports.runtime import AgentAdapter, Warmth

_log = structlog.get_logger()

TRIES: Final = 3
"""Failures in a row, over all slots and with no task in between, after which a pool stays cold for a while."""
PAUSE: Final = 60.0
"""Seconds of that while."""


class Warmer:
    """Warms the slots of one pool with one agent, once its probe has found that it can run."""

    def __init__(self, template: Template, agent: AgentAdapter, clock: Clock):
        self._clock = clock
        self._slots = template.slots
        self._agent = agent
        self._limits = template.limits
        self._readiness = template.readiness
        self._failures = 0
        self._busy: set[str] = set()
        self._started: set[str] = set()

    async def run(self) -> None:
        """Until cancelled; returns at once when the agent cannot wait warm here."""
        warmth = self._agent.warmth()
        if warmth is None:
            _log.info("this agent cannot wait warm", pool=self._slots.name, runtime=self._agent.name)
            return
        if warmth.memory_bytes > self._limits.memory_bytes:
            _log.warning(
                "the pool's limit of memory is too low to keep its agent warm",
                pool=self._slots.name,
                runtime=self._agent.name,
                needs=warmth.memory_bytes,
                limit=self._limits.memory_bytes,
            )
            return
        changed = asyncio.Event()
        self._slots.changed.append(changed)
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    changed.clear()
                    for entry in self._slots.entries:
                        self._look(entry)
                    if self._failures >= TRIES:
                        _log.error("agents do not stay warm; slots stay cold for now", pool=self._slots.name)
                        await self._clock.sleep(PAUSE)
                        self._failures = 0
                    for entry in self._slots.entries:
                        if self._cold(entry):
                            self._busy.add(entry.name)
                            group.create_task(self._warm(entry, warmth, changed))
                    await changed.wait()
        finally:
            self._slots.changed.remove(changed)

    def _look(self, entry: SlotEntry) -> None:
        """What became of a program that was started; one that waits may still fail."""
        if entry.name not in self._started or entry.name in self._busy:
            return
        if entry.state is SlotState.ASSIGNED:
            self._started.discard(entry.name)
            self._failures = 0
        elif entry.state is not SlotState.IDLE:
            self._started.discard(entry.name)
        elif entry.cold_because:
            self._started.discard(entry.name)
            self._failures += 1
            _log.warning(
                "an agent does not wait warm", pool=self._slots.name, slot=entry.name, error=entry.cold_because
            )

    def _cold(self, entry: SlotEntry) -> bool:
        idle = entry.state is SlotState.IDLE and entry.occupant is None and entry.sandbox_ready
        cold = not entry.warm or bool(entry.cold_because)
        return idle and cold and entry.name not in self._busy | self._started and self._ready()

    def _ready(self) -> bool:
        found = self._readiness.get(self._agent.name)
        return found is not None and found.ready

    async def _warm(self, entry: SlotEntry, warmth: Warmth, changed: asyncio.Event) -> None:
        try:
            await entry.occupied().warm(warmth.launch, self._limits, warmth.ready)
        except (SlotFailedError, FencedIncarnationError, CloudClawError) as error:
            if entry.occupant is None and entry.state is SlotState.IDLE:  # otherwise a task came first
                self._failures += 1
                _log.warning("a slot could not be warmed", slot=entry.name, error=str(error))
        else:
            self._started.add(entry.name)
        finally:
            self._busy.discard(entry.name)
            changed.set()
