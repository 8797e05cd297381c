"""Nodes that die, hang, or are cut off."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from cloudclaw.v1 import task_pb2
from tests.support.processes import eventually, kill
from tests.support.proxy import Proxy
from tests.support.stack import Stack, now, seconds, task_pids

RUNNING, QUEUED = task_pb2.TASK_STATE_RUNNING, task_pb2.TASK_STATE_QUEUED
SUCCEEDED, FAILED = task_pb2.TASK_STATE_SUCCEEDED, task_pb2.TASK_STATE_FAILED
LOST = task_pb2.ATTEMPT_STATE_LOST

COUNT = "i=0; while [ $i -lt {n} ]; do i=$((i+1)); echo line-$i; sleep 0.1; done"


async def test_a_killed_nodes_task_runs_elsewhere_and_commits_once(tmp_path: Path) -> None:
    async with Stack(tmp_path, nodes=2, slots=1, restart=False) as stack:
        tenant = stack.tenant("acme")
        await tenant.create_workspace("ws")
        task_id = await tenant.shell(
            "echo attempt $CLAW_ATTEMPT >> runs; " + COUNT.format(n=30),
            workspace=task_pb2.WorkspaceSelection(name="ws"),
        )
        await tenant.wait_output(task_id, b"line-5\n")
        first = (await tenant.get(task_id)).attempts[0].node
        killed = now()
        await stack.kill_node(first)
        await tenant.wait_output(task_id, b"line-1\n", attempt=2)
        assert now() - killed < 30  # a bound for a broken machine; the budget of 5 s is the benchmark's
        task = await tenant.wait(task_id)
        assert task.state == SUCCEEDED
        assert [a.number for a in task.attempts] == [1, 2]
        assert task.attempts[0].state == LOST
        assert task.attempts[0].reason == task_pb2.END_REASON_NODE_LOST
        assert task.attempts[1].node != first
        result = await tenant.result(task_id)
        assert (result.state, result.exit_code) == (SUCCEEDED, 0)
        # The lost attempt's writes are nowhere: the second started from the same head.
        assert await tenant.read_file("ws", "runs") == b"attempt 2\n"
        assert (await tenant.log(task_id, attempt=2)).startswith(b"line-1\n")


async def test_a_task_that_takes_its_node_down_three_times_fails_with_its_history(tmp_path: Path) -> None:
    async with Stack(tmp_path, nodes=2, slots=1) as stack:
        tenant = stack.tenant("acme")
        task_id = await tenant.shell("echo up-$CLAW_ATTEMPT; sleep 60", retry=task_pb2.RetryPolicy(max_attempts=3))
        for number in (1, 2, 3):
            await tenant.wait_output(task_id, f"up-{number}\n".encode(), attempt=number, timeout=60)
            task = await tenant.get(task_id)
            await stack.kill_node(task.attempts[-1].node)
        task = await tenant.wait(task_id)
        assert task.state == FAILED
        assert [a.number for a in task.attempts] == [1, 2, 3]
        lost = {task_pb2.END_REASON_NODE_LOST, task_pb2.END_REASON_SLOT_FAILED}
        assert all(a.reason in lost for a in task.attempts), task.attempts
        assert [e.state for e in task.events if e.state == RUNNING] == [RUNNING] * 3
        result = await tenant.result(task_id)
        assert result.state == FAILED
        assert result.reason in lost
        assert len(result.attempts) == 3


async def test_a_holder_stopped_past_its_ttl_commits_nothing_and_its_processes_go(tmp_path: Path) -> None:
    async with Stack(tmp_path, nodes=2, slots=1, restart=False) as stack:
        tenant = stack.tenant("acme")
        await tenant.create_workspace("ws")
        # The first attempt ends by itself while its holder is stopped: on waking it would report success.
        script = "echo up; if [ $CLAW_ATTEMPT = 1 ]; then sleep 3; fi; echo $CLAW_ATTEMPT > winner"
        task_id = await tenant.shell(script, workspace=task_pb2.WorkspaceSelection(name="ws"))
        await tenant.wait_output(task_id, b"up\n", attempt=1)
        node = (await tenant.get(task_id)).attempts[0].node
        pids = await stack.node_pids(node)
        kill(*pids, signum=signal.SIGSTOP)
        stopped = now()
        task = await tenant.wait(task_id)
        assert task.state == SUCCEEDED
        assert task.attempts[0].state == LOST
        assert task.attempts[1].node != node
        # Stay stopped until the node's lease is gone too.
        await eventually("the TTL has passed", lambda: now() - stopped > 12, 20)
        kill(*pids, signum=signal.SIGCONT)
        await eventually("the zombie's processes are gone", lambda: not task_pids(task_id), 30)
        assert await tenant.read_file("ws", "winner") == b"2\n"
        after = await tenant.get(task_id)
        assert after.state == SUCCEEDED
        assert len(after.attempts) == 2
        # The node comes back by itself and serves again.
        again = [await tenant.shell("sleep 0.5; echo ok") for _ in range(4)]
        ended = [await tenant.wait(t) for t in again]
        assert {t.state for t in ended} == {SUCCEEDED}
        assert node in {t.attempts[-1].node for t in ended}


async def test_a_node_cut_off_from_the_leader_alone_keeps_its_work(tmp_path: Path) -> None:
    async with Stack(tmp_path, nodes=1, slots=1) as stack:
        tenant = stack.tenant("acme")
        async with Proxy(stack.endpoints["scheduler"]) as proxy:
            await proxied_node(stack, proxy.address)
            busy = await tenant.shell("sleep 30")  # node-1's only slot
            await tenant.wait(busy, RUNNING)
            task_id = await tenant.shell(COUNT.format(n=100))
            await tenant.wait_output(task_id, b"line-5\n")
            node = (await tenant.get(task_id)).attempts[0].node
            if node != "cut-off":  # the two were placed the other way round
                busy, task_id = task_id, busy
                task_id = await tenant.shell(COUNT.format(n=100))
                await tenant.wait_output(task_id, b"line-5\n")
            assert (await tenant.get(task_id)).attempts[0].node == "cut-off"
            proxy.cut()
            seen = now()
            await eventually("twice the grace has passed", lambda: now() - seen > 7, 10)
            task = await tenant.get(task_id)
            assert (task.state, len(task.attempts)) == (RUNNING, 1)
            proxy.mend()
            task = await tenant.wait(task_id)
            assert task.state == SUCCEEDED
            assert len(task.attempts) == 1
            assert await tenant.log(task_id) == b"".join(b"line-%d\n" % i for i in range(1, 101))


async def test_of_two_pool_managers_with_one_node_id_the_second_refuses(tmp_path: Path) -> None:
    async with Stack(tmp_path, nodes=1, slots=1) as stack:
        tenant = stack.tenant("acme")
        task_id = await tenant.shell(COUNT.format(n=30))
        await tenant.wait_output(task_id, b"line-1\n")
        environment = stack.environment_of("pool-manager@node-1")
        environment["CLAW_POOL_MANAGER_NODE_DIR"] = str(tmp_path / "second")
        environment["CLAW_POOL_MANAGER_SERVER__LISTEN"] = "127.0.0.1:0"
        environment["CLAW_POOL_MANAGER_SERVER__ADVERTISE"] = ""
        environment["CLAW_POOL_MANAGER_METRICS__LISTEN"] = ""
        second = stack.spawn([sys.executable, "-m", "cloudclaw_pool_manager"], environment, "second.log")
        assert await asyncio.wait_for(asyncio.to_thread(second.wait), 40) != 0
        said = (stack.directory / "log" / "second.log").read_text()
        assert "node-1" in said
        assert "NODE_ID_TAKEN" in said or "another pool-manager" in said
        task = await tenant.wait(task_id)
        assert (task.state, len(task.attempts)) == (SUCCEEDED, 1)


async def test_two_attempts_of_a_retryable_failure_wait_for_their_backoff(tmp_path: Path) -> None:
    async with Stack(tmp_path, nodes=1, slots=1) as stack:
        tenant = stack.tenant("acme")
        retry = task_pb2.RetryPolicy(
            max_attempts=3, initial_backoff=seconds(0.5), retry_on=[task_pb2.END_REASON_NONZERO_EXIT]
        )
        task_id = await tenant.shell("echo try $CLAW_ATTEMPT; exit 7", retry=retry)
        task = await tenant.wait(task_id)
        assert (task.state, [a.exit_code for a in task.attempts]) == (FAILED, [7, 7, 7])
        starts = [a.start_time.ToNanoseconds() for a in task.attempts]
        ends = [a.end_time.ToNanoseconds() for a in task.attempts]
        assert starts[1] - ends[0] >= 0.45e9
        assert starts[2] - ends[1] >= 0.95e9
        assert await tenant.log(task_id) == b"try 1\ntry 2\ntry 3\n"


async def proxied_node(stack: Stack, scheduler: str) -> None:
    """One more node, `cut-off`, that reaches the scheduler only through `scheduler`."""
    environment = stack.environment_of("pool-manager@node-1")
    environment["CLAW_POOL_MANAGER_NODE_ID"] = "cut-off"
    del environment["CLAW_POOL_MANAGER_GATEWAY_SOCKET"]  # a gateway obeys one node's manager
    environment["CLAW_POOL_MANAGER_NODE_DIR"] = str(stack.directory / "cut-off")
    environment["CLAW_POOL_MANAGER_SCHEDULER_ENDPOINTS"] = f'["{scheduler}"]'
    environment["CLAW_POOL_MANAGER_SERVER__LISTEN"] = "127.0.0.1:0"
    environment["CLAW_POOL_MANAGER_SERVER__ADVERTISE"] = ""
    environment["CLAW_POOL_MANAGER_METRICS__LISTEN"] = ""
    stack.spawn([sys.executable, "-m", "cloudclaw_pool_manager"], environment, "cut-off.log")
    from cloudclaw.rpc.channel import open_channel
    from cloudclaw.v1 import scheduler_pb2, scheduler_pb2_grpc

    channel = open_channel(stack.endpoints["scheduler"], None, stack.operator_token)
    stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)

    async def joined() -> bool:
        with contextlib.suppress(Exception):
            status = await stub.GetClusterStatus(scheduler_pb2.GetClusterStatusRequest())
            return any(n.node == "cut-off" and n.connected for n in status.nodes)
        return False

    await eventually("the second node has joined", joined, 30)
    await channel.close()
