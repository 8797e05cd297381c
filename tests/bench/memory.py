"""Memory of idle services and slots."""

from __future__ import annotations

import os
from pathlib import Path

from tests.bench.report import Row
from tests.support.stack import Stack

SERVICES = ("scheduler", "workspace", "pool-manager@node-1")


async def measure(directory: Path) -> list[Row]:
    """Rows for each service and for one slot with its waiting sandbox."""
    async with Stack(directory, nodes=1, slots=4) as stack:
        tenant = stack.tenant("bench")
        for _ in range(8):
            await tenant.wait(await tenant.submit("true"))
        rows = [Row(f"idle {name}, resident", rollup([stack.pid(name)], "Rss"), "MiB", budget=80) for name in SERVICES]
        slots = [slot.pid for slot in await stack.slots("node-1")]
        trees = [[pid, *_descendants(pid)] for pid in slots]
        resident = sum(rollup([pid], "Rss") for pid in slots) / len(slots)
        proportional = sum(rollup(tree, "Pss") for tree in trees) / len(trees)
        rows.append(Row("idle slot: its supervisor, resident", resident, "MiB", budget=15))
        rows.append(
            Row("idle slot with its waiting sandbox, proportional", proportional, "MiB", budget=15, note="4 slots")
        )
    return rows


def resident(pid: int) -> float:
    """MiB that the process holds."""
    return rollup([pid], "Rss")


def rollup(pids: list[int], field: str) -> float:
    """MiB of `field` in `smaps_rollup`, over all of `pids`."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(f"{field}:"):
                total += int(line.split()[1])
    return total / 1024


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except FileNotFoundError:
                continue
            children.setdefault(int(stat[stat.rindex(")") + 2 :].split()[1]), []).append(int(entry))
    found, queue = [], [pid]
    while queue:
        for child in children.get(queue.pop(), []):
            found.append(child)
            queue.append(child)
    return found
