"""The event loop goes on whatever the engine does, and one that accepts and never answers holds nobody for ever."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster

from cloudclaw.errors import PreconditionError, UnavailableError
from cloudclaw_pool_manager.domain.slot import SlotState
from cloudclaw_pool_manager.ports.backend import SlotFailedError
from tests.integration.docker.test_loss import Occupant, all_idle, kept, taken
from tests.support import slots
from tests.support.engine import Docker
from tests.support.processes import eventually
from tests.support.proxy import Proxy
from tests.support.slots import Node

pytestmark = pytest.mark.docker
Name = Callable[[int], str]


@pytest.fixture(autouse=True)
def guarded() -> Iterator[None]:
    """A call that blocks the event loop from within the pool-manager fails the test."""
    guard = BlockBuster(scanned_modules=["cloudclaw_pool_manager"])
    guard.activate()
    try:
        yield
    finally:
        guard.deactivate()


@pytest.fixture
async def proxy(docker: Docker) -> AsyncIterator[Proxy]:
    """Between a pool and the engine: `node.pool(engine=…)`."""
    async with Proxy(docker.url.removeprefix("unix://"), Path(docker.directory) / "proxy") as proxy:
        yield proxy


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_no_operation_blocks_the_loop(node: Node, docker: Docker, name: Name) -> None:
    pool = node.pool()
    await pool.probe()
    await pool.adopt()
    kept_slot, lost, dead = await asyncio.gather(*(pool.provision(number) for number in range(3)))
    assert (await slots.run(node, kept_slot, "echo", "hello")).stdout == b"hello\n"
    await asyncio.to_thread(docker.cli, "pause", name(1))
    with pytest.raises(SlotFailedError, match="paused"):
        await slots.until(lost, lambda status: False)
    os.kill(dead.pid, 9)
    with pytest.raises(SlotFailedError):
        await slots.until(dead, lambda status: False)
    await pool.destroy(lost)
    await pool.destroy(dead)
    with pytest.raises(SlotFailedError, match=r"[Nn]o such image"):
        await node.pool(image="claw-test-no-such").provision(1)
    await pool.close()
    again = node.pool(incarnation=2)
    (adopted,) = await again.adopt()
    await again.destroy(adopted)
    await again.close()


async def test_an_engine_that_never_answers_holds_up_neither_the_loop_nor_who_asks(node: Node, proxy: Proxy) -> None:
    turns = 0

    async def turning() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.001)

    running = asyncio.create_task(turning())
    proxy.cut()
    # Sixteen that would wait one after the other would be at it for longer than the test has.
    pool = node.pool(engine=f"unix://{proxy.address}", engine_timeout=1.0, slots=16)
    async with asyncio.timeout(slots.WITHIN):
        with pytest.raises(PreconditionError, match="no Docker engine answers"):
            await pool.probe()
        before = turns
        found = await asyncio.gather(*(pool.provision(number) for number in range(16)), return_exceptions=True)
        assert [type(error) for error in found] == [UnavailableError] * 16
        assert {str(error).rpartition(": ")[2] for error in found} == {"Read timed out"}
        await pool.close()
    assert turns > before
    running.cancel()
    proxy.mend()
    again = node.pool(engine=f"unix://{proxy.address}")
    assert (await slots.run(node, await again.provision(0), "echo", "back")).stdout == b"back\n"


async def test_slots_live_through_a_stall_and_new_ones_come_after_it(node: Node, proxy: Proxy, name: Name) -> None:
    async with kept(node, 2, engine=f"unix://{proxy.address}", engine_timeout=2.0) as pool:
        occupant = Occupant()
        entry = await taken(pool, occupant)
        await eventually("the other too", lambda: pool.count(SlotState.IDLE) == 1)
        (other,) = (found for found in pool.entries if found is not entry)
        proxy.cut()
        pool.recycle(other, "test")
        assert (await slots.run(node, entry.occupied(), "echo", "meanwhile")).stdout == b"meanwhile\n"
        await eventually("it says why", lambda: "does not answer" in other.last_failure)
        assert (other.state, other.failures) == (SlotState.PROVISIONING, 0)
        proxy.mend()
        await eventually("it is back", lambda: other.state is SlotState.IDLE)
        assert occupant.failed == []


async def test_a_manager_adopts_beside_an_engine_that_never_answers(node: Node, proxy: Proxy) -> None:
    """Supervisors kill what they hold when no manager comes for too long."""
    first = node.pool()
    slot = await first.provision(0)
    identity, tree = await slots.start(node, slot, "sh", "-c", "until [ -e go ]; do sleep 0.01; done; echo done")
    await first.close()
    proxy.cut()
    second = node.pool(incarnation=2, engine=f"unix://{proxy.address}")  # which has 30 s for each answer
    async with asyncio.timeout(slots.WITHIN):
        await second.probe()
        (adopted,) = await second.adopt()
    (tree / "workspace/go").touch()
    await slots.exited(adopted)
    assert (await slots.log(adopted, identity.uid))[0] == b"done\n"
    proxy.mend()
    await second.destroy(adopted)


async def test_a_stream_of_events_that_went_dead_is_taken_up_again(
    node: Node, docker: Docker, proxy: Proxy, name: Name
) -> None:
    """Its other end is gone, and nobody was told: as behind a firewall that forgets."""
    async with kept(node, 1, engine=f"unix://{proxy.address}", engine_timeout=2.0) as pool:
        await eventually("it is there", all_idle(pool))
        (entry,) = pool.entries
        slot = entry.occupied()
        proxy.forget()
        await asyncio.to_thread(docker.cli, "pause", name(0))
        await eventually("it is noticed", lambda: "paused" in entry.last_failure)
        await eventually("another slot", lambda: entry.state is SlotState.IDLE and entry.slot is not slot)


async def test_no_descriptor_is_left_by_an_engine_that_comes_and_goes(node: Node, proxy: Proxy) -> None:
    async def round_trip() -> None:
        pool = node.pool(engine=f"unix://{proxy.address}", engine_timeout=1.0)
        proxy.cut()
        with pytest.raises(PreconditionError):
            await pool.probe()
        proxy.mend()
        await pool.probe()
        slot = None
        while slot is None:
            try:
                slot = await pool.provision(0)
            except UnavailableError:
                continue  # a busy engine takes longer than a second
        await pool.destroy(slot)
        away = node.pool(engine="unix:///nonexistent/docker.sock")
        for _ in range(5):
            with pytest.raises(UnavailableError):
                await away.provision(1)
        await away.close()
        await pool.close()

    await round_trip()  # what is opened once, and stays
    before = open_files()
    for _ in range(2):
        await round_trip()
    await eventually("all are closed", lambda: open_files() <= before)
