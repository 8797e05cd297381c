"""Things that are due at a time of the wall clock: backoffs and queue timeouts. Timers, never safety (design §5)."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import Callable
from typing import Final

from cloudclaw.clock import Clock

GLANCE: Final = 1.0
"""Seconds after which the clock is looked at again in any case, since it may have been set."""


class Timers:
    """A heap of calls by time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._sooner = asyncio.Event()

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Call `call`, which must not block, at `when` (wall clock seconds), at once when that has passed."""
        heapq.heappush(self._heap, (when, next(self._order), call))
        if self._heap[0][2] is call:
            self._sooner.set()

    def clear(self) -> None:
        """Forget all."""
        self._heap.clear()

    async def run(self) -> None:
        """Make the calls when they are due, for ever."""
        while True:
            now = self._clock.wall()
            while self._heap and self._heap[0][0] <= now:
                heapq.heappop(self._heap)[2]()
            self._sooner.clear()
            pause = min(GLANCE, self._heap[0][0] - self._clock.wall()) if self._heap else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause if pause is None else max(0.0, pause)):
                    await self._sooner.wait()
