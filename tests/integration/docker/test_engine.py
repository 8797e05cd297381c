"""The engine dies and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from cloudclaw.errors import PreconditionError, UnavailableError
from cloudclaw_pool_manager.domain.slot import SlotState
from cloudclaw_pool_manager.ports.backend import SlotFailedError, SlotPhase
from tests.integration.docker.test_loss import Occupant, all_idle, kept, taken
from tests.support import slots
from tests.support.engine import Docker
from tests.support.processes import eventually
from tests.support.slots import Node

pytestmark = pytest.mark.docker
Name = Callable[[int], str]


@pytest.fixture
def mortal(docker: Docker) -> Iterator[Docker]:
    """The engine; it runs again afterwards."""
    yield docker
    if docker.process is None or docker.process.poll() is not None:
        docker.start()


async def started(engine: Docker, *, live_restore: bool = True) -> None:
    engine.launch(live_restore=live_restore)
    await asyncio.to_thread(engine.until_up)


async def test_slots_live_through_the_engines_death(node: Node, mortal: Docker) -> None:
    async with kept(node, 2) as pool:
        occupant = Occupant()
        entry = await taken(pool, occupant)
        await eventually("the other too", lambda: pool.count(SlotState.IDLE) == 1)
        _, tree = await slots.start(node, entry.occupied(), "sh", "-c", "until [ -e go ]; do sleep 0.01; done")
        await asyncio.to_thread(mortal.kill)
        (other,) = (found for found in pool.entries if found is not entry)
        ended = await slots.run(node, other.occupied(), "echo", "no engine")
        assert ended.stdout == b"no engine\n"
        await started(mortal)
        (tree / "workspace/go").touch()
        assert (await slots.exited(entry.occupied())).code == 0
        assert occupant.failed == []
        assert pool.count(SlotState.IDLE) == 1


async def test_while_it_is_away_new_slots_wait_and_say_so(node: Node, mortal: Docker, name: Name) -> None:
    async with kept(node, 1) as pool:
        await eventually("it is there", all_idle(pool))
        (entry,) = pool.entries
        await asyncio.to_thread(mortal.kill)
        pool.recycle(entry, "test")
        await eventually("it says why", lambda: "does not answer" in entry.last_failure)
        assert entry.state is SlotState.PROVISIONING
        assert entry.failures == 0, "an engine that is away is no fault of the slot"
        await started(mortal)
        await eventually("it is back", all_idle(pool))
        assert await asyncio.to_thread(mortal.containers) == [name(0)]


async def test_without_live_restore_slots_end_and_come_back(node: Node, mortal: Docker, name: Name) -> None:
    async with kept(node, 1) as pool:
        occupant = Occupant()
        entry = await taken(pool, occupant)
        await slots.start(node, entry.occupied(), "sleep", "60")
        await asyncio.to_thread(mortal.kill)
        await started(mortal, live_restore=False)
        await eventually("the attempt is told", lambda: bool(occupant.failed))
        await eventually("another slot", all_idle(pool))
        assert await asyncio.to_thread(mortal.containers) == [name(0)]
        await asyncio.to_thread(mortal.stop)
        await started(mortal)
        await eventually("once more", all_idle(pool))


async def test_a_pause_that_nobody_was_told_of_is_found(node: Node, mortal: Docker, name: Name) -> None:
    slot = await node.pool().provision(0)
    container = mortal.cli("inspect", "-f", "{{.Id}}", name(0)).stdout.strip()
    await asyncio.to_thread(mortal.kill)
    await started(mortal)
    mortal.cli("pause", container)
    with pytest.raises(SlotFailedError, match="paused"):
        await slots.until(slot, lambda status: False, within=10)


async def test_a_manager_adopts_without_an_engine(node: Node, mortal: Docker) -> None:
    first = node.pool()
    slot = await first.provision(0)
    identity, tree = await slots.start(node, slot, "sh", "-c", "until [ -e go ]; do sleep 0.01; done; echo done")
    await first.close()
    await asyncio.to_thread(mortal.kill)
    second = node.pool(incarnation=2)
    await second.probe()
    (adopted,) = await second.adopt()
    assert (adopted.pid, (await adopted.status()).phase) == (slot.pid, SlotPhase.RUNNING)
    (tree / "workspace/go").touch()
    await slots.exited(adopted)
    assert (await slots.log(adopted, identity.uid))[0] == b"done\n"
    await adopted.release(identity.uid)
    await second.destroy(adopted)
    with pytest.raises(UnavailableError, match="does not answer"):
        await second.provision(1)
    await started(mortal)
    assert (await (await second.provision(0)).status()).phase is SlotPhase.IDLE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"engine": "unix:///nonexistent/docker.sock"}, "no Docker engine answers"),
        ({"image": "claw-test-no-such"}, "make images"),
        ({"runtime": "runsc"}, "has no runtime 'runsc'"),
    ],
)
async def test_a_probe_says_what_is_missing(node: Node, change: dict[str, str], said: str) -> None:
    with pytest.raises(PreconditionError, match=said):
        await node.pool(**change).probe()  # type: ignore[arg-type]


async def test_a_probe_passes_here(node: Node) -> None:
    await node.pool().probe()
