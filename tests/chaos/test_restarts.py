"""Services that are killed, stopped and restarted under running work."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

from cloudclaw.v1 import task_pb2
from tests.support.processes import alive, eventually
from tests.support.stack import Stack, Tenant, command_of, now, task_pids

RUNNING, SUCCEEDED = task_pb2.TASK_STATE_RUNNING, task_pb2.TASK_STATE_SUCCEEDED

COUNT = "i=0; while [ $i -lt {n} ]; do i=$((i+1)); echo line-$i; sleep 0.05; done"


def lines(n: int) -> bytes:
    return b"".join(b"line-%d\n" % i for i in range(1, n + 1))


async def follow(tenant: Tenant, task_id: str) -> bytes:
    """Tail from the first byte to the last, resuming at the next offset whenever the tail breaks."""
    seen = b""
    end = asyncio.get_running_loop().time() + 90
    while asyncio.get_running_loop().time() < end:
        try:
            async for response in tenant.tail(task_id, attempt=1, offset=len(seen)):
                if response.chunk.data:
                    assert response.chunk.offset == len(seen), "each byte once, and in order"
                    seen += response.chunk.data
                if response.attempt_ended:
                    return seen
        except Exception:
            await asyncio.sleep(0.1)
    raise AssertionError(f"the tail never ended; {len(seen)} bytes seen")


async def test_a_killed_pool_manager_adopts_its_attempt_and_loses_no_byte(tmp_path: Path) -> None:
    async with Stack(tmp_path, nodes=1, slots=2) as stack:
        tenant = stack.tenant("acme")
        task_id = await tenant.shell(COUNT.format(n=150))
        tail = asyncio.create_task(follow(tenant, task_id))
        await tenant.wait_output(task_id, b"line-10\n")
        slots = {s.slot: s.pid for s in await stack.slots("node-1")}
        running = sorted(task_pids(task_id))
        old = stack.kill("pool-manager@node-1")
        await stack.wait_restarted("pool-manager@node-1", old)
        task = await tenant.wait(task_id)
        assert task.state == SUCCEEDED
        assert len(task.attempts) == 1, task.attempts
        assert running, "the task's processes were seen before"
        assert {s.slot: s.pid for s in await stack.slots("node-1")} == slots
        assert await tail == lines(150)
        assert await tenant.log(task_id) == lines(150)


async def test_a_task_that_ends_while_its_manager_is_away_is_committed_after(tmp_path: Path) -> None:
    async with Stack(tmp_path, nodes=1, slots=1) as stack:
        tenant = stack.tenant("acme")
        await tenant.create_workspace("ws")
        task_id = await tenant.shell(
            "echo up; sleep 0.7; echo done > out", workspace=task_pb2.WorkspaceSelection(name="ws")
        )
        await tenant.wait_output(task_id, b"up\n")
        stack.kill("pool-manager@node-1")
        task = await tenant.wait(task_id)
        assert (task.state, len(task.attempts)) == (SUCCEEDED, 1)
        assert await tenant.read_file("ws", "out") == b"done\n"


async def test_a_killed_scheduler_loses_nothing(tmp_path: Path) -> None:
    async with Stack(tmp_path, nodes=2, slots=1) as stack:
        tenant = stack.tenant("acme")
        running = [await tenant.shell(COUNT.format(n=100)) for _ in range(2)]
        queued = [await tenant.shell(f"echo queued-{i}") for i in range(5)]
        for task_id in running:
            await tenant.wait_output(task_id, b"line-5\n")
        tails = [asyncio.create_task(follow(tenant, task_id)) for task_id in running]
        old = stack.kill("scheduler")
        await stack.wait_restarted("scheduler", old)
        for task_id in [*running, *queued]:
            task = await tenant.wait(task_id)
            assert (task.state, len(task.attempts)) == (SUCCEEDED, 1), task
        for task_id, tail in zip(running, tails, strict=True):
            assert await tail == lines(100)
            assert await tenant.log(task_id) == lines(100)


async def test_a_leader_stopped_for_five_seconds_requeues_nothing(tmp_path: Path) -> None:
    async with Stack(tmp_path, nodes=2, slots=1) as stack:
        tenant = stack.tenant("acme")
        running = [await tenant.shell(COUNT.format(n=200)) for _ in range(2)]
        for task_id in running:
            await tenant.wait_output(task_id, b"line-5\n")
        stack.kill("scheduler", signal.SIGSTOP)
        stopped = now()
        await eventually("five seconds have passed", lambda: now() - stopped > 5, 10)
        stack.kill("scheduler", signal.SIGCONT)
        for task_id in running:
            task = await tenant.wait(task_id)
            assert (task.state, len(task.attempts)) == (SUCCEEDED, 1), task
            assert await tenant.log(task_id) == lines(200)


async def test_a_killed_etcd_comes_back_and_nothing_is_lost(tmp_path: Path) -> None:
    async with Stack(tmp_path, nodes=1, slots=2) as stack:
        tenant = stack.tenant("acme")
        running = await tenant.shell(COUNT.format(n=100))
        await tenant.wait_output(running, b"line-5\n")
        old = stack.kill("etcd")
        await stack.wait_restarted("etcd", old)
        task = await tenant.wait(running)
        assert (task.state, len(task.attempts)) == (SUCCEEDED, 1), task
        assert await tenant.log(running) == lines(100)
        after = await submit_when_possible(tenant, "echo after")
        assert (await tenant.wait(after)).state == SUCCEEDED


async def test_work_waits_frozen_through_a_minute_without_etcd(tmp_path: Path) -> None:
    async with Stack(tmp_path, nodes=1, slots=1, restart=False) as stack:
        tenant = stack.tenant("acme")
        task_id = await tenant.shell(COUNT.format(n=400))
        await tenant.wait_output(task_id, b"line-5\n")
        before = sorted(task_pids(task_id))
        pid = stack.pid("etcd")
        argv, environment, cwd = command_of(pid), stack.environment_of("etcd"), os.readlink(f"/proc/{pid}/cwd")
        stack.kill("etcd")
        killed = now()
        await eventually("a minute without etcd has passed", lambda: now() - killed > 60, 70)
        assert set(before) & set(task_pids(task_id)), "the task's processes are still there"
        frozen = spool_bytes(stack)
        waited = now()
        await eventually("three seconds more", lambda: now() - waited > 3, 10)
        assert spool_bytes(stack) == frozen, "and none of them has run on"
        assert cwd
        stack.respawn("etcd", argv=argv, environment=environment)
        task = await tenant.wait(task_id, timeout=90)
        assert (task.state, len(task.attempts)) == (SUCCEEDED, 1), task
        assert await tenant.log(task_id) == lines(400)


async def test_dev_starts_again_with_all_its_state(tmp_path: Path) -> None:
    stack = Stack(tmp_path, nodes=1, slots=1)
    async with stack:
        tenant = stack.tenant("acme")
        await tenant.create_workspace("ws")
        task_id = await tenant.shell("echo kept | tee file", workspace=task_pb2.WorkspaceSelection(name="ws"))
        assert (await tenant.wait(task_id)).state == SUCCEEDED
        children = [stack.pid(name) for name in stack.names()]
    await eventually("all children are gone", lambda: not any(alive(pid) for pid in children), 10)
    stack = Stack(tmp_path, nodes=1, slots=1)
    async with stack:
        tenant = stack.tenant("acme")
        assert (await tenant.get(task_id)).state == SUCCEEDED
        assert await tenant.log(task_id) == b"kept\n"
        assert await tenant.read_file("ws", "file") == b"kept\n"


async def test_another_scheduler_takes_over_and_followers_relay_tails(tmp_path: Path) -> None:
    async with Stack(tmp_path, nodes=1, slots=1) as stack:
        tenant = stack.tenant("acme")
        address = free_address()
        environment = stack.environment_of("scheduler") | {
            "CLAW_SCHEDULER_SERVER__LISTEN": address,
            "CLAW_SCHEDULER_METRICS__LISTEN": "",
        }
        stack.spawn([sys.executable, "-m", "cloudclaw_scheduler"], environment, "second.log")
        task_id = await tenant.shell(COUNT.format(n=200))
        await tenant.wait_output(task_id, b"line-3\n")
        first, stack.endpoints["scheduler"] = stack.endpoints["scheduler"], address
        other = stack.tenant("acme")
        await other.wait(task_id, RUNNING)  # it serves
        await other.wait_output(task_id, b"line-10\n")  # a follower's tail, relayed from the leader
        tail = asyncio.create_task(follow(other, task_id))
        stack.kill("scheduler")
        task = await other.wait(task_id)
        assert (task.state, len(task.attempts)) == (SUCCEEDED, 1), task
        assert await tail == lines(200)
        stack.endpoints["scheduler"] = first
        assert await tenant.log(task_id) == lines(200)
        again = await submit_when_possible(tenant, "echo again")
        assert (await tenant.wait(again)).state == SUCCEEDED


def spool_bytes(stack: Stack) -> int:
    """Bytes in all spools of the first node."""
    return sum(f.stat().st_size for f in (stack.directory / "nodes" / "node-1").rglob("ctl/spool/*/*") if f.is_file())


def free_address() -> str:
    """A loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def submit_when_possible(tenant: Tenant, script: str) -> str:
    """Submit with one request id until it is accepted."""
    for _ in range(100):
        try:
            return await tenant.shell(script, request_id="after-outage")
        except Exception:
            await asyncio.sleep(0.1)
    raise AssertionError("submit was never accepted")
