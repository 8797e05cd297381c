"""Freeze, thaw, deadlines and orphans (design rule 3)."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloudclaw_pool_manager.backends import limits
from cloudclaw_pool_manager.domain.attempt import KillReason
from cloudclaw_pool_manager.ports.backend import Slot, SlotPhase
from cloudclaw_supervisor.processes import descendants
from tests.support import slots
from tests.support.slots import Node

pytestmark = pytest.mark.sandbox

STORM = "for i in 1 2 3 4 5 6 7 8 9 10; do (while :; do /bin/true; done) & done; echo up; wait"


@pytest.fixture(params=["cgroup", "v1", "sigstop"])
async def slot(node: Node, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Slot]:
    """A slot for each way of freezing."""
    if request.param == "v1":
        v1, _ = limits.hierarchies()
        if "freezer" not in v1 or os.geteuid() != 0:
            pytest.skip("no v1 freezer on this host")
        monkeypatch.setattr(limits, "hierarchies", lambda: (v1, None))
    pool = node.pool(use_cgroups=request.param != "sigstop")
    yield await pool.provision(0)
    for slot in await node.pool(incarnation=2, use_cgroups=request.param != "sigstop").adopt():
        await node.pools[-1].destroy(slot)


async def ticking(node: Node, slot: Slot, **how: object) -> tuple[str, Path]:
    """A task that counts in a file; returns its uid and the file."""
    source = "i=0; while :; do i=$((i+1)); echo $i > count; [ $i = 1 ] && echo up; sleep 0.001; done"
    identity, tree = await slots.start(node, slot, "sh", "-c", source, **how)  # type: ignore[arg-type]
    await slots.printed(slot, identity.uid, b"up")
    return identity.uid, tree / "workspace/count"


async def stands_still(path: Path) -> bool:
    before = path.read_bytes()
    await asyncio.sleep(0.05)  # nothing tells when nothing happens
    return path.read_bytes() == before


async def moves(path: Path) -> None:
    before = path.read_bytes()
    async with asyncio.timeout(slots.WITHIN):
        while path.read_bytes() in (before, b""):  # noqa: ASYNC110 - a file tells nobody when it changes
            await asyncio.sleep(0.002)


async def test_a_frozen_task_stands_still_until_it_is_thawed(node: Node, slot: Slot) -> None:
    uid, count = await ticking(node, slot)
    await slot.freeze(uid)
    assert (await slot.status()).phase is SlotPhase.FROZEN
    assert await stands_still(count)
    await slot.freeze(uid)  # once more does no harm
    await slot.thaw(uid, slots.soon())
    assert (await slot.status()).phase is SlotPhase.RUNNING
    await moves(count)


async def test_a_fork_storm_is_frozen_and_ended(node: Node, slot: Slot) -> None:
    identity, _ = await slots.start(node, slot, "sh", "-c", STORM)
    await slots.printed(slot, identity.uid, b"up")
    for _ in range(3):
        await slot.freeze(identity.uid)
        pids = descendants(slot.pid)[1:]  # all but bubblewrap
        before = {pid: Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[11:13] for pid in pids}
        await asyncio.sleep(0.03)
        assert descendants(slot.pid)[1:] == pids, "nothing was forked and nothing ended"
        after = {pid: Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[11:13] for pid in pids}
        assert after == before, "no process used the cpu"
        await slot.thaw(identity.uid, slots.soon())
    await slot.freeze(identity.uid)
    pids = descendants(slot.pid)
    ended = await slot.stop(identity.uid, KillReason.FENCED, 5)
    assert ended.killed is KillReason.FENCED
    await slots.gone(pids)
    await slot.release(identity.uid)
    assert (await slots.run(node, slot, "echo", "next")).stdout == b"next\n"


async def test_the_deadline_freezes_and_a_manager_decides(node: Node, slot: Slot) -> None:
    uid, count = await ticking(node, slot)
    await slot.set_deadline(uid, slots.soon(0.05))
    await slots.until(slot, lambda status: status.phase is SlotPhase.FROZEN)
    await slot.set_deadline(uid, slots.soon())
    assert (await slot.status()).phase is SlotPhase.FROZEN, "a later deadline does not thaw"
    assert await stands_still(count)
    await slot.thaw(uid, slots.soon())
    await moves(count)


async def test_a_deadline_that_has_passed_freezes_at_once(node: Node, slot: Slot) -> None:
    uid, _ = await ticking(node, slot)
    await slot.thaw(uid, slots.soon(-1))
    await slots.until(slot, lambda status: status.phase is SlotPhase.FROZEN)


async def test_a_moved_deadline_does_not_freeze(node: Node, slot: Slot) -> None:
    uid, count = await ticking(node, slot, deadline=slots.soon(0.4))
    for _ in range(8):
        await asyncio.sleep(0.08)
        await slot.set_deadline(uid, slots.soon(0.4))
    assert (await slot.status()).phase is SlotPhase.RUNNING
    await moves(count)


async def test_an_orphan_is_killed_after_its_deadline(node: Node) -> None:
    pool = node.pool(orphan_ttl=0.3)
    slot = await pool.provision(0)
    uid, _ = await ticking(node, slot, deadline=slots.soon(0.5))
    pids = descendants(slot.pid)
    await pool.close()
    await slots.gone(pids)
    (adopted,) = await node.pool(incarnation=2).adopt()
    status = await adopted.status()
    assert status.exit is not None
    assert status.exit.killed is KillReason.ORPHANED
    assert status.attempt is not None
    assert status.attempt.uid == uid


async def test_a_manager_that_speaks_keeps_a_frozen_task(node: Node) -> None:
    slot = await node.pool(orphan_ttl=0.3).provision(0)
    uid, count = await ticking(node, slot)
    await slot.set_deadline(uid, slots.soon(0.05))
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        assert (await slot.status()).exit is None
        await asyncio.sleep(0.05)
    await slot.thaw(uid, slots.soon())
    await moves(count)


async def test_a_supervisor_that_was_stopped_freezes_first(node: Node, slot: Slot) -> None:
    uid, count = await ticking(node, slot)
    await slot.set_deadline(uid, slots.soon(0.1))
    os.kill(slot.pid, signal.SIGSTOP)
    await moves(count)
    await asyncio.sleep(0.15)
    # The first thing it reads when it wakes is a new deadline; it must freeze all the same.
    late = asyncio.create_task(slot.set_deadline(uid, slots.soon()))
    await asyncio.sleep(0)
    os.kill(slot.pid, signal.SIGCONT)
    await late
    await slots.until(slot, lambda status: status.phase is SlotPhase.FROZEN)


async def test_stop_gives_a_chance_and_then_none(node: Node, slot: Slot) -> None:
    polite = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.01; done"
    identity, _ = await slots.start(node, slot, "sh", "-c", polite)
    await slots.printed(slot, identity.uid, b"up")
    ended = await slot.stop(identity.uid, KillReason.CANCELED, 10)
    assert (ended.code, ended.killed) == (7, KillReason.CANCELED)
    assert b"bye" in (await slots.log(slot, identity.uid))[0]
    assert await slot.stop(identity.uid, KillReason.RUN_TIMEOUT, 0) == ended, "the first end stays"
    await slot.release(identity.uid)

    deaf = "trap '' TERM; echo up; while :; do sleep 0.01; done"
    identity, _ = await slots.start(node, slot, "sh", "-c", deaf)
    await slots.printed(slot, identity.uid, b"up")
    pids = descendants(slot.pid)
    ended = await slot.stop(identity.uid, KillReason.RUN_TIMEOUT, 0.2)
    assert (ended.code, ended.signal, ended.killed) == (137, 9, KillReason.RUN_TIMEOUT)
    await slots.gone(pids)


async def test_stopping_leaves_no_daemon_behind(node: Node, slot: Slot) -> None:
    identity, _ = await slots.start(
        node, slot, "sh", "-c", "setsid -f sh -c 'setsid -f sleep 60; sleep 60'; echo up; exec sleep 60"
    )
    await slots.printed(slot, identity.uid, b"up")
    pids = descendants(slot.pid)
    await slot.stop(identity.uid, KillReason.CANCELED, 0)
    await slots.gone(pids)


async def test_daemons_end_with_the_task(node: Node, slot: Slot) -> None:
    ended = await slots.run(node, slot, "sh", "-c", "setsid -f sleep 60; exit 4")
    assert ended.exit.code == 4
