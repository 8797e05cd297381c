"""Real subprocess tasks per second, everything durable, clients on the same cores."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from cloudclaw.v1 import scheduler_pb2, task_pb2
from tests.bench.report import Row
from tests.support.stack import ENDED, Stack

TASKS = 2000
CLIENTS = 16


async def measure(directory: Path) -> list[Row]:
    """One row: tasks per second from the first submit to the last end."""
    async with Stack(directory, nodes=1, slots=4) as stack:
        tenant = stack.tenant("bench")
        for _ in range(20):
            await tenant.wait(await tenant.submit("echo", "warm"))
        listed = await tenant.scheduler.ListTasks(scheduler_pb2.ListTasksRequest())
        left, failed = TASKS, 0

        async def watch() -> None:
            nonlocal left, failed
            request = scheduler_pb2.WatchTasksRequest(after_revision=listed.revision)
            async for response in tenant.scheduler.WatchTasks(request):
                if response.task.state in ENDED:
                    left -= 1
                    failed += response.task.state != task_pb2.TASK_STATE_SUCCEEDED
                    if left == 0:
                        return

        async def submit(count: int) -> None:
            for _ in range(count):
                await tenant.submit("echo", "hi")

        watching = asyncio.create_task(watch())
        start = time.perf_counter()
        await asyncio.gather(*(submit(TASKS // CLIENTS) for _ in range(CLIENTS)))
        submitted = time.perf_counter() - start
        await asyncio.wait_for(watching, 300)
        taken = time.perf_counter() - start
    assert failed == 0, f"{failed} of {TASKS} tasks failed"
    return [
        Row(
            "subprocess tasks per second, isolated and durable", TASKS / taken, "/s", budget=278, at_least=True,
            note=f"{TASKS} tasks on 4 slots; submitted at {TASKS / submitted:.0f}/s",
        )
    ]  # fmt: skip
