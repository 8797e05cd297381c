"""Managers come and go, supervisors stay; and the number of slots is a hard cap."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from cloudclaw.errors import PreconditionError
from cloudclaw_pool_manager.backends import bubblewrap, mounts, probe, spawn
from cloudclaw_pool_manager.backends.limits import node_group
from cloudclaw_pool_manager.domain.attempt import KillReason
from cloudclaw_pool_manager.ports.backend import FencedIncarnationError, SlotFailedError, SlotPhase
from cloudclaw_supervisor.processes import descendants
from tests.support import slots
from tests.support.require import require_root
from tests.support.slots import Node

pytestmark = pytest.mark.sandbox
on_this_host = pytest.mark.parametrize("backend", ["bubblewrap"], indirect=True)
"""What a container does otherwise, see `test_containers`."""


async def test_a_new_manager_takes_over_and_loses_nothing(node: Node) -> None:
    first = node.pool(incarnation=1)
    slot = await first.provision(0)
    script = "echo before; until [ -e go ]; do sleep 0.01; done; echo after; exit 9"
    identity, tree = await slots.start(node, slot, "sh", "-c", script)
    await slots.printed(slot, identity.uid, b"before")
    pid = slot.pid
    await first.close()

    second = node.pool(incarnation=2)
    (adopted,) = await second.adopt()
    assert (adopted.name, adopted.pid) == ("slot-0", pid)
    status = await adopted.status()
    assert (status.phase, status.attempt) == (SlotPhase.RUNNING, identity)
    (tree / "workspace/go").touch()
    ended = await slots.exited(adopted)
    assert ended.code == 9
    assert (await slots.log(adopted, identity.uid))[0] == b"before\nafter\n"
    await adopted.release(identity.uid)
    assert (await slots.run(node, adopted, "echo", "next")).stdout == b"next\n"


async def test_an_exit_while_nobody_looked_is_kept(node: Node) -> None:
    first = node.pool(incarnation=1)
    slot = await first.provision(0)
    identity, tree = await slots.start(node, slot, "sh", "-c", "until [ -e go ]; do sleep 0.01; done; exit 5")
    inside = descendants(slot.pid)
    await first.close()
    (tree / "workspace/go").touch()
    await slots.gone(inside)
    (adopted,) = await node.pool(incarnation=2).adopt()
    assert (await slots.exited(adopted)).code == 5
    record = node.config.node_dir / f"slots/slot-0/ctl/spool/{identity.uid}/exit.json"
    assert '"code": 5' in record.read_text()


async def test_an_older_manager_is_fenced(node: Node) -> None:
    old, new = node.pool(incarnation=1), node.pool(incarnation=2)
    slot = await old.provision(0)
    identity, _ = await slots.start(node, slot, "sleep", "60")
    (adopted,) = await new.adopt()
    with pytest.raises(FencedIncarnationError):
        await slots.until(slot, lambda status: status.exit is not None)
    with pytest.raises(FencedIncarnationError):
        await slot.stop(identity.uid, KillReason.CANCELED, 0)
    with pytest.raises(FencedIncarnationError):
        await node.pool(incarnation=1).adopt()
    assert (await adopted.status()).phase is SlotPhase.RUNNING


async def test_the_cap_holds_with_two_managers_at_once(node: Node) -> None:
    one, two = node.pool(), node.pool()
    await one.provision(0)
    with pytest.raises(SlotFailedError, match="locked"):
        await two.provision(0)
    await two.provision(1)
    with pytest.raises(SlotFailedError, match="locked"):
        await one.provision(1)
    with pytest.raises(SlotFailedError, match="4 slots"):
        await one.provision(4)
    with pytest.raises(SlotFailedError, match="4 slots"):
        await one.provision(-1)


async def test_nothing_runs_without_a_supervisor(node: Node) -> None:
    pool = node.pool()
    slot = await pool.provision(0)
    identity, _ = await slots.start(node, slot, "sh", "-c", "setsid -f sleep 60; echo up; exec sleep 60")
    await slots.printed(slot, identity.uid, b"up")
    inside = descendants(slot.pid)
    assert len(inside) >= 4
    os.kill(slot.pid, signal.SIGKILL)
    await slots.gone(inside)
    with pytest.raises(SlotFailedError):
        await slots.until(slot, lambda status: status.exit is not None)
    with pytest.raises(SlotFailedError):
        await slot.read_log(identity.uid, 0, 10)
    await pool.destroy(slot)
    await pool.destroy(slot)  # once more does no harm
    again = await pool.provision(0)
    assert (await slots.run(node, again, "echo", "new")).stdout == b"new\n"


async def test_an_idle_sandbox_dies_with_its_supervisor_too(node: Node) -> None:
    slot = await node.pool().provision(0)
    await slots.until(slot, lambda status: status.sandbox_ready or slot.uid_shared)
    inside = descendants(slot.pid)
    os.kill(slot.pid, signal.SIGKILL)
    await slots.gone(inside)


@pytest.mark.parametrize("frozen", [False, True])
async def test_what_a_dead_supervisor_left_is_cleaned(node: Node, frozen: bool) -> None:
    first = node.pool()
    slot = await first.provision(0)
    identity, tree = await slots.start(node, slot, "sh", "-c", "echo up; echo kept > file; exec sleep 60")
    await slots.printed(slot, identity.uid, b"up")
    if frozen:
        await slot.freeze(identity.uid)
    await first.close()
    pid = slot.pid
    os.kill(pid, signal.SIGKILL)
    await slots.gone([pid])
    second = node.pool(incarnation=2)
    assert list(await second.adopt()) == []
    assert not (node.config.node_dir / "slots/slot-0").exists()
    assert (tree / "workspace").is_dir(), "the tree is not the slot's to remove"
    assert not [
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if "slot-0" in line and str(node.directory) in line
    ]
    await second.provision(0)


@on_this_host
async def test_a_supervisor_that_does_not_answer_keeps_its_slot(node: Node) -> None:
    first = node.pool()
    slot = await first.provision(0)
    await first.close()
    os.kill(slot.pid, signal.SIGSTOP)
    try:
        second = node.pool(incarnation=2, call_timeout=0.2)
        assert list(await second.adopt()) == []
        with pytest.raises(SlotFailedError, match="locked"):
            await second.provision(0)
    finally:
        os.kill(slot.pid, signal.SIGCONT)


async def test_a_supervisor_whose_directory_was_removed_ends(node: Node) -> None:
    pool = node.pool()
    slot = await pool.provision(0)
    pids = [slot.pid, *descendants(slot.pid)]
    await pool.close()
    shutil.rmtree(node.config.node_dir / "slots/slot-0")
    await slots.gone(pids)


async def test_destroying_a_slot_leaves_nothing(node: Node) -> None:
    pool = node.pool()
    slot = await pool.provision(0)
    identity, tree = await slots.start(node, slot, "sh", "-c", "echo x > kept; echo up; exec sleep 60")
    await slots.printed(slot, identity.uid, b"up")
    inside = [slot.pid, *descendants(slot.pid)]
    await pool.destroy(slot)
    await slots.gone(inside)
    assert (tree / "workspace/kept").read_text() == "x\n"
    left = {path.name for path in (node.config.node_dir / "slots").iterdir()}
    assert left <= {"slot-0.lock", "slot-0.log"}
    group = node_group(node.config.node_dir)
    assert not [mount for mount in Path("/sys/fs/cgroup").iterdir() if (mount / group).exists()]


async def test_a_directory_with_a_long_name_works(node: Node) -> None:
    from dataclasses import replace

    deep = node.config.node_dir / ("d" * 90) / ("e" * 90)
    node.config = replace(node.config, node_dir=deep)
    pool = node.pool()
    slot = await pool.provision(0)
    assert (await slots.run(node, slot, "echo", "deep")).stdout == b"deep\n"
    await pool.destroy(slot)


async def test_a_supervisor_that_cannot_start_says_why(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = node.pool(read_only=("/nonexistent/prefix",))
    with pytest.raises(SlotFailedError, match="nonexistent"):
        await pool.provision(0)
    assert (await (await node.pool().provision(0)).status()).phase is SlotPhase.IDLE


async def test_probe_passes_here(node: Node) -> None:
    await node.pool().probe()


@on_this_host
@pytest.mark.parametrize(("tool", "package"), [("bwrap", "bubblewrap"), ("dash", "dash")])
async def test_probe_says_what_to_install(node: Node, monkeypatch: pytest.MonkeyPatch, tool: str, package: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else f"/usr/bin/{name}")
    with pytest.raises(PreconditionError, match=f"install the package `{package}`") as caught:
        await node.pool().probe()
    assert caught.value.subject == tool


@on_this_host
async def test_probe_refuses_when_no_sandbox_can_be_made(
    node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    broken.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setattr(probe, "find_tools", lambda: probe.Tools(bwrap=Path("/bin/false"), shell=Path("/bin/dash")))
    with pytest.raises(PreconditionError, match="cannot make a sandbox here"):
        await node.pool().probe()


@on_this_host
@pytest.mark.parametrize("when", ["cancelled", "no groups", "no slot"])
async def test_a_start_that_comes_to_nothing_leaves_no_mount(
    node: Node, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    require_root()
    pool = node.pool()
    at_work, go_on = threading.Event(), threading.Event()
    if when == "cancelled":
        real = mounts.share

        def share(path: Path) -> None:
            at_work.set()
            assert go_on.wait(slots.WITHIN)
            real(path)

        monkeypatch.setattr(mounts, "share", share)
        adopting = asyncio.ensure_future(pool.adopt())
        assert await asyncio.to_thread(at_work.wait, slots.WITHIN)
        adopting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await adopting
        closing = asyncio.ensure_future(pool.close())
        go_on.set()
        await closing
    elif when == "no groups":

        def broken(config: object) -> None:
            raise OSError("read-only")

        monkeypatch.setattr(bubblewrap, "find_groups", broken)
        with pytest.raises(OSError, match="read-only"):
            await pool.adopt()
        await pool.close()
    else:
        assert await pool.adopt() == []
        assert mounts.mounted(node.config.node_dir / "slots")
        await pool.close()
    assert (node.config.node_dir / "slots").is_dir()
    assert mounts.mounted(node.config.node_dir / "slots") == {}


@on_this_host
async def test_a_slot_canceled_while_it_starts_leaves_no_supervisor(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned, go, loop, real = asyncio.Event(), threading.Event(), asyncio.get_running_loop(), spawn.spawn

    def slow(*how: Any) -> None:
        real(*how)
        loop.call_soon_threadsafe(spawned.set)
        assert go.wait(30)

    monkeypatch.setattr(spawn, "spawn", slow)
    first = node.pool(incarnation=1)
    starting = asyncio.create_task(first.provision(0))
    await spawned.wait()
    starting.cancel()
    loop.call_soon(go.set)
    with pytest.raises(asyncio.CancelledError):
        await starting
    await first.close()
    assert list(await node.pool(incarnation=2).adopt()) == []
