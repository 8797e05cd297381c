"""What checkpoints at the ends of turns cost an agent that works on a real tree."""

from __future__ import annotations

from pathlib import Path

from cloudclaw.v1 import task_pb2
from tests.bench.agents.record import prompt
from tests.bench.agents.stacks import BenchStack
from tests.bench.report import Row

TURNS = 10
FILES = 400
SIZE = 50 << 10
RUNTIME = "claude-code"
MANAGER = "pool-manager@node-1"
_NODE = "cloudclaw_pool_manager_"
MAKE = f"""import os
for number in range({FILES}):
    os.makedirs(f"d{{number % 20}}", exist_ok=True)
    open(f"d{{number % 20}}/f{{number}}", "wb").write(os.urandom({SIZE}))
"""


async def measure(directory: Path) -> list[Row]:
    """Rows for the standstill and the bytes of each turn's checkpoint."""
    one = {"text": "Next.", "tools": [{"bash": "echo {turn} >> d1/notes; seq 1 200"}], "delay": 1.0, "repeat": TURNS}
    async with BenchStack(directory, turns=[one, {"text": "Done."}], nodes=1, slots=2) as stack:
        await stack.settled(RUNTIME)
        tenant = stack.tenant("bench")
        await tenant.create_workspace("tree")
        tree = task_pb2.WorkspaceSelection(name="tree", mode=task_pb2.WORKSPACE_MODE_EXCLUSIVE)
        made = await tenant.wait(await tenant.submit("python3", "-c", MAKE, workspace=tree))
        assert made.state == task_pb2.TASK_STATE_SUCCEEDED, made
        before = stack.measured(MANAGER)
        task_id = await tenant.submit(runtime=RUNTIME, prompt=prompt("work", "turns"), workspace=tree)
        done = await tenant.wait(task_id, timeout=120)
        assert done.state == task_pb2.TASK_STATE_SUCCEEDED, done
        after = stack.measured(MANAGER)
    count = after[f"{_NODE}checkpoint_freeze_seconds_count"] - before.get(f"{_NODE}checkpoint_freeze_seconds_count", 0)

    def each(name: str) -> float:
        return (after[_NODE + name] - before.get(_NODE + name, 0)) / count

    slowest = _below(before, after, count)
    tree_of = f"{FILES * SIZE >> 20} MB in {FILES} files"
    return [
        Row("checkpoint at a turn's end: the agent stands still, mean", each("checkpoint_freeze_seconds_sum") * 1000,
            "ms", budget=50, note=f"{count:.0f} in {TURNS} turns of {RUNTIME}; all ≤ {slowest * 1000:g} ms; {tree_of}"),
        Row("checkpoint at a turn's end: until it is stored, mean", each("checkpoint_seconds_sum") * 1000, "ms"),
        Row("checkpoint at a turn's end: stored", each("checkpoint_stored_bytes_total") / 1024, "KiB",
            note="its home grows too"),
    ]  # fmt: skip


def _below(before: dict[str, float], after: dict[str, float], count: float) -> float:
    """The bound, in seconds, of the histogram's bucket under which all of them were."""
    head = f"{_NODE}checkpoint_freeze_seconds_bucket≤"
    bounds = sorted(float(name.removeprefix(head)) for name in after if name.startswith(head))
    names = {
        bound: next(name for name in after if name.startswith(head) and float(name[len(head) :]) == bound)
        for bound in bounds
    }
    return next(bound for bound in bounds if after[names[bound]] - before.get(names[bound], 0) >= count)
