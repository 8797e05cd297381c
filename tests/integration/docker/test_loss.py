"""Containers that are lost behind the manager's back: noticed within a second, replaced, and quarantined."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry

from cloudclaw.clock import SystemClock
from cloudclaw_pool_manager.app.metrics import NodeMetrics
from cloudclaw_pool_manager.app.slots import SlotEntry, SlotPool
from cloudclaw_pool_manager.backends import docker as backend
from cloudclaw_pool_manager.backends.containers.slot import ContainerSlot
from cloudclaw_pool_manager.domain.slot import SlotState
from cloudclaw_pool_manager.ports.backend import SlotFailedError, SlotStatus
from tests.support import slots
from tests.support.engine import Docker
from tests.support.processes import eventually
from tests.support.slots import Node

pytestmark = pytest.mark.docker
Name = Callable[[int], str]


@dataclass
class Occupant:
    """What a keeper tells an attempt."""

    failed: list[str] = field(default_factory=list)

    def on_status(self, status: SlotStatus) -> None:
        """Nothing is asked."""

    def on_slot_failed(self, message: str) -> None:
        self.failed.append(message)


@contextlib.asynccontextmanager
async def kept(node: Node, count: int, **changes: object) -> AsyncIterator[SlotPool]:
    """A pool with its keepers at work."""
    adapter = node.pool(**changes)  # type: ignore[arg-type]
    pool = SlotPool(
        "default",
        adapter,
        SystemClock(),
        slots=count,
        hard_cap=count,
        metrics=NodeMetrics(CollectorRegistry()),
        single_use=bool(changes.get("single_use")),
    )
    await pool.adopt()
    running = asyncio.ensure_future(pool.run())
    try:
        yield pool
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await pool.destroy_all()
        await pool.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a busy engine say why a container ended."""
    monkeypatch.setattr(backend, "_FATE_WITHIN", slots.WITHIN)


def all_idle(pool: SlotPool) -> Callable[[], bool]:
    return lambda: all(entry.state is SlotState.IDLE for entry in pool.entries)


async def taken(pool: SlotPool, occupant: Occupant) -> SlotEntry:
    entry = await pool.take(occupant, slots.WITHIN)
    assert entry is not None
    return entry


def paused(docker: Docker, name: str, pid: int) -> None:
    docker.cli("pause", name)


def removed(docker: Docker, name: str, pid: int) -> None:
    docker.cli("rm", "-f", name)


def stopped(docker: Docker, name: str, pid: int) -> None:
    docker.cli("stop", name)


def killed(docker: Docker, name: str, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("loss", "word"), [(paused, "paused"), (removed, "removed|code 137"), (stopped, "code 137"), (killed, "code 137")]
)
async def test_a_lost_container_ends_its_attempt_and_is_replaced(
    node: Node, docker: Docker, name: Name, loss: Callable[[Docker, str, int], None], word: str
) -> None:
    async with kept(node, 1) as pool:
        occupant = Occupant()
        entry = await taken(pool, occupant)
        slot = entry.occupied()
        identity, _ = await slots.start(node, slot, "sh", "-c", "echo up; exec sleep 60")
        await slots.printed(slot, identity.uid, b"up")
        losing = asyncio.ensure_future(asyncio.to_thread(loss, docker, name(0), slot.pid))
        assert isinstance(slot, ContainerSlot)
        noticed = asyncio.ensure_future(eventually("it is noticed", lambda: slot.lost))
        await losing
        lost = time.monotonic()
        await noticed
        assert time.monotonic() - lost < 1.0
        await eventually("the attempt is told", lambda: bool(occupant.failed))
        assert re.search(word, occupant.failed[0])
        await eventually("another slot", all_idle(pool))
        assert entry.occupied() is not slot
        assert entry.last_failure == occupant.failed[0]
        assert docker.containers() == [name(0)]
        assert (await slots.run(node, entry.occupied(), "echo", "next")).stdout == b"next\n"


async def test_a_supervisor_killed_for_memory_is_told_from_other_deaths(node: Node, docker: Docker, name: Name) -> None:
    """The container's own limit was hit, and not a task's. It is replaced as others are."""
    async with kept(node, 1) as pool:
        occupant = Occupant()
        entry = await taken(pool, occupant)
        slot = entry.occupied()
        docker.cli("update", "--memory", "40m", "--memory-swap", "40m", name(0))
        with pytest.raises(SlotFailedError):
            await slots.start(node, slot, "sleep", "60", stdin=bytes(32 << 20))
        await eventually("the attempt is told", lambda: bool(occupant.failed))
        assert "for want of memory" in occupant.failed[0]
        await eventually("another slot", all_idle(pool))
        assert entry.occupied() is not slot
        assert (await slots.run(node, entry.occupied(), "echo", "next")).stdout == b"next\n"


async def test_a_slot_that_keeps_breaking_is_quarantined_and_the_others_serve(
    node: Node, docker: Docker, name: Name
) -> None:
    async with kept(node, 2) as pool:
        await eventually("both are there", all_idle(pool))
        broken = pool.entries[0]
        for _ in range(3):
            await eventually("it is back", lambda: broken.state is SlotState.IDLE)
            await asyncio.to_thread(docker.cli, "rm", "-f", name(0))
            await eventually("it is gone", lambda: broken.state is not SlotState.IDLE)
        await eventually("it waits", lambda: broken.state is SlotState.PROVISIONING and broken.slot is None)
        assert broken.failures >= 3
        for _ in range(3):
            entry = await taken(pool, Occupant())
            assert entry.number == 1
            await slots.run(node, entry.occupied(), "true")
            pool.give_back(entry)


async def test_an_image_that_is_gone_is_said_and_waited_for(node: Node, docker: Docker) -> None:
    docker.cli("tag", docker.image, "claw-test-gone")
    docker.cli("rmi", "claw-test-gone")
    async with kept(node, 1, image="claw-test-gone") as pool:
        (entry,) = pool.entries
        await eventually("it says why", lambda: "claw-test-gone" in entry.last_failure)
        docker.cli("tag", docker.image, "claw-test-gone")
        await eventually("it is there", all_idle(pool))
    docker.cli("rmi", "claw-test-gone")
