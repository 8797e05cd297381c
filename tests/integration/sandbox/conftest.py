"""A node with one running slot for each test that asks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cloudclaw_pool_manager.ports.backend import Slot
from tests.support import slots
from tests.support.require import require_bubblewrap
from tests.support.slots import Node


@pytest.fixture
def require_bwrap() -> None:
    require_bubblewrap()


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    require_bubblewrap()
    async with slots.node() as made:
        yield made


@pytest.fixture
async def slot(node: Node) -> Slot:
    return await node.pool().provision(0)
