"""Bringing a report to the leader: repeated by uid until there is a verdict (design rule 1)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from cloudclaw.clock import Clock
from cloudclaw.v1.scheduler_pb2 import AttemptReport, CheckpointReport
from cloudclaw_pool_manager.app.timing import wait_until
from cloudclaw_pool_manager.domain.outcome import Verdict

RETRY_PAUSE: Final = 0.2
"""Seconds before a report whose verdict was RETRY is sent again."""

Report = TypeVar("Report", AttemptReport, CheckpointReport)


class Delivery(Generic[Report]):
    """One attempt's reports of one kind, one after the other.

    Attributes:
        report: what waits for a verdict, None before and after; the connection repeats it.
        sent_at: boot time of its last sending, 0 for never.
    """

    def __init__(self, send: Callable[[Report], None], clock: Clock):
        self.report: Report | None = None
        self.sent_at = 0.0
        self._send: Callable[[Report], None] = send
        self._clock = clock
        self._fenced = asyncio.Event()
        self._verdict: asyncio.Future[Verdict] | None = None

    def decide(self, verdict: Verdict) -> None:
        """The leader's verdict on `report`."""
        if self._verdict is not None and not self._verdict.done():
            self._verdict.set_result(verdict)

    def fence(self) -> None:
        """The attempt is not this node's any more: wait for nothing."""
        self._fenced.set()
        self.decide(Verdict.FENCED)

    def again(self) -> None:
        """Send the report once more, if there is one."""
        if self.report is not None:
            self.sent_at = self._clock.boottime()
            self._send(self.report)

    def repeat(self, now: float, after: float) -> None:
        """Send it once more when it was last sent `after` seconds before `now` (boot time), or earlier."""
        if now - self.sent_at >= after:
            self.again()

    async def run(self, make: Callable[[], Report]) -> Verdict:
        """COMMITTED; or FENCED, also when the fence came first. `make` says what to report, before every try."""
        try:
            while not self._fenced.is_set():
                self.report = make()
                self._verdict = asyncio.get_running_loop().create_future()
                self.again()
                verdict = await self._verdict
                if verdict is not Verdict.RETRY:
                    return verdict
                await wait_until(self._fenced, self._clock, RETRY_PAUSE)
        finally:
            self.report = None
        return Verdict.FENCED
