"""Memory of waiting slots."""

from __future__ import annotations

from cloudclaw_supervisor.processes import descendants
from tests.bench.memory import rollup
from tests.bench.report import Row
from tests.support.stack import Stack

_MIB = 1 << 20


async def row(stack: Stack, what: str) -> Row:
    """Proportional memory of one waiting slot and all in it."""
    slots = await stack.slots("node-1")
    trees = [[slot.pid, *descendants(slot.pid)] for slot in slots]
    proportional = sum(rollup(tree, "Pss") for tree in trees) / len(trees)
    resident = sum(rollup(tree, "Rss") for tree in trees) / len(trees)
    listed = sum(slot.warm_memory_bytes for slot in slots) / len(slots) / _MIB
    note = f"{len(slots)} slots; resident {resident:.0f}"
    return Row(
        f"{what}, proportional", proportional, "MiB", note=note + (f", as listed {listed:.0f} MiB" if listed else "")
    )
