"""A node with one running slot for each test that asks, on each backend."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cloudclaw_pool_manager.ports.backend import Slot
from tests.support import engine, slots
from tests.support.require import require_bubblewrap
from tests.support.slots import Node


@pytest.fixture
def require_bwrap() -> None:
    require_bubblewrap()


@pytest.fixture(params=["bubblewrap", pytest.param("docker", marks=pytest.mark.docker)])
def backend(request: pytest.FixtureRequest) -> engine.Docker | None:
    """Where slots live: None for processes of this host, else an engine."""
    if request.param == "bubblewrap":
        require_bubblewrap()
        return None
    running: engine.Docker = request.getfixturevalue("docker")
    return running


@pytest.fixture
async def node(backend: engine.Docker | None) -> AsyncIterator[Node]:
    async with slots.node(backend) as made:
        yield made


@pytest.fixture
async def slot(node: Node) -> Slot:
    return await node.pool().provision(0)
