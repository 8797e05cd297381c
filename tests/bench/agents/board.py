"""The latest state of many tenants' tasks, kept by watches."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from cloudclaw.v1 import scheduler_pb2, task_pb2
from tests.support.stack import ENDED, Tenant


class Board:
    """Attributes: tasks: by id, as last heard of."""

    def __init__(self) -> None:
        self.tasks: dict[str, task_pb2.Task] = {}
        self._changed = asyncio.Event()

    async def until(self, wanted: Callable[[dict[str, task_pb2.Task]], bool], within: float) -> None:
        """Return as soon as the tasks are as wanted."""
        async with asyncio.timeout(within):
            while not wanted(self.tasks):
                self._changed.clear()
                await self._changed.wait()

    async def ended(self, count: int, within: float) -> list[task_pb2.Task]:
        """So many tasks, once they have ended. Fails when one did not succeed."""
        await self.until(lambda tasks: sum(task.state in ENDED for task in tasks.values()) == count, within)
        failed = [t for t in self.tasks.values() if t.state != task_pb2.TASK_STATE_SUCCEEDED]
        assert not failed, f"{len(failed)} of {count} tasks failed: {failed[0]}"
        return list(self.tasks.values())

    async def _follow(self, tenant: Tenant, revision: int) -> None:
        request = scheduler_pb2.WatchTasksRequest(after_revision=revision)
        async for response in tenant.scheduler.WatchTasks(request):
            self.tasks[response.task.task_id] = response.task
            self._changed.set()


@contextlib.asynccontextmanager
async def watching(tenants: Sequence[Tenant]) -> AsyncIterator[Board]:
    """A board of all that these tenants submit from now on."""
    board = Board()
    revisions = [(await t.scheduler.ListTasks(scheduler_pb2.ListTasksRequest())).revision for t in tenants]
    following = [
        asyncio.create_task(board._follow(tenant, revision))
        for tenant, revision in zip(tenants, revisions, strict=True)
    ]
    try:
        yield board
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
