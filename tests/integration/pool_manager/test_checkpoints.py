"""Checkpoints and hand-overs by the pool-manager's process: real sandboxes, a real etcd, a real leader."""

from __future__ import annotations

import asyncio
import signal

import pytest

from cloudclaw.clock import SystemClock
from cloudclaw.v1 import pool_manager_pb2, scheduler_pb2, task_pb2
from cloudclaw_pool_manager.backends.bubblewrap import BubblewrapPool
from cloudclaw_pool_manager.backends.config import BackendConfig
from cloudclaw_pool_manager.ports.backend import SlotPhase
from tests.integration.pool_manager.cluster import Cluster
from tests.support.require import require_root

pytestmark = [pytest.mark.etcd, pytest.mark.sandbox]

SUCCEEDED = task_pb2.TASK_STATE_SUCCEEDED
WORK = """
n=$(cat count 2>/dev/null || echo 0)
echo "start-$CLAW_ATTEMPT from ${CLAW_RESUMED_FROM:-nothing} at $n"
while [ $n -lt %d ]; do n=$((n+1)); echo $n > count.new; mv count.new count; echo "step-$n"; sleep 0.05; done
"""


async def checkpoint(cluster: Cluster, task: str) -> scheduler_pb2.CheckpointTaskResponse:
    async with asyncio.timeout(30):
        answer: scheduler_pb2.CheckpointTaskResponse = await cluster.scheduler.CheckpointTask(
            scheduler_pb2.CheckpointTaskRequest(task_id=task)
        )
    return answer


async def test_a_checkpoint_on_demand_is_recorded_and_the_task_runs_on(cluster: Cluster) -> None:
    node = cluster.node()
    await node.start()
    task = await cluster.submit(WORK % 40)
    await cluster.log(task, until=b"step-3\n")
    first = await checkpoint(cluster, task)
    await cluster.log(task, until=b"step-9\n")
    second = await checkpoint(cluster, task)
    assert first.checkpoint.snapshot_id != second.checkpoint.snapshot_id
    assert 0 < first.frozen.nanos < 1_000_000_000
    ended = await cluster.wait(task)
    assert (ended.state, len(ended.attempts)) == (SUCCEEDED, 1)
    assert (await cluster.log(task)).count(b"step-") == 40


async def test_a_drained_node_hands_its_attempts_over_and_no_step_is_lost_or_doubled(cluster: Cluster) -> None:
    first = cluster.node("node-1")
    await first.start()
    task = await cluster.submit(WORK % 100)
    await cluster.log(task, until=b"step-5\n")
    second = cluster.node("node-2")
    await second.start()
    answer = await (await first.operator()).DrainNode(pool_manager_pb2.DrainNodeRequest(hand_over=True))
    assert answer.running == 1
    ended = await cluster.wait(task)
    assert ended.state == SUCCEEDED
    assert [attempt.reason for attempt in ended.attempts] == [
        task_pb2.END_REASON_DRAINED,
        task_pb2.END_REASON_COMPLETED,
    ]
    assert [attempt.node for attempt in ended.attempts] == ["node-1", "node-2"]
    log = (await cluster.log(task)).decode()
    steps = [int(line.removeprefix("step-")) for line in log.splitlines() if line.startswith("step-")]
    assert steps == list(range(1, 101)), "each step once, in order, over both nodes"
    assert "from ckpt-" in log


async def test_a_manager_killed_in_a_pause_is_followed_by_one_that_thaws(cluster: Cluster) -> None:
    node = cluster.node()
    await node.start()
    task = await cluster.submit(WORK % 60)
    await cluster.log(task, until=b"step-3\n")
    record = await cluster.record(node.name)
    assert record is not None
    await node.stop(signal.SIGKILL)
    # What the manager did last: freeze the sandbox.
    config = BackendConfig(node_dir=cluster.folder / "node-1/pools/default", slots=2, incarnation=record.incarnation)
    pool = BubblewrapPool(config, SystemClock())
    for slot in await pool.adopt():
        status = await slot.status()
        if status.attempt is not None:
            await slot.freeze(status.attempt.uid)
            assert (await slot.status()).phase is SlotPhase.FROZEN
    await pool.close()
    await node.start()
    ended = await cluster.wait(task)
    assert (ended.state, len(ended.attempts)) == (SUCCEEDED, 1)
    assert (await cluster.log(task)).count(b"step-") == 60


async def test_a_manager_killed_in_the_middle_of_a_checkpoint_costs_no_attempt(cluster: Cluster) -> None:
    require_root()  # the freezer of a cgroup shows the moment
    node = cluster.node()
    await node.start()
    fill = "mkdir d; i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i > d/$i; done; echo filled; "
    task = await cluster.submit(fill + WORK % 150)
    await cluster.log(task, until=b"step-3\n")
    for _ in range(5):
        asking = asyncio.ensure_future(checkpoint(cluster, task))
        in_the_pause = await node.kill_in_a_pause()
        await node.start()
        assert (await asking).checkpoint.snapshot_id, "the next manager was not asked again"
        if in_the_pause:
            break
    else:
        raise AssertionError("the manager was never killed in a pause")
    ended = await cluster.wait(task)
    assert (ended.state, len(ended.attempts)) == (SUCCEEDED, 1)
    assert (await cluster.log(task)).count(b"step-") == 150


async def test_artifacts_of_a_failure_are_listed_in_its_result(cluster: Cluster) -> None:
    node = cluster.node()
    await node.start()
    task = await cluster.submit("mkdir out; echo report > out/r.txt; echo no > other; exit 3", artifacts=["out/**"])
    await cluster.wait(task)
    answer = await cluster.scheduler.GetResult(scheduler_pb2.GetResultRequest(task_id=task))
    assert [(a.path, a.size) for a in answer.result.artifacts] == [("out/r.txt", 7)]
