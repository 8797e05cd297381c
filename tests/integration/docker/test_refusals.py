"""Runtimes and what else an engine may refuse: said where operators look."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudclaw.errors import PreconditionError
from cloudclaw_pool_manager.domain.slot import SlotState
from cloudclaw_pool_manager.ports.backend import SlotFailedError
from tests.integration.docker.test_loss import kept
from tests.support import slots
from tests.support.engine import Docker
from tests.support.processes import eventually
from tests.support.slots import Node

pytestmark = pytest.mark.docker
Name = Callable[[int], str]


def script(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
    return path


@pytest.fixture
def calls(docker: Docker, tmp_path: Path) -> Iterator[Path]:
    """What the runtime `traced` was called with; the engine has it, and `broken`, which starts nothing."""
    runc = shutil.which("runc")
    assert runc is not None
    calls = tmp_path / "calls"
    runtimes = {
        "traced": script(tmp_path / "traced", f'echo "$@" >> {calls}', f'exec {runc} "$@"'),
        "broken": script(tmp_path / "broken", "echo no virtual machines here >&2", "exit 1"),
    }
    docker.stop()
    docker.launch(runtimes=runtimes)
    docker.until_up()
    yield calls
    docker.stop()
    docker.start()


async def test_a_templates_runtime_starts_its_containers(node: Node, docker: Docker, calls: Path, name: Name) -> None:
    pool = node.pool(runtime="traced")
    await pool.probe()
    slot = await pool.provision(0)
    container, runtime = docker.cli("inspect", "-f", "{{.Id}} {{.HostConfig.Runtime}}", name(0)).stdout.split()
    assert runtime == "traced"
    created = [line for line in calls.read_text().splitlines() if " create " in line]
    assert len(created) == 1
    assert created[0].endswith(container)
    assert (await slots.run(node, slot, "echo", "works")).stdout == b"works\n"
    await pool.destroy(slot)


async def test_a_runtime_that_the_engine_has_not_or_that_cannot_start_is_named(
    node: Node, docker: Docker, calls: Path
) -> None:
    with pytest.raises(PreconditionError, match="has no runtime 'kata': add it to its"):
        await node.pool(runtime="kata").probe()
    # The engine may lose it while the manager runs.
    async with kept(node, 1, runtime="kata") as pool:
        (entry,) = pool.entries
        await eventually("it says why", lambda: "runtime" in entry.last_failure and "kata" in entry.last_failure)
        assert entry.state is SlotState.PROVISIONING
    with pytest.raises(SlotFailedError, match="broken"):
        await node.pool(runtime="broken").provision(0)
    assert docker.containers() == []


@pytest.fixture
def small(node: Node) -> Iterator[Path]:
    """The node's directory on a file system of 4 MiB."""
    directory = node.config.node_dir
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=755", "tmpfs", directory], check=True)
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


async def test_a_full_disk_is_named_and_slots_come_when_there_is_room(node: Node, docker: Docker, small: Path) -> None:
    pool = node.pool()
    await pool.adopt()
    ballast = small / "ballast"
    with pytest.raises(OSError, match="No space left"):
        await asyncio.to_thread(ballast.write_bytes, bytes(8 << 20))
    with pytest.raises((SlotFailedError, OSError), match="No space left"):
        await pool.provision(0)
    assert docker.containers() == []
    ballast.unlink()
    await pool.destroy(await pool.provision(0))
