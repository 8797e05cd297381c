"""What a slot's container is, as the engine, the kernel and its own first process see it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudclaw_pool_manager.backends.containers.config import SUPERVISOR_BYTES, SUPERVISOR_PIDS
from cloudclaw_pool_manager.ports.backend import Mechanism
from cloudclaw_supervisor.processes import descendants
from tests.support import slots
from tests.support.engine import Docker
from tests.support.slots import LIMITS, Node

pytestmark = pytest.mark.docker
Name = Callable[[int], str]


async def test_it_has_nothing_that_it_does_not_need(node: Node, docker: Docker, name: Name) -> None:
    slot = await node.pool().provision(0)
    (found,) = json.loads(docker.cli("inspect", name(0)).stdout)
    host = found["HostConfig"]
    assert (host["CapDrop"], host["CapAdd"], host["Privileged"]) == (["ALL"], None, False)
    assert host["ReadonlyRootfs"]
    assert host["NetworkMode"] == "none"
    assert host["MaskedPaths"] == ["/sys"]
    assert not host["ReadonlyPaths"]
    assert found["Config"]["User"] == f"{slot.uid}:{slot.uid}"
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert host["Memory"] == host["MemorySwap"] == LIMITS.memory_bytes + SUPERVISOR_BYTES
    assert host["PidsLimit"] == LIMITS.pids + SUPERVISOR_PIDS
    assert host["CpuQuota"] == 2 * host["CpuPeriod"]
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}}
    writable = [mount["Destination"] for mount in found["Mounts"] if mount["RW"]]
    assert writable == ["/slot/ctl"]


async def test_its_processes_have_no_rights(node: Node) -> None:
    slot = await node.pool().provision(0)
    identity, _ = await slots.start(node, slot, "sh", "-c", "echo up; exec sleep 60")
    await slots.printed(slot, identity.uid, b"up")
    pids = [slot.pid, *descendants(slot.pid)]
    assert len(pids) == 4  # supervisor, bubblewrap, the first process, the task
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text()
        assert set(status.split("Uid:")[1].split("\n")[0].split()) == {str(slot.uid)}
        assert "NoNewPrivs:\t1" in status
        assert "Seccomp:\t2" in status
    outside = Path(f"/proc/{slot.pid}/status").read_text()
    assert {line.split()[1] for line in outside.splitlines() if line.startswith("Cap")} == {"0" * 16}
    assert os.readlink(f"/proc/{slot.pid}/ns/net") != os.readlink("/proc/self/ns/net")
    interfaces = Path(f"/proc/{slot.pid}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]


async def test_a_sandbox_is_limited_below_its_container(node: Node, docker: Docker, name: Name) -> None:
    """The engine limits the container, the manager its sandbox; `ListSlots` shows what holds."""
    slot = await node.pool().provision(0)
    assert slot.enforcement.memory in (Mechanism.CGROUP_V1, Mechanism.CGROUP_V2)
    identity, _ = await slots.start(node, slot, "sh", "-c", "echo up; exec sleep 60")
    await slots.printed(slot, identity.uid, b"up")
    container = docker.cli("inspect", "-f", "{{.Id}}", name(0)).stdout.strip()
    task = descendants(slot.pid)[-1]
    groups = {line.split(":")[1]: line.split(":")[2] for line in Path(f"/proc/{task}/cgroup").read_text().splitlines()}
    assert any(path.endswith(f"{container}/box") for path in groups.values())
    for controller in ("memory", "pids", "cpu"):
        if controller in groups:
            assert groups[controller].endswith(f"{container}/box")


async def test_a_task_that_asks_for_more_than_the_container_has_hits_a_limit_of_its_own(node: Node) -> None:
    from dataclasses import replace

    from cloudclaw_pool_manager.domain.attempt import KillReason

    slot = await node.pool(memory_bytes=128 << 20).provision(0)
    eat = "b = []\nwhile True: b.append(bytearray(b'x' * (1 << 20)))"
    ended = await slots.python(node, slot, eat, limits=replace(LIMITS, cpu_millis=64_000, memory_bytes=8 << 30))
    assert ended.exit.killed is KillReason.MEMORY_LIMIT
    assert (await slots.run(node, slot, "echo", "next")).stdout == b"next\n"


async def test_the_lock_is_held_across_the_bind_mount_by_the_supervisor_alone(node: Node) -> None:
    pool = node.pool()
    slot = await pool.provision(0)
    lock = os.open(node.config.node_dir / "slots/slot-0.lock", os.O_RDWR)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        await pool.close()
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(slot.pid, 9)
        async with asyncio.timeout(slots.WITHIN):
            await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
    finally:
        os.close(lock)


@pytest.fixture
def private() -> Iterator[Path]:
    """A folder whose parent is closed to other users, and that no sandbox has something of its own in place of."""
    parent = Path(tempfile.mkdtemp(prefix="claw-private-", dir="/srv"))
    made = parent / "tools"
    made.mkdir()
    yield made
    shutil.rmtree(parent)


async def test_a_templates_directories_are_seen_at_their_own_path(node: Node, private: Path) -> None:
    (private / "tool").write_text("#!/bin/sh\necho it works\n")
    (private / "tool").chmod(0o755)
    slot = await node.pool(read_only=(str(private), "/usr/local/share")).provision(0)
    ended = await slots.run(node, slot, "sh", "-c", f"{private}/tool; touch {private}/x; touch /usr/local/share/x")
    assert ended.stdout == b"it works\n"
    assert ended.stderr.count(b"Read-only file system") == 2


async def test_a_task_sees_the_image_and_not_this_host(node: Node) -> None:
    slot = await node.pool().provision(0)
    ended = await slots.run(node, slot, "sh", "-c", "ls -d /opt /slot /home/agent; cat /etc/hostname; dpkg --version")
    assert ended.text.splitlines()[:2] == ["/home/agent", "slot-0"]
    assert b"/slot" in ended.stderr, "the slot's own files are not there"
