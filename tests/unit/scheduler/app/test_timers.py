"""Calls at a time of the wall clock."""

from __future__ import annotations

import asyncio

from cloudclaw.clock import SystemClock
from cloudclaw_scheduler.app.timers import Timers
from tests.unit.scheduler.plane import until


class SetClock(SystemClock):
    """A wall clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def wall(self) -> float:
        return self.now


async def test_calls_come_in_the_order_of_their_times() -> None:
    timers = Timers(SystemClock())
    called: list[str] = []
    now = SystemClock().wall()
    timers.at(now + 0.06, lambda: called.append("late"))
    timers.at(now - 5, lambda: called.append("past"))
    work = asyncio.create_task(timers.run())
    timers.at(now + 0.02, lambda: called.append("soon"))
    await until("all were called", lambda: len(called) == 3)
    assert called == ["past", "soon", "late"]
    work.cancel()


async def test_a_clock_that_is_set_forward_is_noticed() -> None:
    clock = SetClock()
    timers = Timers(clock)
    called: list[str] = []
    timers.at(clock.now + 3600, lambda: called.append("x"))
    work = asyncio.create_task(timers.run())
    await asyncio.sleep(0)
    clock.now += 3601
    await until("it was called", lambda: called == ["x"], 3)
    work.cancel()


async def test_what_was_cleared_is_not_called() -> None:
    timers = Timers(SystemClock())
    called: list[str] = []
    now = SystemClock().wall()
    timers.at(now, lambda: called.append("cleared"))
    timers.clear()
    timers.at(now, lambda: called.append("kept"))
    work = asyncio.create_task(timers.run())
    await until("one was called", lambda: bool(called))
    assert called == ["kept"]
    work.cancel()
