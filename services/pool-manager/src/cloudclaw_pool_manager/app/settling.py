"""Waits, after each of an agent's turns, until the agent has written down what it keeps of it.

Agents tell a turn first and write it a little later. A checkpoint between the two would hold the turn's files and not
the turn, which is then done twice. Where the agent's files show a turn, they are looked at until they do; where they do
not, a time is waited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from cloudclaw.clock import Clock
from cloudclaw_pool_manager.ports.runtime import Trace

LOOK: Final = 0.02
"""Seconds between two looks at an agent's files."""


class Files(Protocol):
    """The attempt's, as they are now."""

    async def shows(self, trace: Trace) -> bool:
        """They do."""
        ...


class Settling:
    """Of one attempt. Nothing but `run` blocks.

    Args:
        settled: called when a turn is written down, as far as can be told.
    """

    def __init__(self, clock: Clock, files: Files, settled: Callable[[], None]):
        self._clock = clock
        self._files = files
        self._settled = settled
        self._until = float("inf")
        self._trace: Trace | None = None
        self._changed = asyncio.Event()

    @property
    def pending(self) -> bool:
        """A turn is complete, and not yet written down."""
        return self._until != float("inf")

    def turned(self, within: float, trace: Trace | None) -> None:
        """A turn is complete. It is written down as soon as the files show `trace`, and after `within` seconds in any
        case."""
        if within <= 0:
            self._settled()
            return
        self._until = self._clock.boottime() + within
        self._trace = trace
        self._changed.set()

    def moved_on(self) -> None:
        """The next turn has begun: it is too late for the one before."""
        self._until, self._trace = float("inf"), None

    def tick(self) -> None:
        """Look at the clock."""
        if self._until <= self._clock.boottime():
            self._end()

    async def run(self) -> None:
        """Look at the files while a turn is pending; until cancelled."""
        while True:
            trace = self._trace
            if trace is None:
                self._changed.clear()
                await self._changed.wait()
            elif not await self._files.shows(trace):
                await self._clock.sleep(LOOK)
            elif trace is self._trace:  # and it has not moved on meanwhile
                self._end()

    def _end(self) -> None:
        self.moved_on()
        self._settled()
