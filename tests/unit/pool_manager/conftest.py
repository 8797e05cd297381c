"""Nodes in memory for the tests of the pool-manager."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.unit.pool_manager.agents import agents
from tests.unit.pool_manager.rig import Rig


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    """A node that is connected and warm."""
    made = Rig()
    await made.start()
    yield made
    await made.close()


@pytest_asyncio.fixture
async def agent_rig() -> AsyncIterator[Rig]:
    """The same, and it offers parrots."""
    made = await agents()
    yield made
    await made.close()
