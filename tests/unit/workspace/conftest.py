"""The service over stores in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloudclaw.clock import SystemClock
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots.port import TreeLimits
from tests.support.workspace_service import User, WorkspaceStack, workspace_service

LIMITS = TreeLimits(file_bytes=1 << 20, total_bytes=3 << 20, files=50)


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[WorkspaceStack]:
    async with workspace_service(tmp_path, MemoryKeyValue(SystemClock()), MemoryObjects(), limits=LIMITS) as running:
        yield running


@pytest.fixture
async def user(stack: WorkspaceStack) -> User:
    """A tenant with an empty workspace `ws`."""
    user = stack.user()
    await user.create("ws")
    return user
