"""What the pool-manager is told without asking."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from cloudclaw.clock import Clock
from cloudclaw_gateway.domain.use import LimitKind, Use

PAUSE: Final = 0.5
"""Seconds between two messages about one attempt's use."""

Send = Callable[[dict[str, Any]], None]


class Pushes:
    """Tells uses, gathered over half a second, and limits at once.

    Nothing is kept for a manager that is away: at its next hello it attaches everything, and each attempt's use and
    reached limits are told again.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._send: Send | None = None

    def connect(self, send: Send | None) -> None:
        """Tell `send` from now on."""
        self._send = send

    def use(self, uid: str) -> None:
        """The attempt's use changed."""
        self._changed[uid] = None
        self._wake.set()

    def limit(self, uid: str, kind: LimitKind, message: str) -> None:
        """The attempt reached a limit."""
        if self._send is not None:
            self._send({"limit": {"uid": uid, "kind": str(kind), "message": message}})

    def forget(self, uid: str) -> None:
        """The attempt is gone."""
        self._changed.pop(uid, None)

    def flush(self, read: Callable[[str], Use]) -> None:
        """Tell every use that changed."""
        self._wake.clear()
        changed, self._changed = self._changed, {}
        if self._send is not None:
            for uid in changed:
                self._send({"use": {"uid": uid, **asdict(read(uid))}})

    async def run(self, read: Callable[[str], Use]) -> None:
        """Tell uses as they change, until cancelled."""
        while True:
            await self._wake.wait()
            self.flush(read)
            await self._clock.sleep(PAUSE)
