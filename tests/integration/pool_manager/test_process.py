"""The pool-manager's process on real sandboxes, a real etcd and a real leader."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Put
from cloudclaw.v1 import pool_manager_pb2, task_pb2
from cloudclaw_pool_manager.backends import mounts
from tests.integration.pool_manager.cluster import Cluster
from tests.support.processes import alive, eventually, kill

pytestmark = [pytest.mark.etcd, pytest.mark.sandbox]

COUNT = "i=0; while [ $i -lt {n} ]; do i=$((i+1)); echo line-$i; sleep 0.05; done"
SUCCEEDED = task_pb2.TASK_STATE_SUCCEEDED


def lines(count: int) -> bytes:
    return b"".join(b"line-%d\n" % number for number in range(1, count + 1))


async def test_a_task_runs_in_a_sandbox_and_its_slot_serves_again(cluster: Cluster) -> None:
    node = cluster.node()
    await node.start()
    for _ in range(3):
        task = await cluster.submit("echo $CLAW_TASK_ID $CLAW_ATTEMPT $CLAW_TENANT; id -u; ls /workspace")
        ended = await cluster.wait(task)
        assert (ended.state, ended.attempts[0].exit_code) == (SUCCEEDED, 0)
        assert await cluster.log(task) == f"{task} 1 acme\n1000\n".encode()

    async def free() -> bool:
        return sum(slot.attempts_served for slot in await node.slots()) == 3

    await eventually("the slot of the last is free again", free)
    slots = await node.slots()
    assert all(slot.uid != 0 for slot in slots)


async def test_a_manager_killed_and_restarted_loses_neither_attempt_nor_log(cluster: Cluster) -> None:
    node = cluster.node()
    await node.start()
    long, short = await cluster.submit(COUNT.format(n=120)), await cluster.submit(COUNT.format(n=20))
    await cluster.log(long, until=b"line-5\n")
    await cluster.log(short, until=b"line-5\n")
    pids = {slot.slot: slot.pid for slot in await node.slots()}
    await node.stop(signal.SIGKILL)
    await node.start()
    assert {slot.slot: slot.pid for slot in await node.slots()} == pids, "the slots were not adopted"
    for task, count in ((long, 120), (short, 20)):
        ended = await cluster.wait(task)
        assert (ended.state, len(ended.attempts)) == (SUCCEEDED, 1)
        assert await cluster.log(task) == lines(count)


async def test_a_long_log_is_whole_after_a_restart_that_finds_its_beginning_forgotten(cluster: Cluster) -> None:
    node = cluster.node()
    await node.start()
    block = "head -c 1048576 /dev/zero | tr '\\0' {}"
    twelve = f"for i in 1 2 3 4 5 6 7 8 9 10 11 12; do {block.format('a')}; done"
    script = f"{twelve}; echo; echo half; sleep 4; {block.format('b')}"
    task = await cluster.submit(script)
    await cluster.log(task, until=b"\nhalf\n")
    noted = cluster.folder / "node-1" / "logs"

    def forgotten() -> bool:
        notes = [path for path in noted.iterdir() if path.suffix != ".new"]
        return any(int(path.read_text()) >= 8 << 20 for path in notes)

    await eventually("the spool was told to forget", forgotten)
    await node.stop(signal.SIGKILL)
    await node.start()
    ended = await cluster.wait(task)
    assert (ended.state, len(ended.attempts)) == (SUCCEEDED, 1)
    assert await cluster.log(task) == b"a" * (12 << 20) + b"\nhalf\n" + b"b" * (1 << 20)
    await eventually("the note is gone", lambda: not list(noted.iterdir()))


async def test_a_restart_shows_its_first_sign_of_life_within_the_leaders_patience(cluster: Cluster) -> None:
    node = cluster.node()
    await node.start()
    before = await cluster.kv.get(keys.node(node.name))
    assert before is not None
    await node.stop(signal.SIGKILL)
    launched = time.monotonic()
    node.launch()

    async def touched() -> bool:
        now = await cluster.kv.get(keys.node(node.name))
        return now is not None and now.mod_revision > before.mod_revision

    await eventually("the node's key is touched", touched, 10)
    assert time.monotonic() - launched < 2.0  # of a grace of 3 s; half a second on an idle machine


async def test_stopping_for_good_leaves_nothing_behind(cluster: Cluster) -> None:
    node = cluster.node(STOP_SLOTS_ON_EXIT="true", DRAIN_GRACE="0.2")
    await node.start()
    task = await cluster.submit("echo up; sleep 600")
    await cluster.log(task, until=b"up\n")
    assert node.supervisors()
    assert await node.stop() == 0
    assert node.supervisors() == []
    assert await cluster.record(node.name) is None
    slots = (cluster.folder / "node-1").glob("pools/*/slots/slot-*")
    assert not [path for path in slots if path.is_dir()]


async def test_stopping_to_be_upgraded_leaves_the_slots_at_work(cluster: Cluster) -> None:
    node = cluster.node()
    await node.start()
    task = await cluster.submit(COUNT.format(n=60))
    await cluster.log(task, until=b"line-3\n")
    assert await node.stop() == 0
    assert len(node.supervisors()) == 2
    await node.start()
    assert (await cluster.wait(task)).attempts[0].state == task_pb2.ATTEMPT_STATE_SUCCEEDED
    assert await cluster.log(task) == lines(60)


async def test_a_supervisor_that_is_killed_costs_one_attempt_and_no_slot(cluster: Cluster) -> None:
    node = cluster.node()
    await node.start()
    task = await cluster.submit("echo up-$CLAW_ATTEMPT; [ $CLAW_ATTEMPT = 2 ] || sleep 600")
    await cluster.log(task, until=b"up-1\n")
    slot = await node.slot_of(task)
    kill(slot.pid)
    ended = await cluster.wait(task)
    assert ended.state == SUCCEEDED
    assert [a.reason for a in ended.attempts] == [task_pb2.END_REASON_SLOT_FAILED, task_pb2.END_REASON_COMPLETED]

    async def whole() -> bool:
        slots = await node.slots()
        return len(slots) == 2 and all(s.state == pool_manager_pb2.SLOT_STATE_IDLE for s in slots)

    await eventually("both slots are warm again", whole)
    cluster._supervisors |= {s.pid for s in await node.slots()}


async def test_an_attempt_whose_supervisor_died_with_the_manager_runs_again(cluster: Cluster) -> None:
    node = cluster.node()
    await node.start()
    task = await cluster.submit("echo up-$CLAW_ATTEMPT; [ $CLAW_ATTEMPT = 2 ] || sleep 600")
    await cluster.log(task, until=b"up-1\n")
    slot = await node.slot_of(task)
    await node.stop(signal.SIGKILL)
    kill(slot.pid)
    await eventually("the supervisor is gone", lambda: not alive(slot.pid))
    await node.start()
    ended = await cluster.wait(task)
    assert ended.state == SUCCEEDED
    assert ended.attempts[0].reason == task_pb2.END_REASON_SLOT_FAILED


async def test_a_second_manager_on_the_same_directory_refuses(cluster: Cluster) -> None:
    node = cluster.node()
    await node.start()
    second = cluster.node("node-2", directory="node-1")
    assert await second.refused() != 0
    assert "another pool-manager" in second.log()
    assert "NODE_DIR_LOCKED" in second.log()
    assert (await cluster.wait(await cluster.submit("true"))).state == SUCCEEDED


async def test_a_second_manager_with_the_same_node_id_refuses(cluster: Cluster) -> None:
    node = cluster.node()
    await node.start()
    second = cluster.node("node-1", directory="elsewhere")
    assert await second.refused() != 0
    assert "NODE_ID_TAKEN" in second.log()
    assert not (cluster.folder / "elsewhere" / "pools").exists()
    record = await cluster.record("node-1")
    assert record is not None
    assert record.incarnation == 1
    assert (await cluster.wait(await cluster.submit("true"))).state == SUCCEEDED


async def test_without_bubblewrap_it_says_what_to_install_and_does_not_start(cluster: Cluster, tmp_path: Path) -> None:
    for name in ("dash", "sh"):
        os.symlink(f"/bin/{name}", tmp_path / name)
    node = cluster.node(path=str(tmp_path))
    assert await node.refused() != 0
    assert "install the package `bubblewrap`" in node.log()
    slots = (cluster.folder / "node-1").glob("pools/*/slots/slot-*")
    assert not [path for path in slots if path.is_dir()]


async def test_etcd_killed_and_started_again_costs_no_attempt(cluster: Cluster) -> None:
    node = cluster.node()
    await node.start()
    task = await cluster.submit(COUNT.format(n=100))
    await cluster.log(task, until=b"line-5\n")
    cluster.etcd.kill()
    time_away = time.monotonic() + 3

    async def away() -> bool:
        return time.monotonic() > time_away

    await eventually("etcd was away for a while", away)
    cluster.etcd.start()
    ended = await cluster.wait(task)
    assert (ended.state, len(ended.attempts)) == (SUCCEEDED, 1)
    assert await cluster.log(task) == lines(100)


async def test_a_node_that_is_refused_after_it_looked_for_slots_leaves_no_mount(cluster: Cluster) -> None:
    node = cluster.node()
    await cluster.kv.txn([], [Put(keys.node("node-1"), b"another manager's")])
    slots = cluster.folder / "node-1/pools/default/slots"
    cluster.etcd.kill()
    node.launch()
    await eventually("it looked for slots", lambda: bool(mounts.mounted(slots)))
    cluster.etcd.start()
    assert await asyncio.to_thread(node.process.wait, 60) != 0
    assert "NODE_ID_TAKEN" in node.log()
    assert mounts.mounted(slots) == {}
