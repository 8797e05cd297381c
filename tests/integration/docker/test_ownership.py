"""Whose containers are whose."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable

import pytest

from cloudclaw_pool_manager.backends.containers.slot import ContainerSlot
from cloudclaw_pool_manager.backends.docker import DockerPool
from cloudclaw_pool_manager.ports.backend import SlotFailedError, SlotPhase
from tests.support import slots
from tests.support.engine import Docker
from tests.support.slots import Node

pytestmark = pytest.mark.docker
Name = Callable[[int], str]


async def test_foreign_containers_are_left_alone(node: Node, docker: Docker) -> None:
    docker.cli("run", "-d", "--name", "claw-foreign", "--network", "none", docker.image, "sleep", "600")
    try:
        pool = node.pool()
        slot = await pool.provision(0)
        await pool.destroy(slot)
        await pool.provision(1)
        await pool.close()
        assert len(await node.pool(incarnation=2).adopt()) == 1
        state = docker.cli("inspect", "-f", "{{.State.Status}}", "claw-foreign").stdout.strip()
        assert state == "running"
    finally:
        docker.cli("rm", "-f", "claw-foreign")


async def test_a_foreign_container_with_a_slots_name_is_not_removed(node: Node, docker: Docker, name: Name) -> None:
    pool = node.pool()
    await pool.adopt()
    docker.cli("create", "--name", name(0), docker.image, "true")
    try:
        with pytest.raises(SlotFailedError, match="not ours"):
            await pool.provision(0)
        assert name(0) in docker.containers()
    finally:
        docker.cli("rm", "-f", name(0))
    assert (await (await pool.provision(0)).status()).phase is SlotPhase.IDLE


async def test_a_container_that_only_inherits_our_labels_is_not_ours(node: Node, docker: Docker, name: Name) -> None:
    """Somebody looks into a copy of a slot."""
    first = node.pool()
    await first.provision(0)
    docker.cli("commit", "--pause=false", name(0), "claw-test-copy")
    docker.cli(
        "run", "-d", "--name", "claw-copy", "--entrypoint", "sleep", "--network", "none", "claw-test-copy", "600"
    )
    try:
        labels = docker.cli("inspect", "-f", "{{json .Config.Labels}}", "claw-copy").stdout
        assert labels == docker.cli("inspect", "-f", "{{json .Config.Labels}}", name(0)).stdout
        await first.close()
        second = node.pool(incarnation=2)
        (adopted,) = await second.adopt()
        docker.cli("kill", "claw-copy")
        docker.cli("pause", name(0))  # of two events the second
        with pytest.raises(SlotFailedError, match=f"{name(0)} was paused"):
            await slots.until(adopted, lambda status: False)
        await second.destroy(adopted)
        assert docker.containers() == ["claw-copy"]
    finally:
        docker.cli("rm", "-f", "claw-copy")
        docker.cli("rmi", "claw-test-copy")


async def test_late_news_of_a_slots_last_container_do_not_end_the_next_one(
    node: Node, docker: Docker, name: Name
) -> None:
    pool = node.pool()
    assert isinstance(pool, DockerPool)
    old = await pool.provision(0)
    old_id = docker.cli("inspect", "-f", "{{.Id}}", name(0)).stdout.strip()
    await pool.destroy(old)
    new = await pool.provision(0)
    assert isinstance(new, ContainerSlot)
    pool._sick(old_id, name(0), "died")
    assert (await slots.run(node, new, "echo", "on")).stdout == b"on\n"
    pool._sick(new.container, name(0), "died")
    assert new.lost
    await pool.close()
    # Whoever adopts it knows its id, too.
    (adopted,) = await node.pool(incarnation=2).adopt()
    assert isinstance(adopted, ContainerSlot)
    assert adopted.container == new.container != old_id


async def test_two_nodes_share_an_engine(node: Node, docker: Docker) -> None:
    async with slots.node(docker, uid_base=300_000) as other:
        mine, theirs = await node.pool().provision(0), await other.pool().provision(0)
        assert mine.uid != theirs.uid
        for pool in (*node.pools, *other.pools):
            await pool.close()
        (mine,) = await node.pool(incarnation=2).adopt()
        (theirs,) = await other.pool(incarnation=2).adopt()
        assert (await slots.run(node, mine, "echo", "mine")).stdout == b"mine\n"
        assert (await slots.run(other, theirs, "echo", "theirs")).stdout == b"theirs\n"


async def test_labels_tell_people_whose_it_is(node: Node, docker: Docker, name: Name) -> None:
    await node.pool(node="node-7", pool="big").provision(2)
    text = docker.cli("inspect", "-f", "{{json .Config.Labels}}", name(2)).stdout
    for label in ('"io.cloudclaw.node":"node-7"', '"io.cloudclaw.pool":"big"', '"io.cloudclaw.slot":"slot-2"'):
        assert label in text


async def test_what_an_earlier_manager_left_and_does_not_answer_is_removed(
    node: Node, docker: Docker, name: Name
) -> None:
    first = node.pool()
    for number in range(3):
        await first.provision(number)
    deaf = (await first.provision(3)).pid
    await first.close()
    docker.cli("pause", name(0))
    docker.cli("kill", name(1))
    os.kill(deaf, signal.SIGSTOP)
    second = node.pool(incarnation=2, call_timeout=0.5)
    assert [slot.name for slot in await second.adopt()] == ["slot-2"]
    assert [found for found in docker.containers() if found.startswith(name(0)[:-1])] == [name(2)]
    for number in (0, 1, 3):
        again = await second.provision(number)
        assert (await slots.run(node, again, "echo", "new")).stdout == b"new\n"


async def test_a_container_whose_directory_was_removed_is_removed(node: Node, docker: Docker, name: Name) -> None:
    first = node.pool()
    await first.provision(0)
    await first.close()
    shutil.rmtree(node.config.node_dir / "slots/slot-0")
    assert list(await node.pool(incarnation=2).adopt()) == []
    assert name(0) not in docker.containers()


async def test_a_slot_canceled_while_it_starts_leaves_no_container(node: Node, docker: Docker, name: Name) -> None:
    pool = node.pool()
    await pool.adopt()
    starting = asyncio.ensure_future(pool.provision(0))
    while name(0) not in await asyncio.to_thread(docker.containers):  # noqa: ASYNC110 - the engine tells others
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert name(0) not in docker.containers()


@pytest.mark.parametrize("missing", ["bwrap", "dash", "python3"])
async def test_an_image_that_lacks_something_is_no_slot_and_says_why(node: Node, docker: Docker, missing: str) -> None:
    tag = f"claw-test-without-{missing}"
    where = docker.cli("run", "--rm", docker.image, "sh", "-c", f"readlink -f $(command -v {missing})").stdout.strip()
    docker.cli("run", "--name", tag, docker.image, "rm", where)
    docker.cli("commit", tag, tag)
    docker.cli("rm", tag)
    try:
        pool = node.pool(image=tag)
        with pytest.raises(SlotFailedError, match=missing):
            await pool.provision(0)
        assert not [found for found in docker.containers() if "slot-0" in found]
        good = await node.pool().provision(0)
        assert (await good.status()).phase is SlotPhase.IDLE
    finally:
        docker.cli("rmi", "-f", tag)
