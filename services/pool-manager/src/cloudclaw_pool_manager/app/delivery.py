"""Bringing an attempt's outcome to the leader: reported by uid until there is a verdict (design rule 1)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from cloudclaw.clock import Clock
from cloudclaw.v1.scheduler_pb2 import AttemptReport
from cloudclaw_pool_manager.app import messages
from cloudclaw_pool_manager.app.logs import ShippedLog
from cloudclaw_pool_manager.app.runner import Link
from cloudclaw_pool_manager.app.timing import wait_until
from cloudclaw_pool_manager.domain.attempt import AttemptId
from cloudclaw_pool_manager.domain.outcome import Outcome, Verdict

RETRY_PAUSE: Final = 0.2
"""Seconds before a report whose verdict was RETRY is sent again."""


class Delivery:
    """One attempt's report.

    Attributes:
        report: what waits for a verdict, None before and after; the connection repeats it.
        sent_at: boot time of its last sending, 0 for never.
    """

    def __init__(self, attempt: AttemptId, link: Link, clock: Clock):
        self.report: AttemptReport | None = None
        self.sent_at = 0.0
        self._attempt = attempt
        self._link = link
        self._clock = clock
        self._fenced = asyncio.Event()
        self._verdict: asyncio.Future[Verdict] | None = None

    def decide(self, verdict: Verdict) -> None:
        """The leader's verdict."""
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
            self._link.report(self.report)

    async def run(self, outcome: Outcome, log: ShippedLog | None) -> Verdict:
        """COMMITTED; or FENCED, also when the fence came first."""
        try:
            while not self._fenced.is_set():
                if log is not None and log.final is not None:
                    outcome = replace(outcome, log_end=log.final)  # less than it was, when its spool was lost
                self.report = messages.report(self._attempt, outcome)
                self._verdict = asyncio.get_running_loop().create_future()
                self.again()
                verdict = await self._verdict
                if verdict is not Verdict.RETRY:
                    return verdict
                await wait_until(self._fenced, self._clock, RETRY_PAUSE)
        finally:
            self.report = None
        return Verdict.FENCED
