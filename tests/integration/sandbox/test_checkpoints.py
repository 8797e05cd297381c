"""Checkpoints of real sandboxes by the real engine: what is stored is one moment of the tree."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloudclaw.clock import SystemClock
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots.engine import SnapshotEngine
from cloudclaw.snapshots.index import SLACK_NS
from cloudclaw.snapshots.port import SnapshotResult, Tree
from cloudclaw_pool_manager.app.standstill import Standstill
from cloudclaw_pool_manager.app.timing import cancel
from cloudclaw_pool_manager.domain.attempt import KillReason, Launch
from cloudclaw_pool_manager.domain.timers import RunTimers
from cloudclaw_pool_manager.ports.backend import Slot, SlotPhase
from tests.support import slots
from tests.support.slots import ENV, LIMITS, PYTHON, Node

pytestmark = pytest.mark.sandbox

TENANT = "acme"
ROUNDS = 8
PAIR = """
import os
{setup}
number = 0
while True:
    number += 1
    {write}
    if number == 1:
        print("up", flush=True)
"""
WRITTEN = PAIR.format(
    setup="a, b = (os.open(name, os.O_RDWR | os.O_CREAT) for name in 'ab')",
    write="text = b'%020d' % number; os.pwrite(a, text, 0); os.pwrite(b, text, 0)",
)
MAPPED = PAIR.format(
    setup="""
import mmap
def mapped(name):
    fd = os.open(name, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 4096)
    return mmap.mmap(fd, 4096)
a, b = map(mapped, 'ab')
""",
    write="text = b'%020d' % number; a[:20] = text; b[:20] = text",
)
RENAMED = PAIR.format(
    setup="""
def put(name, text):
    with open('new', 'wb') as file:
        file.write(text)
    os.rename('new', name)
""",
    write="text = b'%020d' % number; put('a', text); put('b', text)",
)

PROTECTED = """
import ctypes, mmap, os, time
fd = os.open("a", os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 4096)
area = mmap.mmap(fd, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(area))
protect = ctypes.CDLL(None, use_errno=True).mprotect
protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
number = 0
while True:
    number += 1
    assert protect(address, 4096, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    area[:20] = b"%020d" % number
    assert protect(address, 4096, mmap.PROT_READ) == 0
    if number == 1:
        print("up", flush=True)
    while not os.path.exists(f"go{number}"):
        time.sleep(0.001)
"""
"""Writes only when it is told, and keeps its mapping read-only in between."""


@dataclass
class Bench:
    """A slot, an engine, and an attempt of the one in a tree of the other."""

    node: Node
    slot: Slot
    engine: SnapshotEngine

    async def start(self, source: str) -> Attempt:
        identity = slots.attempt()
        tree = await self.engine.checkout(TENANT, None, identity.uid)
        launch = Launch((PYTHON, "-I", "-c", source), ENV)
        await self.slot.start(identity, launch, LIMITS, tree.path, slots.soon())
        await slots.printed(self.slot, identity.uid, b"up")
        moving = asyncio.Event()
        moving.set()
        still = Standstill(
            self.slot,
            identity.uid,
            timers=RunTimers(0.0, 0.0, 0.0),
            clock=SystemClock(),
            deadline=slots.soon,
            may_go_on=lambda: True,
            moving=moving,
        )
        return Attempt(self, tree, still)


@dataclass
class Attempt:
    """A running attempt."""

    bench: Bench
    tree: Tree
    still: Standstill
    taken: int = 0

    async def checkpoint(self, *, keep: bool = False) -> SnapshotResult:
        self.taken += 1
        pause = functools.partial(self.still.pause, keep=keep)
        return await self.bench.engine.checkpoint(TENANT, self.tree, f"ckpt-{self.taken}", pause)

    async def past(self, number: int) -> None:
        """Wait until the live tree has come past `number` in both files."""
        async with asyncio.timeout(slots.WITHIN):
            for name in ("a", "b"):
                while int((self.tree.path / "workspace" / name).read_bytes()[:20] or 0) <= number:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)  # a file tells nobody when it changes

    async def told(self, number: int) -> None:
        """Let a task that waits for it write the number after `number`, and wait until it has."""
        (self.tree.path / "workspace" / f"go{number}").touch()
        async with asyncio.timeout(slots.WITHIN):
            while int((self.tree.path / "workspace/a").read_bytes()[:20]) == number:  # noqa: ASYNC110
                await asyncio.sleep(0.001)  # a file tells nobody when it changes

    async def number(self, stored: SnapshotResult, name: str) -> int:
        """What a file of the checkpoint says."""
        path = b"workspace/" + name.encode()
        data = b"".join([piece async for piece in self.bench.engine.read(TENANT, stored.pointer, path)])
        return int(data[:20])


@pytest.fixture
async def bench(node: Node, tmp_path: Path) -> AsyncIterator[Bench]:
    pool = node.pool()
    slot = await pool.provision(0)
    files_uid = None if slot.uid_shared else node.config.files_uid
    engine = SnapshotEngine(MemoryObjects(), node.directory / "engine", SystemClock(), files_uid=files_uid)
    yield Bench(node, slot, engine)
    await pool.destroy(slot)
    engine.close()


@pytest.mark.parametrize("source", [WRITTEN, MAPPED, RENAMED], ids=["written", "mapped", "renamed"])
async def test_a_pair_that_is_written_in_lockstep_is_never_torn(bench: Bench, source: str) -> None:
    attempt = await bench.start(source)
    seen = []
    for _ in range(ROUNDS):
        stored = await attempt.checkpoint()
        first, second = await attempt.number(stored, "a"), await attempt.number(stored, "b")
        assert first - second in (0, 1), "two moments in one checkpoint"
        seen.append(first)
        await attempt.past(first + 1)
    assert seen == sorted(set(seen)), "a later checkpoint holds what an earlier one held"
    assert (await bench.slot.status()).phase is SlotPhase.RUNNING


async def test_what_is_written_through_a_mapping_that_was_protected_at_the_freeze_is_seen(bench: Bench) -> None:
    """The page was written before the freeze and never cleaned since, so writing it again leaves no trace."""
    attempt = await bench.start(PROTECTED)
    path = attempt.tree.path / "workspace/a"

    @contextlib.asynccontextmanager
    async def written_just_before() -> AsyncIterator[Collection[int]]:
        await attempt.told(1)
        while time.time_ns() < path.stat().st_ctime_ns + 2 * SLACK_NS:  # noqa: ASYNC110
            await asyncio.sleep(SLACK_NS / 1e9)  # before that, the engine trusts no file's times anyway
        async with attempt.still.pause(keep=False) as mapped:
            yield mapped

    first = await bench.engine.checkpoint(TENANT, attempt.tree, "ckpt-first", written_just_before)
    assert await attempt.number(first, "a") == 2
    await attempt.told(2)
    second = await attempt.checkpoint()
    assert await attempt.number(second, "a") == 3, "a checkpoint holds what an earlier one held"
    await attempt.told(3)
    await bench.slot.stop(attempt.tree.uid, KillReason.CANCELED, 0)
    last = await bench.engine.snapshot(TENANT, attempt.tree, "snap-last")
    assert await attempt.number(last, "a") == 4


async def test_what_is_kept_still_changes_no_more(bench: Bench) -> None:
    attempt = await bench.start(WRITTEN)
    stored = await attempt.checkpoint(keep=True)
    assert (await bench.slot.status()).paused
    workspace = attempt.tree.path / "workspace"
    for name in ("a", "b"):
        assert int((workspace / name).read_bytes()) == await attempt.number(stored, name)
    await attempt.still.let_go()
    await attempt.past(await attempt.number(stored, "a"))
    later = await attempt.checkpoint()
    assert await attempt.number(later, "a") > await attempt.number(stored, "a")


async def test_one_that_is_abandoned_leaves_the_attempt_running_and_the_next_is_whole(bench: Bench) -> None:
    attempt = await bench.start(WRITTEN)
    for _ in range(5):
        work = asyncio.ensure_future(attempt.checkpoint())
        paused = asyncio.ensure_future(slots.until(bench.slot, lambda status: status.paused))
        await asyncio.wait([work, paused], return_when=asyncio.FIRST_COMPLETED)
        await cancel(work, paused)
        assert (await bench.slot.status()).phase is SlotPhase.RUNNING
    stored = await attempt.checkpoint()
    assert await attempt.number(stored, "a") - await attempt.number(stored, "b") in (0, 1)
