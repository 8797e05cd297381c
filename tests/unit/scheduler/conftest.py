"""A scheduler over the memory store for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from cloudclaw.clock import SystemClock
from cloudclaw.coordination.memory import MemoryKeyValue
from tests.support.kv import FaultyKeyValue
from tests.unit.scheduler.failing import FailingObjects
from tests.unit.scheduler.plane import Plane, User, soon, until
from tests.unit.scheduler.talking import Host, Talker


@pytest_asyncio.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    plane = Plane(MemoryKeyValue(SystemClock()), FailingObjects(), tmp_path)
    await plane.start()
    yield plane
    await plane.stop()


@pytest_asyncio.fixture
async def user(plane: Plane) -> User:
    return User(plane)


@pytest_asyncio.fixture
async def host(plane: Plane) -> Host:
    """A node with one slot that offers an agent, connected."""
    host = Host(plane)
    await host.connect()
    return host


@pytest_asyncio.fixture
async def talker(plane: Plane, host: Host) -> Talker:
    return Talker(plane)


@pytest_asyncio.fixture
async def another(plane: Plane, tmp_path: Path) -> AsyncIterator[Callable[[], Plane]]:
    """Makes further replicas over the same stores; all are stopped at the end."""
    made: list[Plane] = []

    def make() -> Plane:
        made.append(Plane(plane.kv, plane.objects, tmp_path))
        return made[-1]

    yield make
    for each in made:
        await each.stop()


@pytest.fixture
def kv(plane: Plane) -> FaultyKeyValue:
    """The store of a plane that was made over a faulty one."""
    assert isinstance(plane.kv, FaultyKeyValue)
    return plane.kv


@pytest_asyncio.fixture
async def elsewhere(another: Callable[[], Plane]) -> Talker:
    """The same user, who speaks to another replica."""
    other = another()
    await other.start(leads=False)
    await until("it has loaded", other.scheduler.mirror.loaded.is_set)
    return Talker(other)


@pytest.fixture
def speak(kv: FaultyKeyValue, elsewhere: Talker) -> Callable[[str], None]:
    """The task is told `m1`, on another replica, just before the next transaction is sent."""

    def beside(task: str) -> None:
        async def say() -> None:
            await soon(elsewhere.say(task, "m1"))

        kv.before_txn = say

    return beside
