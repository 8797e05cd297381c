"""One stack for all end-to-end tests that break nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.stack import Stack


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Two nodes of two slots, on a real MinIO."""
    async with Stack(tmp_path_factory.mktemp("e2e"), nodes=2, slots=2, objects="minio") as stack:
        yield stack
