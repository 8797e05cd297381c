"""How long an attempt stands still for a checkpoint: a real sandbox, the real engine, all that lies between."""

from __future__ import annotations

import asyncio
import functools
import time
from pathlib import Path

from cloudclaw.clock import SystemClock
from cloudclaw.objects.filesystem import FilesystemObjects
from cloudclaw.snapshots.engine import SnapshotEngine
from cloudclaw_pool_manager.app.standstill import Standstill
from cloudclaw_pool_manager.domain.attempt import Launch
from cloudclaw_pool_manager.domain.timers import RunTimers
from cloudclaw_pool_manager.ports.backend import Slot
from tests.bench.report import Row, percentile
from tests.support import slots

FILES, CHANGED, ROUNDS = 20_000, 200, 20
_TENANT = "bench"
# 20,000 files of 4 KiB in 200 directories; then, for each line on a FIFO, 200 of them are written anew.
_WORK = f"""
import os
for number in range({FILES}):
    if number % 100 == 0:
        os.makedirs(f"d{{number // 100}}")
    with open(f"d{{number // 100}}/f{{number}}", "wb") as file:
        file.write(os.urandom(4096))
for step in range(1 << 30):
    if step:
        for number in range({CHANGED}):
            number = (step * {CHANGED} + number * 97) % {FILES}
            with open(f"d{{number // 100}}/f{{number}}", "wb") as file:
                file.write(os.urandom(4096))
    print(f"step {{step}} done", flush=True)
    while not os.path.exists(f"go{{step}}"):
        sum(range(2000))
    os.unlink(f"go{{step}}")
"""


async def measure(directory: Path) -> list[Row]:
    """Rows for the whole standstill, and for its parts that are not the scan."""
    async with slots.node() as node:
        slot = await node.pool().provision(0)
        files_uid = None if slot.uid_shared else node.config.files_uid
        trees = node.directory / "engine"
        engine = SnapshotEngine(FilesystemObjects(directory / "objects"), trees, SystemClock(), files_uid=files_uid)
        try:
            return await _measure(node, slot, engine)
        finally:
            engine.close()


async def _measure(node: slots.Node, slot: Slot, engine: SnapshotEngine) -> list[Row]:
    identity = slots.attempt()
    tree = await engine.checkout(_TENANT, None, identity.uid)
    launch = Launch((slots.PYTHON, "-I", "-c", _WORK), slots.ENV)
    await slot.start(identity, launch, slots.LIMITS, tree.path, slots.soon(600))
    moving = asyncio.Event()
    moving.set()
    still = Standstill(
        slot,
        identity.uid,
        timers=RunTimers(0.0, 0.0, 0.0),
        clock=SystemClock(),
        deadline=lambda: slots.soon(600),
        may_go_on=lambda: True,
        moving=moving,
    )
    whole, bare = [], []
    for step in range(ROUNDS + 1):
        await slots.printed(slot, identity.uid, b"step %d done" % step)
        await engine.checkpoint(_TENANT, tree, f"ckpt-{step}", functools.partial(still.pause, keep=False))
        if step:
            whole.append(still.seconds * 1000)
        begun = time.perf_counter()
        async with still.pause(keep=False):
            pass
        bare.append((time.perf_counter() - begun) * 1000)
        go = tree.path / "go"
        go.touch()
        node.own(go)
        go.rename(tree.path / f"workspace/go{step}")
    await slots.ended(node, slot, identity)
    note = f"{ROUNDS} checkpoints, {CHANGED} of {FILES} files changed, real sandbox with a busy process"
    return [
        Row("attempt stands still for a checkpoint, p50", percentile(whole, 0.5), "ms", note=note),
        Row("attempt stands still for a checkpoint, p95", percentile(whole, 0.95), "ms", budget=50),
        Row("of it freeze, look at mappings, resume, p95", percentile(bare, 0.95), "ms"),
    ]
