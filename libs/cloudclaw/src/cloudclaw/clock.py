"""The only place that reads a clock. Everything else is handed a `Clock`."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Time as the rest of the code sees it.

    Clocks of different machines are never compared (design rule 3): wall time is for
    people and timers, `boottime` for deadlines within one machine.
    """

    def wall(self) -> float:
        """Seconds since the epoch, UTC. May jump."""
        ...

    def boottime(self) -> float:
        """Seconds of `CLOCK_BOOTTIME`: monotonic, and it counts while the machine sleeps."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""
        ...


class SystemClock:
    """The machine's own clock."""

    def wall(self) -> float:
        return time.time()

    def boottime(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
