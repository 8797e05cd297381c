"""Pauses for checkpoints: what a manager freezes itself, beside the deadline's own freezing (design rule 3)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloudclaw.errors import PreconditionError
from cloudclaw_pool_manager.backends import limits
from cloudclaw_pool_manager.backends.slot import BubblewrapSlot
from cloudclaw_pool_manager.domain.attempt import KillReason
from cloudclaw_pool_manager.ports.backend import Slot, SlotFailedError, SlotPhase
from tests.support import slots
from tests.support.processes import eventually
from tests.support.slots import PYTHON, Node

pytestmark = pytest.mark.sandbox

TICKING = "i=0; while :; do i=$((i+1)); echo $i > count; [ $i = 1 ] && echo up; sleep 0.001; done"
MAPPER = """
import mmap, os, sys, time
def mapped(name, **how):
    with open(name, "w+b") as file:
        file.truncate(4096)
        return mmap.mmap(file.fileno(), 4096, **how)
shared = mapped("shared")
private = mapped("private", flags=mmap.MAP_PRIVATE)
readable = mapped("readable", flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
if os.fork() == 0:
    child = mapped("child")
    print("up", flush=True)
time.sleep(60)
"""


@pytest.fixture(params=["cgroup", "v1", "sigstop"])
async def slot(node: Node, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Slot]:
    """A slot for each way of freezing."""
    if request.param == "v1":
        v1, _ = limits.hierarchies()
        if "freezer" not in v1 or os.geteuid() != 0:
            pytest.skip("no v1 freezer on this host")
        monkeypatch.setattr(limits, "hierarchies", lambda: (v1, None))
    cgroups = request.param != "sigstop"
    yield await node.pool(use_cgroups=cgroups).provision(0)
    for slot in await node.pool(incarnation=9, use_cgroups=cgroups).adopt():
        await node.pools[-1].destroy(slot)


async def ticking(node: Node, slot: Slot, **how: object) -> tuple[str, Path]:
    """A task that counts in a file; answers its uid and the file."""
    identity, tree = await slots.start(node, slot, "sh", "-c", TICKING, **how)  # type: ignore[arg-type]
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


async def test_a_pause_ends_as_it_began(node: Node, slot: Slot) -> None:
    uid, count = await ticking(node, slot)
    for _ in range(3):
        await slot.freeze(uid)
        status = await slot.status()
        assert (status.phase, status.paused) == (SlotPhase.FROZEN, True)
        assert await stands_still(count)
        assert await slot.resume(uid, slots.soon())
        status = await slot.status()
        assert (status.phase, status.paused) == (SlotPhase.RUNNING, False)
        await moves(count)


async def test_a_deadline_that_passes_in_a_pause_leaves_the_decision_to_a_thaw(node: Node, slot: Slot) -> None:
    uid, count = await ticking(node, slot)
    await slot.freeze(uid)
    await slot.set_deadline(uid, slots.soon(0.05))
    await slots.until(slot, lambda status: status.phase is SlotPhase.FROZEN and not status.paused)
    await slot.set_deadline(uid, slots.soon())
    assert not await slot.resume(uid, slots.soon())
    assert (await slot.status()).phase is SlotPhase.FROZEN
    assert await stands_still(count)
    await slot.thaw(uid, slots.soon())
    await moves(count)


async def test_a_pause_that_ends_without_contact_freezes_for_good(node: Node, slot: Slot) -> None:
    uid, count = await ticking(node, slot)
    await slot.freeze(uid)
    assert not await slot.resume(uid, slots.soon(-1))
    status = await slot.status()
    assert (status.phase, status.paused) == (SlotPhase.FROZEN, False)
    assert await stands_still(count)
    assert not await slot.resume(uid, slots.soon())


async def test_a_pause_can_be_ended_by_a_stop(node: Node, slot: Slot) -> None:
    uid, _ = await ticking(node, slot)
    await slot.freeze(uid)
    begun = time.monotonic()
    ended = await slot.stop(uid, KillReason.DRAINED, 0)
    assert time.monotonic() - begun < 5
    assert ended.killed is KillReason.DRAINED
    assert not await slot.resume(uid, slots.soon())
    await slot.release(uid)


async def test_what_is_killed_in_a_pause_does_nothing_more(node: Node, slot: Slot) -> None:
    several = (
        "for n in 1 2 3 4; do (i=0; while :; do i=$((i+1)); echo $i > count$n; done) & done; sleep 0.1; echo up; wait"
    )
    for _ in range(5):
        identity, tree = await slots.start(node, slot, "sh", "-c", several)
        await slots.printed(slot, identity.uid, b"up")
        await slot.freeze(identity.uid)
        counts = [tree / f"workspace/count{number}" for number in range(1, 5)]
        before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in counts]
        await slot.stop(identity.uid, KillReason.DRAINED, 0)
        assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in counts] == before
        await slot.release(identity.uid)


async def test_an_attempt_that_ended_is_neither_paused_nor_resumed(node: Node, slot: Slot) -> None:
    identity, _ = await slots.start(node, slot, "true")
    await slots.exited(slot)
    await slot.freeze(identity.uid)
    assert await slot.mapped(identity.uid) == set()
    assert not await slot.resume(identity.uid, slots.soon())
    assert (await slot.status()).phase is SlotPhase.EXITED


async def test_what_is_mapped_shared_is_found_in_every_process(node: Node, slot: Slot) -> None:
    identity, tree = await slots.start(node, slot, PYTHON, "-I", "-c", MAPPER)
    await slots.printed(slot, identity.uid, b"up")
    await slot.freeze(identity.uid)
    mapped = await slot.mapped(identity.uid)
    inodes = {name: (tree / "workspace" / name).stat().st_ino for name in ("shared", "private", "readable", "child")}
    found = {name for name, inode in inodes.items() if inode in mapped}
    assert found == {"shared", "readable", "child"}


@pytest.mark.parametrize("away", [False, True])
async def test_a_manager_that_dies_in_a_pause_leaves_what_the_next_one_can_thaw(node: Node, away: bool) -> None:
    first = node.pool(incarnation=1)
    slot = await first.provision(0)
    uid, count = await ticking(node, slot, deadline=slots.soon(0.3 if away else 60))
    await slot.freeze(uid)
    await first.close()  # all that its supervisor sees of a kill -9
    if away:
        await asyncio.sleep(0.4)  # the deadline passes; nobody is there to be told
    (adopted,) = await node.pool(incarnation=2).adopt()
    status = await adopted.status()
    assert (status.phase, status.paused) == (SlotPhase.FROZEN, not away)
    assert await stands_still(count)
    await adopted.thaw(uid, slots.soon())
    await moves(count)


async def test_a_manager_that_dies_while_it_freezes_leaves_what_the_next_one_can_resume(node: Node) -> None:
    first = node.pool(incarnation=1)
    slot = await first.provision(0)
    uid, count = await ticking(node, slot)
    for incarnation in range(2, 7):
        asking = asyncio.ensure_future(slot.freeze(uid))
        await asyncio.sleep(0)  # it is sent, and not answered
        await first.close()
        with pytest.raises(SlotFailedError):
            await asking
        first = node.pool(incarnation=incarnation)
        (slot,) = await first.adopt()
        assert await slot.resume(uid, slots.soon())
        assert (await slot.status()).phase is SlotPhase.RUNNING
        await moves(count)
        assert (await slot.status()).phase is SlotPhase.RUNNING, "the freeze came after all"


async def test_an_attempt_that_nobody_comes_back_for_is_killed_in_its_pause_too(node: Node) -> None:
    pool = node.pool(orphan_ttl=0.2)
    slot = await pool.provision(0)
    uid, _ = await ticking(node, slot, deadline=slots.soon(0.3))
    await slot.freeze(uid)
    await pool.close()
    record = node.config.node_dir / f"slots/slot-0/ctl/spool/{uid}/exit.json"
    await eventually("it is killed", record.exists)
    (adopted,) = await node.pool(incarnation=2).adopt()
    status = await adopted.status()
    assert status.exit is not None
    assert status.exit.killed is KillReason.ORPHANED


async def test_a_supervisor_of_an_earlier_release_is_not_paused(node: Node) -> None:
    slot = await node.pool().provision(0)
    assert isinstance(slot, BubblewrapSlot)
    uid, count = await ticking(node, slot)
    slot._version_spoken = 1
    with pytest.raises(PreconditionError, match="earlier release"):
        await slot.freeze(uid)
    assert await slot.resume(uid, slots.soon())
    await moves(count)
