"""`python -m tests.bench [PART…]`: measure, and print one table."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from tests.bench import (
    backends,
    freeze,
    gateway,
    history,
    latency,
    logs,
    memory,
    queue,
    recovery,
    snapshots,
    throughput,
)
from tests.bench.agents import conversations, crowd, kills, starts, turns
from tests.bench.report import Row, show

AGENTS = ("gateway", "starts", "crowd", "conversations", "kills", "turns")
PARTS = (
    *("latency", "logs", "throughput", "memory", "snapshots", "freeze", "backends"),
    *AGENTS,
    *("recovery", "queue", "history"),
)


async def run(parts: list[str], queued: int, finished: int, rows: list[Row]) -> None:
    """Add the rows of the chosen parts, one part after the other."""
    simple = {
        "latency": latency,
        "logs": logs,
        "throughput": throughput,
        "memory": memory,
        "snapshots": snapshots,
        "freeze": freeze,
        "backends": backends,
        "gateway": gateway,
        "recovery": recovery,
        "starts": starts,
        "crowd": crowd,
        "conversations": conversations,
        "kills": kills,
        "turns": turns,
    }
    for part in parts:
        with tempfile.TemporaryDirectory(prefix=f"claw-bench-{part}-") as directory:
            print(f"bench: {part}", flush=True)
            if part == "queue":
                rows += await queue.measure(Path(directory), queued)
            elif part == "history":
                rows += await history.measure(Path(directory), finished)
            else:
                rows += await simple[part].measure(Path(directory))


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=f"any of {', '.join(PARTS)}, or agents for {', '.join(AGENTS)} (default: all)",
    )
    parser.add_argument("--queued", type=int, default=100_000, help="tasks in the long queue (default 100000)")
    parser.add_argument("--tasks", type=int, default=200_000, help="finished tasks in the history (default 200000)")
    options = parser.parse_args()
    parts = [part for named in options.parts for part in (AGENTS if named == "agents" else (named,))]
    unknown = set(parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    rows: list[Row] = []
    try:
        asyncio.run(run(parts or list(PARTS), options.queued, options.tasks, rows))
    finally:
        show(rows)  # what was measured before a part failed is worth seeing


if __name__ == "__main__":
    main()
