"""Work that goes on from its checkpoint, and success that never disagrees with a workspace's head."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from cloudclaw.v1 import task_pb2, workspace_pb2
from tests.support.processes import kill
from tests.support.stack import Stack, Tenant, now, seconds

SUCCEEDED = task_pb2.TASK_STATE_SUCCEEDED

COUNTER = """
n=$(cat n 2>/dev/null || echo 0)
echo "start at $n, from ${CLAW_RESUMED_FROM:-nothing}"
while [ $n -lt 120 ]; do
  n=$((n + 1))
  echo $n >> counter
  echo $n > n
  echo count-$n
  sleep 0.05
done
"""


async def test_a_killed_nodes_task_goes_on_from_its_checkpoint_and_counts_each_step_once(tmp_path: Path) -> None:
    async with Stack(tmp_path, nodes=2, slots=1, restart=False) as stack:
        tenant = stack.tenant("acme")
        await tenant.create_workspace("ws")
        task_id = await tenant.shell(
            COUNTER,
            workspace=task_pb2.WorkspaceSelection(name="ws"),
            checkpoint_interval=seconds(1.0),
        )
        await tenant.wait_output(task_id, b"count-60\n")
        task = await tenant.get(task_id)
        first, checkpoint = task.attempts[0].node, task.checkpoint.snapshot_id
        assert checkpoint, "two intervals went by without a checkpoint"
        await stack.kill_node(first)
        task = await tenant.wait(task_id)
        assert task.state == SUCCEEDED
        assert [attempt.resumed for attempt in task.attempts] == [False, True]
        second = task.attempts[1]
        assert second.node != first
        log = (await tenant.log(task_id, attempt=2)).decode()
        start = int(log.split()[2].rstrip(","))
        assert start >= 10, f"the second attempt began at {start}: not from a checkpoint"
        assert f"from {second.base_snapshot_id}" in log
        # The writes of the lost attempt after its checkpoint are nowhere; those before it are there once.
        assert (await tenant.read_file("ws", "counter")).split() == [b"%d" % n for n in range(1, 121)]
        result = await tenant.result(task_id)
        assert {file.path: file.change for file in result.changed_files} == {
            "counter": task_pb2.ChangedFile.CHANGE_ADDED,
            "n": task_pb2.ChangedFile.CHANGE_ADDED,
        }, "changes are told against the head, not against the checkpoint"
        assert not task.checkpoint.snapshot_id, "a success needs its checkpoint no more"
        snapshots = await _snapshots(tenant, "ws")
        assert [snapshot.snapshot_id for snapshot in snapshots] == [result.snapshot_id]


async def test_a_drained_nodes_work_goes_on_elsewhere_without_a_step_lost_or_doubled(tmp_path: Path) -> None:
    async with Stack(tmp_path, nodes=2, slots=1) as stack:
        tenant = stack.tenant("acme")
        await tenant.create_workspace("ws")
        task_id = await tenant.shell(
            COUNTER,
            workspace=task_pb2.WorkspaceSelection(name="ws"),
            retry=task_pb2.RetryPolicy(max_attempts=1),
        )
        await tenant.wait_output(task_id, b"count-20\n")
        first = (await tenant.get(task_id)).attempts[0].node
        await stack.drain(first, hand_over=True)
        task = await tenant.wait(task_id)
        assert task.state == SUCCEEDED, "one attempt is allowed, and a drained one does not count"
        assert [attempt.reason for attempt in task.attempts] == [
            task_pb2.END_REASON_DRAINED,
            task_pb2.END_REASON_COMPLETED,
        ]
        assert task.attempts[1].node != first
        logs = [(await tenant.log(task_id, attempt=number)).decode() for number in (1, 2)]
        counted = [line for line in "".join(logs).splitlines() if line.startswith("count-")]
        assert counted == [f"count-{n}" for n in range(1, 121)], "frozen at its checkpoint, it did nothing after it"
        assert (await tenant.read_file("ws", "counter")).split() == [b"%d" % n for n in range(1, 121)]


KILLS = 200
ROUND = 0.6
# Idempotent, as at-least-once work has to be: a checkpoint may hold the line already.
SIGN = 'sleep 0.1; grep -qx "$CLAW_TASK_ID" signed || echo "$CLAW_TASK_ID" >> signed; sleep 0.$(($$ % 4))'


@pytest.mark.timeout(600)
async def test_success_and_head_never_disagree_across_200_kills(tmp_path: Path) -> None:
    """Tasks sign their workspace's file one after another while nodes, managers, slots and the scheduler are killed.
    In the end a head holds exactly the signatures of the tasks that succeeded."""
    luck = random.Random(20_261_123)
    async with Stack(tmp_path, nodes=3, slots=2) as stack:
        tenant = stack.tenant("acme")
        names = [f"ws-{number}" for number in range(6)]
        for name in names:
            await tenant.create_workspace(name)
        tasks: dict[str, list[str]] = {name: [] for name in names}
        done = asyncio.Event()

        async def submit(name: str) -> None:
            """Two tasks of the workspace at a time, until there was enough violence."""
            while not done.is_set():
                task_id = await _submit(tenant, name, f"{name}-{len(tasks[name])}")
                tasks[name].append(task_id)
                if len(tasks[name]) > 1:
                    await tenant.wait(tasks[name][-2], timeout=240)

        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(submit(name))
            for _ in range(KILLS):
                await asyncio.sleep(luck.uniform(0.1, 2 * ROUND - 0.1))  # a random moment is the point
                await _violence(stack, luck)
            done.set()
        ended = {task_id: await tenant.wait(task_id, timeout=240) for ids in tasks.values() for task_id in ids}
        assert sum(len(task.attempts) > 1 for task in ended.values()) > KILLS / 20, "the kills hit nothing"
        for name in names:
            succeeded = [task_id for task_id in tasks[name] if ended[task_id].state == SUCCEEDED]
            signed = (await tenant.read_file(name, "signed")).decode().split()
            assert signed == succeeded, f"{name}: what is signed is not what succeeded"
            workspace = await tenant.workspaces.GetWorkspace(workspace_pb2.GetWorkspaceRequest(name=name))
            assert workspace.workspace.generation == len(succeeded)
            assert workspace.workspace.head_snapshot_id == (await tenant.result(succeeded[-1])).snapshot_id


async def _violence(stack: Stack, luck: random.Random) -> None:
    node = f"pool-manager@node-{luck.randint(1, 3)}"
    match luck.choices(("slot", "manager", "node", "scheduler"), (5, 3, 1, 1))[0]:
        case "slot":
            pids = stack.supervisors()
            if pids:
                kill(luck.choice(pids))
        case "manager":
            stack.kill(node)
        case "node":
            kill(stack.pid(node), *stack.supervisors(node.removeprefix("pool-manager@")))
        case "scheduler":
            stack.kill("scheduler")


async def _submit(tenant: Tenant, workspace: str, request_id: str) -> str:
    """Submit once, however often the scheduler is killed meanwhile: the request id sees to that."""
    end = now() + 120
    while True:
        try:
            return await tenant.shell(
                SIGN,
                request_id=request_id,
                workspace=task_pb2.WorkspaceSelection(name=workspace),
                checkpoint_interval=seconds(1.0),
                retry=task_pb2.RetryPolicy(max_attempts=100, initial_backoff=seconds(0.1), max_backoff=seconds(0.5)),
            )
        except Exception as error:
            if now() > end:
                raise AssertionError("the scheduler did not come back") from error
            await asyncio.sleep(0.1)


async def _snapshots(tenant: Tenant, workspace: str) -> list[workspace_pb2.Snapshot]:
    answer = await tenant.workspaces.ListSnapshots(workspace_pb2.ListSnapshotsRequest(workspace=workspace))
    return list(answer.snapshots)
