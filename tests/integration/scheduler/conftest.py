"""A scheduler over a real etcd and files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from cloudclaw.objects.filesystem import FilesystemObjects
from tests.support.etcd_server import EtcdServer
from tests.unit.scheduler.plane import Plane, User


@pytest.fixture
def etcd() -> Iterator[EtcdServer]:
    server = EtcdServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest_asyncio.fixture
async def plane(etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[Plane]:
    kv = etcd.open()
    plane = Plane(kv, FilesystemObjects(tmp_path / "objects"), tmp_path, grace=1.0)
    await plane.start()
    yield plane
    await plane.stop()
    await kv.close()


@pytest_asyncio.fixture
async def user(plane: Plane) -> User:
    return User(plane)
