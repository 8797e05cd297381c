"""What the kill of its node costs an agent: seconds, and turns that are asked for again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from cloudclaw.v1 import task_pb2
from tests.bench.agents.record import prompt
from tests.bench.agents.stacks import BenchStack
from tests.bench.report import Row, percentile
from tests.support.processes import kill

NODES = 6
RUNTIME = "claude-code"
TURN = 2
THINKS = 0.3
"""Seconds of each turn before. A turn's checkpoint begins when it is written down, with Claude Code 0.1 s after its
end, unless the next has begun: of a model that answers quicker than that, not every turn has one."""
INTO = (0.0, 0.2, 0.5, 1.0, 2.0)
"""Seconds that the model has been thinking when the node dies, of each kill."""


async def measure(directory: Path) -> list[Row]:
    """Rows over one kill after the other, each of another node."""
    scenarios = [_scenario(number) for number in range(len(INTO))]
    taken, lost = [], []
    async with BenchStack(directory, scenarios=scenarios, nodes=NODES, slots=1, restart=False) as stack:
        await stack.settled(RUNTIME)
        tenant = stack.tenant("bench")
        for number, into in enumerate(INTO):
            name, mark = f"kill{number}", f"kill{number}"
            await tenant.create_workspace(name)
            selection = task_pb2.WorkspaceSelection(name=name, mode=task_pb2.WORKSPACE_MODE_EXCLUSIVE)
            task_id = await tenant.submit(runtime=RUNTIME, prompt=prompt(name, mark), workspace=selection)
            await stack.model.asked_for(name, TURN)
            await asyncio.sleep(into)
            node = (await tenant.get(task_id)).attempts[-1].node
            pids = await stack.node_pids(node)
            killed = time.time()
            kill(*pids)
            before = len(await stack.model.requests(name))
            await stack.model.release(name)
            done = await tenant.wait(task_id, timeout=90)
            assert done.state == task_pb2.TASK_STATE_SUCCEEDED, done
            again = (await stack.model.requests(name))[before:]
            taken.append(again[0]["time"] - killed)
            lost.append(TURN - again[0]["turn"])
    each = ", ".join(f"{turns} after {into:g} s" for into, turns in zip(INTO, lost, strict=True))
    return [
        Row("node killed in a turn → the session's next model request elsewhere, p95", percentile(taken, 0.95), "s",
            budget=5, note=f"{RUNTIME}, {len(taken)} kills; p50 {percentile(taken, 0.5):.1f} s, 3 s of it the grace"),
        Row("turns asked for again by a kill, beside the one in flight, at most", max(lost), "", note=each),
    ]  # fmt: skip


def _scenario(number: int) -> dict[str, Any]:
    turns: list[dict[str, Any]] = [
        {"text": f"Turn {turn}.", "tools": [{"bash": f"echo {turn} >> turns"}], "delay": THINKS} for turn in range(TURN)
    ]
    held = {"text": "On.", "tools": [{"bash": "echo on >> turns"}], "hold": f"kill{number}"}
    return {"name": f"kill{number}", "turns": [*turns, held, {"text": "All done."}]}
