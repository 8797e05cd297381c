"""A gateway for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.gateway import GatewayRig


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayRig]:
    """A gateway that a manager is connected to, for all tests of a module."""
    made = GatewayRig(tmp_path_factory.mktemp("gateway"))
    await made.start()
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def shared(running: GatewayRig) -> AsyncIterator[GatewayRig]:
    """That gateway, without anything of the test before."""
    yield running
    await running.reset()


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    """A gateway of the test's own."""
    made = GatewayRig(tmp_path)
    await made.start()
    yield made
    await made.close()
