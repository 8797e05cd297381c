"""Hundreds of conversations that wait for their users, on four slots."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from etcd3aio._protobuf import MaintenanceStub, StatusRequest
from grpc import aio

from cloudclaw.v1 import scheduler_pb2, task_pb2
from tests.bench.agents.board import Board, watching
from tests.bench.agents.record import prompt
from tests.bench.agents.stacks import BenchStack
from tests.bench.memory import resident
from tests.bench.report import Row, percentile
from tests.support.stack import Tenant, seconds

SESSIONS = 200
USERS = 20
SLOTS = 4
ALONE = 8
RUNTIME = "claude-code"
WITHIN = 400.0
SERVICES = ("scheduler", "workspace", "pool-manager@node-1", "gateway@node-1", "etcd")
TURNS = [{"text": f"Answer {number}.", "delay": 0.3} for number in range(3)]
_MIB = 1 << 20


async def measure(directory: Path) -> list[Row]:
    """Rows for opening, waiting and waking."""
    async with BenchStack(directory, turns=TURNS, nodes=1, slots=SLOTS) as stack:
        await stack.settled(RUNTIME)
        tenants = [stack.tenant(f"user{number:02}") for number in range(USERS)]
        async with watching(tenants) as board:
            before = await _weight(stack)
            opened = await _open(board, tenants)
            await stack.settled()
            held = [slot.task_id for slot in await stack.slots("node-1") if slot.task_id]
            assert not held, f"a parked conversation holds a slot: {held}"
            after = await _weight(stack)
            owners = {
                task: tenant for tenant in tenants for task in board.tasks if board.tasks[task].tenant == tenant.name
            }
            alone = await _alone(stack, board, dict(list(owners.items())[:ALONE]))
            taken, waits = await _all(stack, board, dict(list(owners.items())[ALONE:]))
    return [
        Row(f"{SESSIONS} conversations on {SLOTS} slots: opened, answered and parked", SESSIONS / opened, "/s",
            note=f"{opened:.0f} s; model thinks 0.3 s; none holds a slot afterwards"),
        Row("parked conversation: etcd", (after["etcd"] - before["etcd"]) / SESSIONS * 1024, "KiB",
            note=f"in use, history and all: {after['etcd']:.1f} MiB"),
        *(Row(f"{name} with {SESSIONS} parked, resident", after[f"rss {name}"], "MiB",
              note=f"{before[f'rss {name}']:.0f} before") for name in SERVICES),
        Row("message → model asked, parked, idle slots, p50", percentile(alone, 0.5), "s",
            note=f"p95 {percentile(alone, 0.95):.2f} s; {len(alone)} one at a time"),
        Row(f"messages to {len(waits)} parked at once: answered and parked again", len(waits) / taken, "/s",
            note=f"{taken:.0f} s; message → model asked p50 {percentile(waits, 0.5):.1f}, "
                 f"p95 {percentile(waits, 0.95):.1f} s"),
    ]  # fmt: skip


async def _open(board: Board, tenants: list[Tenant]) -> float:
    """Seconds until all have their first answer and are parked."""
    start = time.perf_counter()
    await asyncio.gather(
        *(
            tenants[number % USERS].submit(
                runtime=RUNTIME,
                prompt=prompt("work", f"open{number}"),
                conversation=task_pb2.Conversation(park_after=seconds(0.1)),
            )
            for number in range(SESSIONS)
        )
    )
    await board.until(lambda tasks: sum(task.parked for task in tasks.values()) == SESSIONS, WITHIN)
    return time.perf_counter() - start


async def _alone(stack: BenchStack, board: Board, owners: dict[str, Tenant]) -> list[float]:
    taken = []
    for number, (task, tenant) in enumerate(owners.items()):
        start = time.time()
        await _say(tenant, task, f"alone{number}")
        taken.append(await stack.record.asked(f"alone{number}") - start)
        await board.until(lambda tasks, task=task: _answered(tasks[task]), 60.0)  # type: ignore[misc]
    return taken


async def _all(stack: BenchStack, board: Board, owners: dict[str, Tenant]) -> tuple[float, list[float]]:
    """Seconds until all are parked again, and from each message to the model."""
    start = time.perf_counter()
    said: dict[str, float] = {}

    async def say(mark: str, task: str, tenant: Tenant) -> None:
        said[mark] = time.time()
        await _say(tenant, task, mark)

    await asyncio.gather(*(say(f"wake{n}", task, tenant) for n, (task, tenant) in enumerate(owners.items())))
    await board.until(lambda tasks: all(_answered(tasks[task]) for task in owners), WITHIN)
    taken = time.perf_counter() - start
    asked = stack.record.first()
    return taken, [asked[mark] - then for mark, then in said.items()]


async def _say(tenant: Tenant, task: str, mark: str) -> None:
    text = f"And now? mark={mark}."
    await tenant.scheduler.SendInput(scheduler_pb2.SendInputRequest(task_id=task, message_id=mark, text=text))


def _answered(task: task_pb2.Task) -> bool:
    return task.parked and task.inputs_done == 1


async def _weight(stack: BenchStack) -> dict[str, float]:
    """MiB of each service, and what etcd uses on its disk."""
    async with aio.insecure_channel(stack.endpoints["etcd"]) as channel:
        status = await MaintenanceStub(channel).Status(StatusRequest(), timeout=30)
    return {"etcd": status.dbSizeInUse / _MIB, **{f"rss {name}": resident(stack.pid(name)) for name in SERVICES}}
