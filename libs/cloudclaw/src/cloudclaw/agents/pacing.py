"""Parsing what tasks print, without holding up an event loop: whoever prints much waits, and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from cloudclaw.clock import Clock

PIECE: Final = 16 << 10
"""Bytes that are parsed before others get their turn."""
SHARE: Final = 0.25
"""Of an event loop's time, for all that print much together."""
QUIET: Final = 0.01
"""Of its time, for one that never waits; agents at work need a tenth of it."""
SPARE: Final = 0.05
"""Seconds of parsing at once that cost nobody a wait."""
_AT_ONCE: Final = 0.002
"""Seconds of work between two turns of others."""


class Pace:
    """Of one event loop.

    Each reader has a `Turn`. One that has parsed more than a little waits its turn: all those together get `SHARE` of
    the time. An agent that prints what agents print never waits, whatever others do.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._free_at = 0.0

    def turn(self) -> Turn:
        """Of a new reader."""
        return Turn(self)

    def book(self, spent: float) -> float:
        """Account for `spent` seconds of work; seconds to wait before the next."""
        now = self.clock.boottime()
        self._free_at = max(self._free_at, now) + spent * (1 / SHARE - 1)
        return self._free_at - now


class Turn:
    """One reader's."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._spent = self._since = 0.0
        self._at = pace.clock.boottime()

    def now(self) -> float:
        """For measuring what is spent."""
        return self._pace.clock.boottime()

    async def rest(self, spent: float) -> None:
        """Let others work, after `spent` seconds of work."""
        now = self.now()
        self._spent = max(0.0, self._spent - (now - self._at) * QUIET) + spent
        self._at = now
        self._since += spent
        if self._spent > SPARE:
            await self._pace.clock.sleep(self._pace.book(spent))
        elif self._since >= _AT_ONCE:
            await asyncio.sleep(0)
        else:
            return
        self._since = 0.0


def pieces(data: bytes) -> Iterator[bytes]:
    """`data` in pieces of at most `PIECE` bytes."""
    return (data[begin : begin + PIECE] for begin in range(0, len(data), PIECE))
