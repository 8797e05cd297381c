"""Work that nobody waits for, at the end of its term."""

from __future__ import annotations

import asyncio
import inspect

from cloudclaw_scheduler.app.spawner import Spawner


async def work() -> None:
    await asyncio.Event().wait()


async def test_work_of_a_term_that_ends_at_once_is_closed() -> None:
    late = work()
    group = asyncio.TaskGroup()
    async with group:
        leader = group.create_task(asyncio.Event().wait())
        Spawner(group).spawn(late)
        for task in asyncio.all_tasks() - {asyncio.current_task(), leader}:
            task.cancel()  # before its first step
        leader.cancel()
    assert inspect.getcoroutinestate(late) == inspect.CORO_CLOSED


async def test_work_after_the_end_of_a_term_is_closed() -> None:
    late = work()
    async with asyncio.TaskGroup() as group:
        spawner = Spawner(group)
    spawner.spawn(late)
    assert inspect.getcoroutinestate(late) == inspect.CORO_CLOSED
