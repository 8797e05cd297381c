"""Submit on an empty queue, and on a very long one."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tests.bench.report import Row, percentile
from tests.support.stack import Stack, Tenant

SAMPLES = 500
CLIENTS = 32


async def measure(directory: Path, queued: int) -> list[Row]:
    """Rows for the p99 of submit, and the ratio of the two."""
    async with Stack(directory, nodes=1, slots=1) as stack:
        tenant = stack.tenant("bench")
        blocker = await tenant.shell("echo up; sleep 3600")
        await tenant.wait_output(blocker, b"up\n")
        await _submits(tenant, 50)
        empty = percentile(await _submits(tenant, SAMPLES), 0.99)
        start = time.perf_counter()

        async def fill(count: int) -> None:
            for _ in range(count):
                await tenant.submit("true")

        await asyncio.gather(*(fill(queued // CLIENTS) for _ in range(CLIENTS)))
        rate = queued / (time.perf_counter() - start)
        full = percentile(await _submits(tenant, SAMPLES), 0.99)
    return [
        Row("submit on an empty queue, p99", empty, "ms"),
        Row(
            f"submit with {queued:,} queued, p99, against empty", full / empty, "×", budget=1.5,
            note=f"{full:.2f} ms; filled at {rate:.0f}/s",
        ),
    ]  # fmt: skip


async def _submits(tenant: Tenant, count: int) -> list[float]:
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        await tenant.submit("true")
        taken.append((time.perf_counter() - start) * 1000)
    return taken
