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
from cloudclaw_pool_manager.app.timing import until, wait_until
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

    def __init__(self, attempt: AttemptId, link: Link, clock: Clock, fence: asyncio.Event):
        self.report: AttemptReport | None = None
        self.sent_at = 0.0
        self._attempt = attempt
        self._link = link
        self._clock = clock
        self._fence = fence
        self._verdicts: asyncio.Queue[Verdict] = asyncio.Queue()

    def decide(self, verdict: Verdict) -> None:
        """The leader's verdict."""
        self._verdicts.put_nowait(verdict)

    def again(self) -> None:
        """Send the report once more, if there is one."""
        if self.report is not None:
            self.sent_at = self._clock.boottime()
            self._link.report(self.report)

    async def log_sent(self, log: ShippedLog) -> None:
        """Wait for the log's last byte to be sent: before that, the leader could only wait for it. Or for the fence."""
        await until(self._fence, _set(log.end_sent))

    async def run(self, outcome: Outcome, log: ShippedLog | None) -> Verdict:
        """COMMITTED; or FENCED, also when the fence came first."""
        verdict: Verdict | None = Verdict.RETRY
        try:
            while verdict is Verdict.RETRY and not self._fence.is_set():
                if log is not None and log.final is not None:
                    outcome = replace(outcome, log_end=log.final)  # less than it was, when its spool was lost
                self.report = messages.report(self._attempt, outcome)
                self.again()
                verdict = await self._verdict()
                if verdict is Verdict.RETRY:
                    await wait_until(self._fence, self._clock, RETRY_PAUSE)
        finally:
            self.report = None
        return Verdict.COMMITTED if verdict is Verdict.COMMITTED else Verdict.FENCED

    async def _verdict(self) -> Verdict | None:
        """None when the fence came first."""
        found: list[Verdict] = []

        async def take() -> None:
            found.append(await self._verdicts.get())

        await until(self._fence, take())
        return found[0] if found else None


async def _set(event: asyncio.Event) -> None:
    await event.wait()
