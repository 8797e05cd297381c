"""From the kill of a whole node to its task's first output elsewhere."""

from __future__ import annotations

import time
from pathlib import Path

from cloudclaw.v1 import scheduler_pb2
from tests.bench.report import Row, percentile
from tests.support.processes import kill
from tests.support.stack import Stack

STACKS = 2
NODES = 6


async def measure(directory: Path) -> list[Row]:
    """One row: p95 over ten kills."""
    taken = []
    for number in range(STACKS):
        async with Stack(directory / str(number), nodes=NODES, slots=1, restart=False) as stack:
            tenant = stack.tenant("bench")
            for _ in range(NODES - 1):
                # A task of its own for each kill: one that loses node after node waits its backoff in between.
                task_id = await tenant.shell("while :; do echo $CLAW_ATTEMPT; sleep 0.02; done")
                await tenant.wait_output(task_id, b"1\n", attempt=1)
                pids = await stack.node_pids((await tenant.get(task_id)).attempts[-1].node)
                start = time.perf_counter()
                kill(*pids)
                await tenant.wait_output(task_id, b"2\n", attempt=2)
                taken.append(time.perf_counter() - start)
                await tenant.scheduler.CancelTask(scheduler_pb2.CancelTaskRequest(task_id=task_id))
                await tenant.wait(task_id)
    return [
        Row(
            "node killed → its task's output elsewhere, p95", percentile(taken, 0.95), "s", budget=5,
            note=f"{len(taken)} kills; p50 {percentile(taken, 0.5):.2f} s, most of it the grace of 3 s",
        )
    ]  # fmt: skip
