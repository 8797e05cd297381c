"""A scheduler over the memory store for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest_asyncio

from cloudclaw.clock import SystemClock
from cloudclaw.coordination.memory import MemoryKeyValue
from tests.unit.scheduler.failing import FailingObjects
from tests.unit.scheduler.plane import Plane, User
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
