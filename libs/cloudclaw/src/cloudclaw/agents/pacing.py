"""Parsing what tasks print, without holding up an event loop: whoever prints much waits, and nobody else."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from cloudclaw.clock import Clock

T = TypeVar("T")

PIECE: Final = 16 << 10
"""Bytes that are parsed before others get their turn."""
SHARE: Final = 0.25
"""Of an event loop's time, for all that print much together."""
QUIET: Final = 0.01
"""Of its time, for a tenant that never waits; an agent at work needs a tenth of it."""
SPARE: Final = 0.05
"""Seconds of parsing at once that cost nobody a wait."""
TENANTS: Final = 4096
"""That are remembered; one that is forgotten begins anew."""
_AT_ONCE: Final = 0.002
"""Seconds of work between two turns of others."""


class Pace:
    """Of one event loop.

    Each tenant has a `Turn`, which all its readers share. One that has parsed more than a little waits, and its readers
    go on one at a time, however many woke up; all such tenants together get `SHARE` of the time, each as much as the
    others. A tenant whose agents print what agents print never waits, whatever others do.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._free_at: dict[str, float] = {}
        self._turns: OrderedDict[str, Turn] = OrderedDict()

    def turn(self, tenant: str = "") -> Turn:
        """Of a tenant, for one more reader."""
        turn = self._turns.setdefault(tenant, Turn(self, tenant))
        self._turns.move_to_end(tenant)
        if len(self._turns) > TENANTS:
            self._turns.popitem(last=False)
        return turn

    def book(self, tenant: str, spent: float) -> None:
        """Account for `spent` seconds of work."""
        now = self.clock.boottime()
        busy = {other: at for other, at in self._free_at.items() if at > now or other == tenant}
        busy[tenant] = max(busy.get(tenant, now), now) + spent * (len(busy.keys() | {tenant}) / SHARE - 1)
        self._free_at = busy

    def wait(self, tenant: str) -> float:
        """Seconds until its next work."""
        return self._free_at.get(tenant, 0.0) - self.clock.boottime()


class Turn:
    """One tenant's."""

    def __init__(self, pace: Pace, tenant: str) -> None:
        self._pace = pace
        self._tenant = tenant
        self._spent = self._since = 0.0
        self._at = pace.clock.boottime()

    async def work(self, parse: Callable[[], T]) -> T:
        """What `parse` answers, called when it is this tenant's time; others work after it."""
        await self.ready()
        began = self._pace.clock.boottime()
        done = parse()
        await self.rest(self._pace.clock.boottime() - began)
        return done

    async def ready(self) -> None:
        """Wait until it is this tenant's time, and nobody else of it took it meanwhile."""
        while self._spent > SPARE and (wait := self._pace.wait(self._tenant)) > 0:
            await self._pace.clock.sleep(wait)

    async def rest(self, spent: float) -> None:
        """Let others work, after `spent` seconds of work."""
        now = self._pace.clock.boottime()
        self._spent = max(0.0, self._spent - (now - self._at) * QUIET) + spent
        self._at = now
        self._since += spent
        if self._spent > SPARE:
            self._pace.book(self._tenant, spent)
            await self.ready()
        elif self._since >= _AT_ONCE:
            await asyncio.sleep(0)
        else:
            return
        self._since = 0.0


def pieces(data: bytes) -> Iterator[bytes]:
    """`data` in pieces of at most `PIECE` bytes."""
    return (data[begin : begin + PIECE] for begin in range(0, len(data), PIECE))
