"""A whole stack whose slots are containers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from cloudclaw.errors import UnavailableError
from cloudclaw.v1 import task_pb2
from tests.support.engine import Docker
from tests.support.processes import eventually
from tests.support.stack import Stack, Tenant

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Two nodes of one slot on one engine. Nothing of it is left afterwards."""
    options = ("--backend", "docker", "--engine", docker.url, "--image", docker.image)
    async with Stack(tmp_path_factory.mktemp("docker"), nodes=2, slots=1, extra=options) as stack:
        yield stack
    assert docker.containers() == []


@pytest.fixture
def acme(stack: Stack) -> Tenant:
    return stack.tenant("acme")


async def ran(stack: Stack, tenant: Tenant, task: str) -> task_pb2.Task:
    ended = await tenant.wait(task)
    assert ended.state == task_pb2.TASK_STATE_SUCCEEDED, ended
    return ended


async def test_a_task_runs_in_the_image(stack: Stack, acme: Tenant, docker: Docker) -> None:
    task = await acme.shell("rg --version && hostname && id -u")
    await ran(stack, acme, task)
    assert (await acme.log(task)).decode().splitlines()[-2:] == ["slot-0", "1000"]
    assert len(docker.containers()) == 2
    (slot,) = await stack.slots("node-1")
    assert slot.uid > 200_000
    assert not slot.uid_shared


async def test_a_killed_manager_adopts_its_container_with_the_attempt(
    stack: Stack, acme: Tenant, docker: Docker
) -> None:
    """Not the process, not one byte of its log is lost."""
    await acme.create_workspace("kept")
    script = "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; echo made > file"
    task = await acme.shell(script, workspace=task_pb2.WorkspaceSelection(name="kept"))
    await acme.wait_output(task, b"line 20\n")
    node = (await acme.get(task)).attempts[-1].node
    before = docker.containers()
    old = stack.kill(f"pool-manager@{node}")
    await stack.wait_restarted(f"pool-manager@{node}", old)
    ended = await ran(stack, acme, task)
    assert len(ended.attempts) == 1, "it was never lost"
    assert (await acme.log(task)).decode() == "".join(f"line {number}\n" for number in range(400))
    assert await acme.read_file("kept", "file") == b"made\n"
    assert docker.containers() == before


async def test_a_task_of_a_lost_node_runs_in_a_container_elsewhere(stack: Stack, acme: Tenant) -> None:
    task = await acme.shell("echo attempt $CLAW_ATTEMPT; [ $CLAW_ATTEMPT -gt 1 ] || sleep 60")
    await acme.wait_output(task, b"attempt 1\n")
    node = (await acme.get(task)).attempts[-1].node
    await stack.kill_node(node)
    ended = await ran(stack, acme, task)
    assert ended.attempts[-1].number == 2
    assert b"attempt 2\n" in await acme.log(task, attempt=2)


async def test_a_container_removed_at_work_is_replaced_and_the_task_runs_again(
    stack: Stack, acme: Tenant, docker: Docker
) -> None:
    async def both() -> bool:
        try:
            return len([slot for node in ("node-1", "node-2") for slot in await stack.slots(node) if slot.pid]) == 2
        except UnavailableError:  # the node of the test before is on its way back
            return False

    await eventually("both nodes have their slot", both)
    task = await acme.shell("echo attempt $CLAW_ATTEMPT; [ $CLAW_ATTEMPT -gt 1 ] || sleep 60")
    await acme.wait_output(task, b"attempt 1\n")
    for name in docker.containers():
        docker.cli("rm", "-f", name)
    ended = await ran(stack, acme, task)
    assert ended.attempts[0].reason == task_pb2.END_REASON_SLOT_FAILED
    await eventually("both nodes have their slot", both)
