"""`python -m tests.bench.snapshot_child`: one tree through our snapshots, in a process whose memory is its own.

Prints one JSON object: seconds of each step, bytes stored by each, seconds frozen, and the process's peak memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import structlog

from cloudclaw.clock import SystemClock
from cloudclaw.objects.filesystem import FilesystemObjects
from cloudclaw.snapshots.engine import SnapshotEngine
from cloudclaw.snapshots.port import WORKSPACE, TreeLimits
from tests.bench.trees import Shape, TreeMaker

T = TypeVar("T")

_LIMITS: Final = TreeLimits(file_bytes=4 << 30, total_bytes=64 << 30, files=2_000_000)
_TENANT: Final = "bench"
_PROCESSES: Final = 8


class Steps:
    """What was measured, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.bytes: dict[str, int] = {}
        self.frozen: list[float] = []

    async def take(self, name: str, work: Awaitable[T]) -> T:
        await asyncio.to_thread(os.sync)  # nobody pays for what was written before
        start = time.perf_counter()
        result = await work
        self.seconds[name] = time.perf_counter() - start
        return result


async def run(directory: Path, shape: Shape, rounds: int) -> Steps:
    """First, unchanged and 1 % changed snapshots, both kinds of restore, and `rounds` checkpoints."""
    store = FilesystemObjects(directory / "objects")
    here, elsewhere = (_engine(store, directory / name) for name in ("here", "elsewhere"))
    steps = Steps()
    tree = await here.checkout(_TENANT, None, "attempt-1")
    maker = TreeMaker(tree.path / WORKSPACE, shape)
    await asyncio.to_thread(maker.fill)
    for name, changed in (("first", 0), ("unchanged", 0), ("changed", shape.files // 100)):
        await asyncio.to_thread(maker.change, changed)
        saved = await steps.take(name, here.snapshot(_TENANT, tree, f"snap-{name}"))
        steps.bytes[name] = saved.stored_bytes
    await steps.take("cold", elsewhere.checkout(_TENANT, saved.pointer, "attempt-2"))
    await here.release(_TENANT, tree, saved.pointer)
    tree = await steps.take("ready", here.checkout(_TENANT, saved.pointer, "attempt-3"))
    maker = TreeMaker(tree.path / WORKSPACE, shape, seed=2)
    with _processes() as group:
        for number in range(rounds):
            await asyncio.to_thread(maker.change, shape.files // 100)
            taken = await here.checkpoint(_TENANT, tree, f"check-{number}", lambda: _stopped(group))
            steps.frozen.append(taken.frozen)
    for engine in (here, elsewhere):
        engine.close()
    await store.close()
    return steps


def _engine(store: FilesystemObjects, trees: Path) -> SnapshotEngine:
    return SnapshotEngine(store, trees, SystemClock(), limits=_LIMITS, cache_bytes=64 << 30)


class _processes:
    """A process group to freeze: eight processes that wait."""

    def __enter__(self) -> int:
        line = " ".join(["sleep 600 &"] * (_PROCESSES - 1)) + " sleep 600"
        self._shell = subprocess.Popen(["sh", "-c", line], start_new_session=True)
        return self._shell.pid

    def __exit__(self, *_: object) -> None:
        os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.wait()


@asynccontextmanager
async def _stopped(group: int) -> AsyncIterator[Collection[int]]:
    """The group stands still: signalled, and its leader seen to have stopped."""
    os.killpg(group, signal.SIGSTOP)
    try:
        await asyncio.to_thread(os.waitid, os.P_PID, group, os.WSTOPPED | os.WEXITED)
        yield frozenset()
    finally:
        os.killpg(group, signal.SIGCONT)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("files", type=int)
    parser.add_argument("smallest", type=int)
    parser.add_argument("largest", type=int)
    parser.add_argument("--rounds", type=int, default=0)
    given = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    steps = asyncio.run(run(given.directory, Shape(given.files, given.smallest, given.largest), given.rounds))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": steps.seconds, "bytes": steps.bytes, "frozen": steps.frozen, "peak_mib": peak}))


if __name__ == "__main__":
    main()
