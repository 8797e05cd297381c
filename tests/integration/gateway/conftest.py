"""A gateway for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.gateway import GatewayRig


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    """A gateway that a manager is connected to."""
    made = GatewayRig(tmp_path)
    await made.start()
    yield made
    await made.close()
