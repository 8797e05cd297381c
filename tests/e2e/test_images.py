"""Every image at work: each service, a slot and an agent in the container that `deploy/images` makes for it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from cloudclaw.v1 import pool_manager_pb2, task_pb2
from tests.support.agents import ask, require_agents
from tests.support.engine import Docker
from tests.support.image_stack import ImageStack, agents_image
from tests.support.processes import eventually
from tests.support.require import CACHE, require_binary

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

SERVICES = ("scheduler", "workspace", "gateway", "pool-manager")
SCRIPT = """
[[scenarios]]
name = "hello"
[[scenarios.turns]]
text = "I write it."
tools = [{ bash = "id -u > uid; echo hello > hello.txt" }]
[[scenarios.turns]]
text = "It is written."
"""


@pytest.fixture(scope="module")
def images(docker: Docker) -> dict[str, str]:
    """Tags by service, and the slots' with an agent."""
    require_agents("claude-code")
    require_binary("minio")
    built = dict(zip(SERVICES, docker.build(*SERVICES), strict=True))
    return {**built, "agent": agents_image(docker, CACHE / "agents/current")}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(
    docker: Docker, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ImageStack]:
    folder = tmp_path_factory.mktemp("images")
    script = folder / "script.toml"
    script.write_text(SCRIPT)
    async with ImageStack(folder, script, docker, images) as stack:
        await stack.wait_ready("claude-code", nodes=1)
        yield stack
    assert docker.containers() == []


async def test_an_agent_in_its_image_works_through_services_in_theirs(stack: ImageStack) -> None:
    acme = stack.tenant("acme")
    await acme.create_workspace("code")
    task = await ask(
        acme, "claude-code", "[[scenario:hello]] Write.", workspace=task_pb2.WorkspaceSelection(name="code")
    )
    ended = await acme.wait(task)
    assert ended.state == task_pb2.TASK_STATE_SUCCEEDED, (ended, stack.log_of("pool-manager")[-3000:])
    assert (await acme.result(task)).final_message == "It is written."
    assert await acme.read_file("code", "hello.txt") == b"hello\n"
    assert await acme.read_file("code", "uid") == b"1000\n"


async def test_a_manager_in_a_container_limits_its_slots_and_adopts_them(stack: ImageStack, docker: Docker) -> None:
    (slot,) = await stack.slots("node-1")
    assert slot.uid > 200_000
    assert not slot.uid_shared
    groups = (pool_manager_pb2.LIMIT_MECHANISM_CGROUP_V1, pool_manager_pb2.LIMIT_MECHANISM_CGROUP_V2)
    assert {slot.cpu in groups, slot.memory in groups, slot.pids in groups} == {True}
    acme = stack.tenant("acme")
    task = await acme.shell("echo begun; until [ -e go ]; do sleep 0.01; done; echo ended")
    await acme.wait_output(task, b"begun\n")
    await stack.killed_and_started_again("pool-manager")

    async def adopted() -> bool:
        (found,) = await stack.slots("node-1")
        assert found.pid in (0, slot.pid)
        return (found.pid, found.task_id) == (slot.pid, task)

    await eventually("the slot is there with its task", adopted)
    (tree,) = (stack.directory / "nodes/node-1/trees/live").iterdir()
    (tree / "workspace/go").touch()
    ended = await acme.wait(task)
    assert (ended.state, len(ended.attempts)) == (task_pb2.TASK_STATE_SUCCEEDED, 1)
    assert await acme.log(task) == b"begun\nended\n"
