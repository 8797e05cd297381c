"""When a node counts as silent (rule 4), in on-time ticks of the leader's own clock.

A leader that was stopped itself (a tick that comes late by `LATE` or more) has seen nothing: it starts every count
anew. So a leader stopped for five seconds and continued requeues nothing. This spares work; what makes a requeue safe
is the node's own deadline and the guard on its key, whatever the leader's ticks did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

PERIOD: Final = 0.25
"""Seconds between two ticks."""
LATE: Final = 1.0
"""Seconds that a tick may be late: more than a busy machine costs, less than a stop that hides a node's heartbeats."""
SILENCE: Final = 1.5
"""Seconds without a heartbeat after which a node is suspected though its stream is open."""
GRACE: Final = 3.0
"""Seconds that a suspected node has to come back or to touch its key."""


def ticks(seconds: float, period: float = PERIOD) -> int:
    """So many whole on-time ticks cover at least `seconds`."""
    return math.ceil(seconds / period)


class TickClock:
    """Tells on-time ticks from late ones."""

    def __init__(self, now: float, period: float = PERIOD) -> None:
        self._last = now
        self._period = period

    def tick(self, now: float) -> bool:
        """Whether this tick came less than `LATE` after its time."""
        on_time = now - self._last < self._period + LATE
        self._last = now
        return on_time


@dataclass(slots=True)
class Suspicion:
    """A node being waited for. `version` is the mod revision of its key when it was last read, 0 when absent, and
    -1 while it has not been read in this wait."""

    version: int = -1
    waited: int = 0

    def seen(self, version: int) -> None:
        """Its key was read: the wait begins."""
        self.version, self.waited = version, 0

    def tick(self, on_time: bool, version: int, needed: int) -> bool:
        """One more tick, with the key's version as the mirror shows it. True when the wait is over.

        A node that touched its key is alive, only cut off from the leader: the wait starts anew.
        """
        if self.version < 0:
            return False
        if not on_time or version > self.version:
            self.seen(max(version, self.version))
            return False
        self.waited += 1
        return self.waited >= needed
