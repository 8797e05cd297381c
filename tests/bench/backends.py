"""Slots of both backends in one run, at the port: what a container costs beside a process of the host."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from pathlib import Path

from cloudclaw_pool_manager.ports.backend import Slot
from cloudclaw_supervisor.processes import descendants
from tests.bench.memory import rollup
from tests.bench.report import Row, percentile
from tests.support import slots
from tests.support.engine import Docker, engine
from tests.support.slots import Node

SLOTS = 4
STARTS = 10
ATTEMPTS = 100
SECONDS = 5.0


async def measure(directory: Path) -> list[Row]:
    """Rows for each backend, taking turns, and for `docker run` on the same image."""
    with engine() as running:
        async with slots.node(slots=SLOTS) as host, slots.node(running, slots=SLOTS, uid_base=300_000) as docker:
            sides = (_Side("bubblewrap", host), _Side("docker", docker))
            for _ in range(STARTS):
                for side in sides:
                    await side.start_and_destroy()
            for side in sides:
                side.kept = [await side.pool.provision(number) for number in range(SLOTS)]
            for _ in range(ATTEMPTS):
                for side in sides:
                    await side.attempt()
            for side in sides:
                side.rate = await _rate(side.node, side.kept)
            rows = [row for side in sides for row in await side.rows()]
        rows.append(await asyncio.to_thread(_docker_run, running))
    return rows


class _Side:
    """One backend's part of the run."""

    def __init__(self, name: str, node: Node):
        self.name = name
        self.node = node
        self.pool = node.pool()
        self.kept: list[Slot] = []
        self.rate = 0.0
        self._starts: list[float] = []
        self._ends: list[float] = []
        self._first: list[float] = []

    async def start_and_destroy(self) -> None:
        before = time.perf_counter()
        slot = await self.pool.provision(0)
        await slots.until(slot, lambda status: status.sandbox_ready)
        self._starts.append((time.perf_counter() - before) * 1000)
        before = time.perf_counter()
        await self.pool.destroy(slot)
        self._ends.append((time.perf_counter() - before) * 1000)

    async def attempt(self) -> None:
        self._first.append(await _first_byte(self.node, self.kept[0]))

    async def rows(self) -> list[Row]:
        for slot in self.kept:
            await slots.until(slot, lambda status: status.sandbox_ready)
        memory = sum(_memory(slot) for slot in self.kept) / SLOTS
        name = self.name
        rows = [
            Row(f"{name}: a slot starts, p50", percentile(self._starts, 0.5), "ms", note="until its sandbox waits"),
            Row(f"{name}: a slot is destroyed, p50", percentile(self._ends, 0.5), "ms"),
            Row(f"{name}: start → first byte at the manager, p50", percentile(self._first, 0.5), "ms"),
            Row(f"{name}: start → first byte at the manager, p99", percentile(self._first, 0.99), "ms"),
            Row(f"{name}: attempts, start to release", self.rate, "/s", note=f"{SLOTS} slots"),
            Row(f"{name}: idle slot with its sandbox, proportional", memory, "MiB", budget=15),
        ]
        shims = [shim for slot in self.kept if (shim := _shim(slot)) is not None]
        if shims:
            beside = sum(rollup([pid], "Pss") for pid in shims) / len(shims)
            rows.append(Row(f"{name}: … and the engine's process beside it", beside, "MiB"))
        return rows


async def _first_byte(node: Node, slot: Slot) -> float:
    await slots.until(slot, lambda status: status.sandbox_ready)
    before = time.perf_counter()
    identity, _ = await slots.start(node, slot, "echo", "hi")
    await slots.until(slot, lambda status: status.log_end > 0)
    taken = (time.perf_counter() - before) * 1000
    await slots.exited(slot)
    await slot.release(identity.uid)
    return taken


async def _rate(node: Node, kept: list[Slot]) -> float:
    done = 0
    end = time.perf_counter() + SECONDS

    async def work(slot: Slot) -> None:
        nonlocal done
        while time.perf_counter() < end:
            identity, _ = await slots.start(node, slot, "echo", "hi")
            await slots.exited(slot)
            await slot.release(identity.uid)
            done += 1

    before = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for slot in kept:
            group.create_task(work(slot))
    return done / (time.perf_counter() - before)


def _memory(slot: Slot) -> float:
    return rollup([slot.pid, *descendants(slot.pid)], "Pss")


def _shim(slot: Slot) -> int | None:
    """The engine's process that keeps the slot's container."""
    with contextlib.suppress(FileNotFoundError):
        parent = int(Path(f"/proc/{slot.pid}/stat").read_text().rpartition(")")[2].split()[1])
        if Path(f"/proc/{parent}/comm").read_text().startswith("containerd-shim"):
            return parent
    return None


def _docker_run(running: Docker) -> Row:
    taken = []
    for _ in range(10):
        before = time.perf_counter()
        with subprocess.Popen(
            ["docker", "--host", running.url, "run", "--rm", "--network", "none", running.image, "echo", "hi"],
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            process.stdout.read(1)
            taken.append((time.perf_counter() - before) * 1000)
    return Row("docker run → echo on the same image, p50", percentile(taken, 0.5), "ms")
