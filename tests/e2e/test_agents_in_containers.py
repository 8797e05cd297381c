"""Real agents in slots that are containers; the agents are this host's, bound into the slots' image."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudclaw.cli.dev.agents import default_prefix
from tests.e2e.test_agents_resume import SCRIPT, loses_its_node
from tests.support.agents import AGENTS, AgentStack, require_agents
from tests.support.engine import Docker

pytestmark = [pytest.mark.docker, pytest.mark.agents, pytest.mark.timeout(300)]


@pytest.mark.parametrize("runtime", AGENTS)
async def test_a_session_goes_on_in_a_container_elsewhere(docker: Docker, tmp_path: Path, runtime: str) -> None:
    require_agents(runtime)
    options = (
        "--backend",
        "docker",
        "--engine",
        docker.url,
        "--image",
        docker.image,
        "--agents",
        str(default_prefix()),
    )
    async with AgentStack(tmp_path, SCRIPT, nodes=2, slots=1, restart=False, extra=options) as stack:
        await stack.wait_ready(runtime, nodes=2)
        await loses_its_node(stack, runtime)
    assert docker.containers() == []
