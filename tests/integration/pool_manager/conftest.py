"""A cluster of real processes for each test; one etcd for all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.integration.pool_manager.cluster import Cluster
from tests.support.etcd_server import EtcdServer
from tests.support.require import require_bubblewrap


@pytest.fixture
def etcd() -> Iterator[EtcdServer]:
    require_bubblewrap()
    server = EtcdServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest_asyncio.fixture
async def cluster(etcd: EtcdServer) -> AsyncIterator[Cluster]:
    async with Cluster(etcd) as made:
        yield made
