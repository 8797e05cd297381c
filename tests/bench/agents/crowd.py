"""Many users' tasks on few slots, against a fresh container for each task under the same cap."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cloudclaw.v1 import task_pb2
from tests.bench.agents.bare import Bare
from tests.bench.agents.board import watching
from tests.bench.agents.engine import Engine, docker
from tests.bench.agents.record import Record, prompt
from tests.bench.agents.stacks import NOTE, BenchStack
from tests.bench.report import Row, percentile

TASKS = 200
USERS = 20
SLOTS = 4
RUNTIME = "claude-code"
WITHIN = 600.0


async def measure(directory: Path) -> list[Row]:
    """Rows for slots, on the backend that is like the other side's, and for fresh containers."""
    with docker() as engine:
        async with BenchStack(directory, engine=engine, nodes=1, slots=SLOTS) as stack:
            await stack.settled(RUNTIME)
            ours = await _slots(stack, engine)
            await stack.settled()
            theirs, rate = await _fresh(stack.bare(engine), stack.record, engine)
    return [*ours, *theirs, Row("slots against fresh, tasks a second", ours[0].value / rate, "×", at_least=True)]


async def _slots(stack: BenchStack, engine: Engine | None) -> list[Row]:
    name = "docker" if engine else "bubblewrap"
    tenants = [stack.tenant(f"user{number:02}") for number in range(USERS)]
    texts = {f"own{number}": prompt("work", f"own{number}") for number in range(TASKS)}
    async with (
        watching(tenants) as board,
        Peak(lambda: engine.containers(fresh=False) if engine else len(stack.supervisors())) as peak,
    ):
        start = time.time()
        ids = await asyncio.gather(
            *(tenants[n % USERS].submit(runtime=RUNTIME, prompt=text) for n, text in enumerate(texts.values()))
        )
        done = await board.ended(len(ids), WITHIN)
        taken = time.time() - start
    waits = [asked - start for mark, asked in stack.record.first().items() if mark in texts]
    attempts = [attempt for task in done for attempt in task.attempts]
    assert len(attempts) == len(waits) == TASKS, "a task took more than one attempt"
    busy, most = _busy(attempts)
    return [
        Row(f"{name}: {TASKS} tasks of {USERS} users on {SLOTS} slots", TASKS / taken, "/s",
            note=f"{taken:.0f} s; {NOTE}"),
        _waited(f"{name}: their wait", waits),
        Row(f"{name}: slots in use", busy * 100, "%", budget=95, at_least=True,
            note="attempts' seconds, of 4 × (first start to last end)"),
        Row(f"{name}: attempts at once, at most", most, "", budget=SLOTS, note=f"slots seen at most: {peak.most}"),
    ]  # fmt: skip


async def _fresh(bare: Bare, record: Record, engine: Engine | None) -> tuple[list[Row], float]:
    texts = {f"fresh{number}": prompt("work", f"fresh{number}") for number in range(TASKS)}
    start = time.time()
    async with Peak(lambda: engine.containers(fresh=True) if engine else 0) as peak:
        taken = await bare.crowd(RUNTIME, list(texts.values()), SLOTS)
    waits = [asked - start for mark, asked in record.first().items() if mark in texts]
    seen = f"; containers at most: {peak.most}" if engine else ""
    what = f"{bare.what} for each task, {SLOTS} at once"
    note = f"{taken:.0f} s; nothing durable, no queue{seen}"
    return [Row(what, TASKS / taken, "/s", note=note), _waited(f"{bare.what}: their wait", waits)], TASKS / taken


def _waited(what: str, waits: list[float]) -> Row:
    note = f"p50 {percentile(waits, 0.5):.1f} s; all are there at the start; until the model is asked"
    return Row(f"{what}, p95", percentile(waits, 0.95), "s", note=note)


def _busy(attempts: Sequence[task_pb2.Attempt]) -> tuple[float, int]:
    """The share of slot-seconds that attempts had, and how many ran at once at most."""
    spans = [(one.start_time.ToNanoseconds() / 1e9, one.end_time.ToNanoseconds() / 1e9) for one in attempts]
    wall = max(end for _, end in spans) - min(start for start, _ in spans)
    edges = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    most = now = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return sum(end - start for start, end in spans) / (SLOTS * wall), most


class Peak:
    """The most that `count` said, asked twice a second for as long as the context lasts."""

    def __init__(self, count: Callable[[], int]):
        self._count = count
        self.most = 0

    async def __aenter__(self) -> Peak:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            self.most = max(self.most, await asyncio.to_thread(self._count))
            await asyncio.sleep(0.5)
