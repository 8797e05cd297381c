"""There are never more containers than slots."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudclaw_pool_manager.domain.slot import SlotState
from cloudclaw_pool_manager.ports.backend import Slot, SlotFailedError
from tests.integration.docker.test_loss import all_idle, kept
from tests.support.engine import Docker
from tests.support.processes import eventually
from tests.support.slots import Node

pytestmark = pytest.mark.docker


@contextlib.contextmanager
def recorded(docker: Docker, path: Path) -> Iterator[list[dict[str, str]]]:
    """Events of containers meanwhile, complete once the block is left."""
    events: list[dict[str, str]] = []
    with path.open("wb") as file:
        watching = subprocess.Popen(
            ["docker", "--host", docker.url, "events", "--filter", "type=container", "--format", "{{json .}}"],
            stdout=file,
        )
    try:
        # The stream has begun once it shows a container that is made for it.
        while b"claw-mark" not in path.read_bytes():
            docker.cli("create", "--name", "claw-mark", docker.image, "true")
            docker.cli("rm", "claw-mark")
        yield events
        docker.cli("create", "--name", "claw-end", docker.image, "true")
        docker.cli("rm", "claw-end")
        while b"claw-end" not in path.read_bytes():
            assert watching.poll() is None
    finally:
        watching.terminate()
        watching.wait()
    events += [json.loads(line) for line in path.read_text().splitlines()]


def most(events: list[dict[str, str]], begins: str, ends: str) -> int:
    """The largest number of containers between two of their events, at once."""
    now: set[str] = set()
    peak = 0
    for event in events:
        if event["status"] == begins:
            now.add(event["id"])
        elif event["status"] == ends:
            now.discard(event["id"])
        peak = max(peak, len(now))
    return peak


async def test_a_storm_of_recycling_never_exceeds_it(node: Node, docker: Docker, tmp_path: Path) -> None:
    with recorded(docker, tmp_path / "events") as events:
        async with kept(node, 3) as pool:
            for _ in range(4):
                await eventually("all are there", all_idle(pool))
                for entry in pool.entries:
                    pool.recycle(entry, "storm")
                await eventually("they go", lambda: pool.count(SlotState.IDLE) < 3)
            await eventually("all are there", all_idle(pool))
    assert sum(event["status"] == "start" for event in events) == 15
    assert most(events, "start", "die") == 3
    assert most([event for event in events if event["from"] == docker.image], "create", "destroy") <= 3 + 1


async def test_two_managers_at_once_do_not_exceed_it(node: Node, docker: Docker, tmp_path: Path) -> None:
    one, two = node.pool(slots=2), node.pool(slots=2)
    with recorded(docker, tmp_path / "events") as events:
        starts = [pool.provision(number) for number in (0, 1) for pool in (one, two)]
        found = await asyncio.gather(*starts, return_exceptions=True)
    slots_made = [slot for slot in found if not isinstance(slot, BaseException)]
    assert len(slots_made) == 2
    assert [repr(e) for e in found if isinstance(e, BaseException) and not isinstance(e, SlotFailedError)] == []
    assert most(events, "start", "die") == 2


async def test_a_slot_is_used_once_when_the_template_says_so(node: Node, docker: Docker) -> None:
    from tests.integration.docker.test_loss import Occupant, taken
    from tests.support import slots

    async with kept(node, 1, single_use=True) as pool:
        seen: list[Slot] = []
        for _ in range(2):
            entry = await taken(pool, Occupant())
            seen.append(entry.occupied())
            await slots.run(node, entry.occupied(), "true")
            pool.give_back(entry)
        await eventually("another", all_idle(pool))
        assert seen[0] is not seen[1]
        assert len(docker.containers()) == 1
