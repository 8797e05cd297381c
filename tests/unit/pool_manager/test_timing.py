"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
import contextlib

from cloudclaw_pool_manager.app.timing import cancel


async def test_a_task_that_loses_its_cancellation_is_asked_again() -> None:
    begun = asyncio.Event()

    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            begun.set()
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(stubborn())
    await begun.wait()
    await asyncio.wait_for(cancel(task), 10)
    assert task.cancelled()


async def test_the_errors_of_cancelled_tasks_are_dropped() -> None:
    async def failing() -> None:
        raise ValueError("dropped")

    task = asyncio.ensure_future(failing())
    await asyncio.wait([task])
    await cancel(task)
    assert isinstance(task.exception(), ValueError)
