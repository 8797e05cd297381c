"""A line's way from a process to those who follow its log, and how much one scheduler carries."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from cloudclaw.v1 import scheduler_pb2
from tests.bench.report import Row, percentile
from tests.support.stack import Stack, Tenant

LINES = 60
PAUSE = 0.1
LOUD = 4
LOUD_BYTES = 48 << 20

# Dash has no clock of its own, so each line starts `date`; the stamp is taken before the line is written.
_STAMPS = f"i=0; while [ $i -lt {LINES} ]; do date +%s%N; i=$((i + 1)); sleep {PAUSE}; done"


async def measure(directory: Path) -> list[Row]:
    """Rows for 1, 10 and 200 tails, and for bytes per second."""
    async with Stack(directory, nodes=1, slots=LOUD) as stack:
        tenant = stack.tenant("bench")
        await tenant.wait(await tenant.submit("echo", "warm"))
        rows = [await _latency(tenant, tails) for tails in (1, 10, 200)]
        return [*rows, await _throughput(tenant)]


async def _latency(tenant: Tenant, tails: int) -> Row:
    task_id = await tenant.shell(f"sleep 1; {_STAMPS}")
    taken: list[float] = []

    async def follow() -> None:
        held = b""
        async for response in tenant.tail(task_id):
            now = time.time_ns()
            *lines, held = (held + response.chunk.data).split(b"\n")
            taken.extend((now - int(line)) / 1e6 for line in lines)

    await asyncio.gather(*(follow() for _ in range(tails)))
    assert len(taken) == LINES * tails
    return Row(
        f"log line, process → tail, p99, {tails} tail{'s' if tails > 1 else ''}", percentile(taken, 0.99), "ms",
        budget=50, note=f"p50 {percentile(taken, 0.5):.1f} ms; all tails in one client on the same cores",
    )  # fmt: skip


async def _throughput(tenant: Tenant) -> Row:
    """Several loud tasks at once: from the first byte until everything is durable, one tail on one of them."""
    script = f"head -c {LOUD_BYTES} /dev/zero | tr '\\0' '\\n'"
    start = time.perf_counter()
    tasks = [await tenant.shell(script) for _ in range(LOUD)]
    size = 0
    async for response in tenant.tail(tasks[0]):
        size += len(response.chunk.data)
    for task_id in tasks:
        done = await tenant.wait(task_id, timeout=120)
        assert done.attempts[-1].log_end == LOUD_BYTES, done
    taken = time.perf_counter() - start
    assert size == LOUD_BYTES
    request = scheduler_pb2.TailLogsRequest(task_id=tasks[0])
    again = time.perf_counter()
    read = 0
    async for response in tenant.scheduler.TailLogs(request):
        read += len(response.chunk.data)
    assert read == LOUD_BYTES
    back = LOUD_BYTES / (time.perf_counter() - again) / 1e6
    return Row(
        "log bytes through one scheduler, durable", LOUD * LOUD_BYTES / taken / 1e6, "MB/s", budget=50, at_least=True,
        note=f"{LOUD} tasks of {LOUD_BYTES >> 20} MiB, one followed live; read back at {back:.0f} MB/s",
    )  # fmt: skip
