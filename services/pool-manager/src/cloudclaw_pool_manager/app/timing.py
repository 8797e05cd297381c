"""Waiting for an event or a time, by the injected clock."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from cloudclaw.clock import Clock


async def wait_until(event: asyncio.Event, clock: Clock, seconds: float) -> bool:
    """Wait for `event`, at most `seconds`; answers whether it is set."""
    if event.is_set():
        return True
    waiter = asyncio.ensure_future(event.wait())
    timer = asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait((waiter, timer), return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel(waiter, timer)
    return event.is_set()


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they are over; their errors are dropped, as their results are.

    Asked again every second: a task that meets an error just as it is cancelled may take the error for a reason to
    try again.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=1.0)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # looked at, so that nobody reports it as forgotten


async def until(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` until it ends or `event` is set; answers whether the event ended it. Errors of `work` pass through."""
    task = asyncio.ensure_future(work)
    waiter = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((task, waiter), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return False
        return True
    finally:
        await cancel(task, waiter)
