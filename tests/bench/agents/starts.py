"""Submit → first request to the model, of each agent, cold and warm, against a fresh container; memory of the slots."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench.agents import slot_memory
from tests.bench.agents.bare import Bare, installed
from tests.bench.agents.engine import Engine, docker
from tests.bench.agents.record import Record, prompt
from tests.bench.agents.stacks import BenchStack
from tests.bench.report import Row, percentile
from tests.support.stack import Tenant

RUNS = {"claude-code": 8, "opencode": 4, "openclaw": 2}
SLOTS = 2
CAN_WAIT = ("claude-code", "opencode")
ONE_TURN = [{"text": "Done."}]


async def measure(directory: Path) -> list[Row]:
    """Rows for each agent and backend."""
    rows: list[Row] = []
    with docker() as engine:
        fresh = await _fresh(directory / "fresh", engine)
        rows += [_row(f"{fresh.what} → first model request, {name}", taken) for name, taken in fresh.taken.items()]
        for backend in [None, engine] if engine else [None]:
            rows += await _backend(directory / ("docker" if backend else "bubblewrap"), backend, fresh)
    return rows


@dataclass(frozen=True)
class Fresh:
    """What the same agents take when each is started afresh: seconds, by runtime."""

    what: str
    taken: dict[str, list[float]]

    def times(self, runtime: str, ours: list[float]) -> str:
        theirs = percentile(self.taken[runtime], 0.5)
        return f"; {theirs / percentile(ours, 0.5):.2f} × faster than {self.what}"


async def _fresh(directory: Path, engine: Engine | None) -> Fresh:
    marks = Marks()
    async with _stack(directory, None) as stack:
        bare = stack.bare(engine)
        return Fresh(bare.what, {name: await _bare(bare, stack.record, name, marks) for name in installed()})


async def _backend(directory: Path, backend: Engine | None, fresh: Fresh) -> list[Row]:
    name = "docker" if backend else "bubblewrap"
    rows: list[Row] = []
    async with _stack(directory / "cold", backend) as stack:
        await stack.settled(*installed())
        rows.append(await slot_memory.row(stack, f"{name}: slot that waits without an agent"))
        marks = Marks()
        for runtime in installed():
            taken = await _submitted(stack, stack.tenant(f"cold-{runtime}"), runtime, marks)
            rows.append(
                _row(f"{name}: submit → first model request, {runtime}, cold", taken, fresh.times(runtime, taken))
            )
    for runtime in (one for one in CAN_WAIT if one in installed()):
        async with _stack(directory / runtime, backend, warm=runtime) as stack:
            await stack.settled(runtime)
            rows.append(await slot_memory.row(stack, f"{name}: slot with a warm {runtime}"))
            taken = await _submitted(stack, stack.tenant("warm"), runtime, Marks())
            rows.append(
                _row(f"{name}: submit → first model request, {runtime}, warm", taken, fresh.times(runtime, taken))
            )
    return rows


def _stack(directory: Path, backend: Engine | None, warm: str = "") -> BenchStack:
    return BenchStack(directory, turns=ONE_TURN, engine=backend, warm=warm, nodes=1, slots=SLOTS)


class Marks:
    """Names for runs, each once."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def __call__(self) -> str:
        return f"run{next(self._numbers)}"


async def _submitted(stack: BenchStack, tenant: Tenant, runtime: str, marks: Marks) -> list[float]:
    """Seconds, one task after the other, each in a slot that is ready again. The first pays for cold caches."""
    taken = []
    for _ in range(RUNS[runtime] + 1):
        mark = marks()
        start = time.time()
        task_id = await tenant.submit(runtime=runtime, prompt=prompt("work", mark))
        taken.append(await stack.record.asked(mark) - start)
        await tenant.wait(task_id)
        await stack.settled()
    return taken[1:]


async def _bare(bare: Bare, record: Record, runtime: str, marks: Marks) -> list[float]:
    taken = []
    for _ in range(RUNS[runtime] + 1):
        mark = marks()
        start = time.time()
        await bare.run(runtime, prompt("work", mark))
        taken.append(await record.asked(mark) - start)
    return taken[1:]


def _row(what: str, taken: list[float], ratio: str = "") -> Row:
    note = f"p95 {percentile(taken, 0.95):.2f} s, {len(taken)} runs{ratio}"
    return Row(f"{what}, p50", percentile(taken, 0.5), "s", note=note)
