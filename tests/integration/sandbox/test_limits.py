"""Each limit ends the attempt with the reason that names it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace

import pytest

from cloudclaw_pool_manager.domain.attempt import KillReason
from cloudclaw_pool_manager.ports.backend import Mechanism, Slot
from tests.support import slots
from tests.support.require import missing
from tests.support.slots import LIMITS, Node

pytestmark = pytest.mark.sandbox

EAT = "b = []\nwhile True: b.append(bytearray(b'x' * (1 << 20)))"


def held(slot: Slot, limit: str) -> None:
    """Skip where no control group holds `limit`."""
    if getattr(slot.enforcement, limit) not in (Mechanism.CGROUP_V1, Mechanism.CGROUP_V2):
        missing(f"a control group for {limit}", "run the tests as root on a host with cgroups")


async def test_memory_beyond_the_limit_ends_the_attempt(node: Node, slot: Slot) -> None:
    held(slot, "memory")
    limits = replace(LIMITS, memory_bytes=64 << 20)
    ended = await slots.python(node, slot, EAT, limits=limits)
    assert ended.exit.killed is KillReason.MEMORY_LIMIT
    assert ended.exit.oom_killed
    assert (ended.exit.code, ended.exit.signal) == (137, 9)


async def test_a_child_that_is_killed_for_memory_ends_the_attempt(node: Node, slot: Slot) -> None:
    """The task would go on as if nothing had been; the reason would be lost."""
    held(slot, "memory")
    source = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {EAT!r}]); time.sleep(60)"
    ended = await slots.python(node, slot, source, limits=replace(LIMITS, memory_bytes=64 << 20))
    assert (ended.exit.killed, ended.exit.oom_killed) == (KillReason.MEMORY_LIMIT, True)


async def test_files_in_tmp_count_as_memory(node: Node, slot: Slot) -> None:
    held(slot, "memory")
    ended = await slots.run(
        node,
        slot,
        "sh",
        "-c",
        "head -c 60M /dev/zero > /tmp/x; sleep 60",
        limits=replace(LIMITS, memory_bytes=32 << 20),
    )
    assert ended.exit.killed is KillReason.MEMORY_LIMIT


async def test_the_next_attempt_starts_with_clean_counters(node: Node, slot: Slot) -> None:
    """Trap 8: page cache and peaks of the last attempt are not this one's."""
    held(slot, "memory")
    limits = replace(LIMITS, memory_bytes=128 << 20)
    identity, _ = await slots.start(
        node, slot, "sh", "-c", "head -c 80M /dev/zero > big; cat big > /dev/null", limits=limits
    )
    await slots.exited(slot)
    assert (await slot.usage(identity.uid)).memory_peak_bytes > 64 << 20
    await slot.release(identity.uid)
    identity, _ = await slots.start(node, slot, "sh", "-c", "echo up; exec sleep 60", limits=limits)
    await slots.printed(slot, identity.uid, b"up")
    usage = await slot.usage(identity.uid)
    assert usage.memory_peak_bytes < 16 << 20
    assert usage.memory_bytes < 16 << 20
    ended = await slot.stop(identity.uid, KillReason.CANCELED, 0)
    assert not ended.oom_killed


async def test_an_attempt_is_not_blamed_for_the_one_before(node: Node, slot: Slot) -> None:
    held(slot, "memory")
    await slots.python(node, slot, EAT, limits=replace(LIMITS, memory_bytes=64 << 20))
    ended = await slots.run(node, slot, "true")
    assert (ended.exit.killed, ended.exit.oom_killed) == (KillReason.NONE, False)


async def test_processes_beyond_the_limit_end_the_attempt(node: Node, slot: Slot) -> None:
    held(slot, "pids")
    ended = await slots.run(node, slot, "sh", "-c", "while :; do sleep 60 & done", limits=replace(LIMITS, pids=16))
    assert ended.exit.killed is KillReason.PIDS_LIMIT


async def test_as_many_processes_as_allowed_do_run(node: Node, slot: Slot) -> None:
    held(slot, "pids")
    script = "for i in 1 2 3 4 5 6; do sleep 60 & done; kill $(jobs -p); echo fine"
    ended = await slots.run(node, slot, "sh", "-c", script, limits=replace(LIMITS, pids=8))
    assert (ended.stdout, ended.exit.killed) == (b"fine\n", KillReason.NONE)


async def test_files_beyond_the_limit_end_the_attempt(node: Node, slot: Slot) -> None:
    script = "i=0; while :; do i=$((i+1)); head -c 1M /dev/zero > f$i || exit 1; done"
    limits = replace(LIMITS, disk_bytes=16 << 20)
    ended = await slots.run(node, slot, "sh", "-c", script, limits=limits)
    assert ended.exit.killed is KillReason.DISK_LIMIT


async def test_files_without_a_name_count_too(node: Node, slot: Slot) -> None:
    source = """
import os, time
held = []
while True:
    fd = os.open('hidden', os.O_CREAT | os.O_RDWR); os.unlink('hidden')
    os.write(fd, bytes(1 << 20)); held.append(fd); time.sleep(0.01)
"""
    ended = await slots.python(node, slot, source, limits=replace(LIMITS, disk_bytes=16 << 20))
    assert ended.exit.killed is KillReason.DISK_LIMIT


async def test_one_file_beyond_the_limit_ends_the_attempt(node: Node, slot: Slot) -> None:
    limits = replace(LIMITS, file_bytes=1 << 20)
    ended = await slots.run(node, slot, "sh", "-c", "exec head -c 2M /dev/zero > big", limits=limits)
    assert (ended.exit.signal, ended.exit.killed) == (25, KillReason.DISK_LIMIT)  # SIGXFSZ
    assert (ended.tree / "workspace/big").stat().st_size == 1 << 20


async def test_log_beyond_the_limit_ends_the_attempt_and_is_cut_there(node: Node) -> None:
    slot = await node.pool(log_limit=1 << 20).provision(0)
    ended = await slots.run(node, slot, "yes")
    assert ended.exit.killed is KillReason.LOG_LIMIT
    assert len(ended.stdout) == 1 << 20
    assert b"[cloudclaw] The log is full" in ended.system, "the cut is marked"
    assert ended.exit.log_end == len(ended.stdout) + len(ended.system)


async def test_a_task_may_be_given_less_log_than_the_slot_allows(node: Node) -> None:
    slot = await node.pool(log_limit=1 << 20).provision(0)
    ended = await slots.run(node, slot, "yes", limits=replace(LIMITS, log_bytes=1000))
    assert ended.exit.killed is KillReason.LOG_LIMIT
    assert len(ended.stdout) == 1000


async def test_cpu_is_held_to_its_share(node: Node, slot: Slot) -> None:
    held(slot, "cpu")
    source = """
import time
end = time.monotonic() + 1.0
while time.monotonic() < end: pass
print(time.process_time())
"""
    ended = await slots.python(node, slot, source, limits=replace(LIMITS, cpu_millis=200))
    assert float(ended.stdout) < 0.45


async def test_the_more_precise_reason_wins(node: Node, slot: Slot) -> None:
    """A task that is silent because its memory ran out did not time out."""
    held(slot, "memory")
    # The watch looks every half second; the timeout comes before it does.
    source = (
        f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {EAT!r}]); "
        "print('back', flush=True); time.sleep(60)"
    )
    identity, _ = await slots.start(
        node, slot, slots.PYTHON, "-c", source, limits=replace(LIMITS, memory_bytes=64 << 20)
    )
    async with contextlib.aclosing(slot.updates()) as updates:  # type: ignore[type-var]
        async for status in updates:
            if status.log_end or status.exit:
                break
    ended = await slot.stop(identity.uid, KillReason.SILENCE_TIMEOUT, 0)
    assert ended.killed is KillReason.MEMORY_LIMIT


async def test_without_control_groups_the_supervisor_watches(node: Node) -> None:
    # A container has a limit of its own, which a task must not reach between two looks of the supervisor.
    roomy = replace(LIMITS, memory_bytes=8 << 30)
    slot = await node.pool(use_cgroups=False, defaults=roomy).provision(0)
    assert slot.enforcement.memory is Mechanism.WATCHED
    assert slot.enforcement.pids is Mechanism.RLIMIT
    ended = await slots.python(node, slot, EAT, limits=replace(LIMITS, memory_bytes=64 << 20))
    assert ended.exit.killed is KillReason.MEMORY_LIMIT
    ended = await slots.run(
        node, slot, "sh", "-c", "while sleep 60 & do :; done; echo refused", limits=replace(LIMITS, pids=16)
    )
    assert ended.exit.code != 0 or ended.stdout == b"refused\n"
    assert b"fork" in ended.stderr.lower(), ended.stderr


async def test_usage_is_measured(node: Node, slot: Slot) -> None:
    held(slot, "memory")
    source = (
        "import time; b = bytearray(b'x' * (40 << 20)); open('f', 'wb').write(bytes(3 << 20)); "
        "print('up', flush=True); time.sleep(60)"
    )
    identity, _ = await slots.start(node, slot, slots.PYTHON, "-c", source)
    await slots.printed(slot, identity.uid, b"up")
    async with asyncio.timeout(slots.WITHIN):
        while (await slot.usage(identity.uid)).disk_bytes < 3 << 20:
            os.sched_yield()
    usage = await slot.usage(identity.uid)
    assert 40 << 20 < usage.memory_bytes < 200 << 20
    assert usage.memory_peak_bytes >= usage.memory_bytes
    assert usage.pids == 1
    assert usage.cpu_seconds > 0
    await slots.ended(node, slot, identity)


HIDE = "mkdir h; exec 3>h/f; chmod 000 h; "


@pytest.mark.parametrize(
    "hide",
    [HIDE, "exec 3>f; chmod 000 /workspace; ", "for i in $(seq 300); do mkdir d; cd d; done; exec 3>f; "],
    ids=["directory", "workspace", "depth"],
)
async def test_hidden_files_count_too(node: Node, slot: Slot, hide: str) -> None:
    limits = replace(LIMITS, disk_bytes=16 << 20)
    ended = await slots.run(node, slot, "sh", "-c", hide + "head -c 32M /dev/zero >&3; sleep 60", limits=limits)
    assert ended.exit.killed is KillReason.DISK_LIMIT


async def test_what_neighbours_write_is_not_blamed_on_who_hides_a_directory(node: Node, slot: Slot) -> None:
    limits = replace(LIMITS, disk_bytes=16 << 20)
    identity, tree = await slots.start(
        node, slot, "sh", "-c", HIDE + "head -c 1M /dev/zero >&3; echo up; sleep 60", limits=limits
    )
    await slots.printed(slot, identity.uid, b"up")
    (node.directory / "neighbour").write_bytes(os.urandom(48 << 20))
    (tree / "workspace/mark").write_bytes(os.urandom(2 << 20))
    async with asyncio.timeout(slots.WITHIN):
        while (await slot.usage(identity.uid)).disk_bytes < 3 << 20:
            os.sched_yield()
    ended = await slot.stop(identity.uid, KillReason.CANCELED, 0)
    assert ended.killed is KillReason.CANCELED
