"""From the kill of a whole node to its task's first output elsewhere."""

from __future__ import annotations

import time
from pathlib import Path

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
            task_id = await tenant.shell(
                "while :; do echo $CLAW_ATTEMPT; sleep 0.02; done", retry={"max_attempts": NODES + 1}
            )
            for attempt in range(1, NODES):
                await tenant.wait_output(task_id, f"{attempt}\n".encode(), attempt=attempt)
                node = (await tenant.get(task_id)).attempts[-1].node
                pids = await stack.node_pids(node)
                start = time.perf_counter()
                kill(*pids)
                await tenant.wait_output(task_id, f"{attempt + 1}\n".encode(), attempt=attempt + 1)
                taken.append(time.perf_counter() - start)
    return [
        Row(
            "node killed → its task's output elsewhere, p95", percentile(taken, 0.95), "s", budget=5,
            note=f"{len(taken)} kills; p50 {percentile(taken, 0.5):.2f} s, most of it the grace of 3 s",
        )
    ]  # fmt: skip
