"""What is mounted around a supervisor: each of its sandboxes pays for it."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloudclaw_pool_manager.ports.backend import Slot
from cloudclaw_supervisor import linux, staging
from tests.support import slots
from tests.support.require import require_bubblewrap, require_root
from tests.support.slots import Node

pytestmark = pytest.mark.sandbox


@pytest.fixture
def backend() -> None:
    """Only where supervisors are processes of the host: a container has no more mounts than it was given."""
    require_bubblewrap()
    require_root()


@pytest.fixture
def inner() -> Iterator[Path]:
    """A file system of its own within a directory, writable for everybody.

    Not below /tmp, which sandboxes have anew.
    """
    with tempfile.TemporaryDirectory(dir="/var/lib", prefix="claw-outer-") as outer:
        Path(outer).chmod(0o755)
        path = Path(outer) / "inner"
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", path], check=True)
        yield path
        subprocess.run(["umount", "--lazy", path], check=True)


def mounted(pid: int) -> list[str]:
    """Mount points as a process sees them, each with what is mounted of its file system."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return [" ".join(line.split(" ")[3:5]) for line in lines]


async def test_a_supervisor_has_the_mounts_that_its_sandboxes_need(node: Node, inner: Path) -> None:
    slot = await node.pool().provision(0)
    points = [line.split(" ")[1] for line in mounted(slot.pid)]
    assert "/proc" in points
    assert not [point for point in points if point.startswith(("/sys", str(inner)))]


async def test_what_is_attached_to_a_slot_is_mounted_for_no_other(node: Node) -> None:
    pool = node.pool()
    one, two = await pool.provision(0), await pool.provision(1)
    identity, tree = await slots.start(node, two, "sh", "-c", "echo up; exec sleep 60")
    await slots.printed(two, identity.uid, b"up")
    assert f"{tree.name}/workspace" in "\n".join(mounted(two.pid))
    assert tree.name not in "\n".join(mounted(one.pid))
    await slots.ended(node, two, identity)


async def test_what_is_mounted_in_a_read_only_directory_is_read_only_too(node: Node, inner: Path) -> None:
    (inner / "file").write_text("there")
    pool = node.pool(read_only=(slots.PYTHON_PREFIX, str(inner.parent)))
    slot: Slot = await pool.provision(0)
    ended = await slots.run(node, slot, "sh", "-c", f"cat {inner}/file; echo x > {inner}/file || touch {inner}/new")
    assert ended.stdout == b"there"
    assert ended.stderr.count(b"Read-only file system") == 2
    assert [path.name for path in inner.iterdir()] == ["file"]


def test_a_mount_that_goes_while_a_supervisor_starts_does_not_keep_it_from_starting(
    backend: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = str(tmp_path / "gone")
    tried: list[str] = []
    monkeypatch.setattr(staging, "_mount_points", lambda: [gone, f"{gone}/other"])
    detach, mount = linux.detach, linux.mount

    def detached(path: str) -> None:
        tried.append(path)
        detach(path)

    def mounted_private(source: str, target: str, flags: int) -> None:
        tried.append(target)
        mount(source, target, flags)

    monkeypatch.setattr(linux, "detach", detached)
    monkeypatch.setattr(linux, "mount", mounted_private)
    config: Any = SimpleNamespace(directory=f"{gone}/node/slot-0", bwrap="/usr/bin/bwrap")
    staging._leave_the_rest("/mnt", config)
    assert tried == [f"{gone}/other", gone], "the one it does not need, and the one it would keep"
