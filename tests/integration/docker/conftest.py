"""A node whose slots are containers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from tests.support import slots
from tests.support.engine import Docker
from tests.support.slots import Node

Name = Callable[[int], str]


@pytest.fixture
async def node(docker: Docker) -> AsyncIterator[Node]:
    async with slots.node(docker) as made:
        yield made


@pytest.fixture
def name(node: Node) -> Name:
    """The name of a slot's container, once its pool has begun."""

    def of(number: int) -> str:
        identity = (node.config.node_dir / "identity").read_text().strip()
        return f"cloudclaw-{identity[:12]}-slot-{number}"

    return of
