"""The scheduler on a real etcd: outages, restarts, compaction, and a busy minute's worth of tasks."""

from __future__ import annotations

import asyncio

import pytest

from cloudclaw.errors import OutOfRangeError, UnavailableError
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from tests.support.etcd_server import EtcdServer
from tests.unit.scheduler.node import Node
from tests.unit.scheduler.plane import Plane, User, soon, until

pytestmark = pytest.mark.etcd

SUCCEEDED, RUNNING = task_pb2.TASK_STATE_SUCCEEDED, task_pb2.TASK_STATE_RUNNING
COMMITTED = pb.ReportVerdict.VERDICT_COMMITTED


async def serve(node: Node) -> None:
    """Run everything at once and well."""
    while True:
        assignment = await node.assignments.get()
        node.take(assignment)
        await node.write(assignment, 0, b"out\n", end=True)
        await node.report(assignment, log_end=4)


async def verdicts(node: Node, tasks: dict[str, int]) -> None:
    while True:
        verdict = await node.verdicts.get()
        if verdict.verdict == COMMITTED:
            tasks[verdict.task_id] = tasks.get(verdict.task_id, 0) + 1
        node.running = {token: r for token, r in node.running.items() if r.uid != verdict.uid}


async def test_tasks_of_many_tenants_all_end_once(plane: Plane) -> None:
    nodes = [await Node(plane, f"node-{i}", slots=4).connect() for i in range(2)]
    committed: dict[str, int] = {}
    background = [asyncio.create_task(work) for node in nodes for work in (serve(node), verdicts(node, committed))]
    users = [User(plane, f"tenant-{i}") for i in range(4)]
    ids = await asyncio.gather(*(user.submit() for user in users for _ in range(25)))
    await until("all are committed", lambda: len(committed) == 100)
    assert set(committed) == set(ids)
    assert set(committed.values()) == {1}
    for user in users:
        page = await user.stub.ListTasks(pb.ListTasksRequest(page_size=100))
        assert [t.state for t in page.tasks] == [SUCCEEDED] * 25
        assert await user.log(page.tasks[0].task_id) == b"out\n"
    for task in background:
        assert not task.done()
        task.cancel()


async def test_a_lease_that_runs_out_takes_its_attempt_along(plane: Plane, user: User) -> None:
    one = await Node(plane, "one", ttl=2).connect()
    await user.submit()
    await one.next()
    await one.disconnect()
    await plane.kv.revoke(one.lease)
    two = await Node(plane, "two").connect()
    assert (await two.next()).attempt == 2


async def test_a_silent_node_is_given_up_before_its_lease_runs_out(plane: Plane, user: User) -> None:
    one = await Node(plane, "one").connect()
    await user.submit()
    await one.next()
    await one.disconnect()
    two = await Node(plane, "two").connect()
    assert (await two.next()).attempt == 2
    assert "one" in plane.scheduler.mirror.state.nodes


async def test_everything_goes_on_after_etcd_was_killed(plane: Plane, user: User, etcd: EtcdServer) -> None:
    node = await Node(plane).connect()
    running, queued = await user.submit(), await user.submit()
    assignment = await node.next()
    await asyncio.to_thread(etcd.kill)
    with pytest.raises(UnavailableError):
        await user.get(running)
    await node.report(assignment)
    assert (await soon(node.verdicts.get())).verdict == pb.ReportVerdict.VERDICT_RETRY
    await asyncio.to_thread(etcd.start)
    if plane.scheduler.leader.term is None:
        await node.disconnect()
        await until("somebody leads", lambda: plane.scheduler.leader.term is not None, 30)
        await node.connect()
    while (verdict := await node.finish(assignment)) == pb.ReportVerdict.VERDICT_RETRY:
        pass
    assert verdict == COMMITTED
    assert (await user.wait(running)).attempts[0].number == 1
    assignment = await node.next()
    assert assignment.task_id == queued


async def test_a_restarted_scheduler_leads_within_a_second_or_two(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    await user.submit()
    assignment = await node.next()
    await node.disconnect()
    await plane.stop()
    loop = asyncio.get_running_loop()
    began = loop.time()
    await plane.start()
    assert loop.time() - began < 5.0
    await node.connect()
    assert await node.finish(assignment) == COMMITTED


async def test_a_watch_from_a_compacted_revision_is_out_of_range(plane: Plane, user: User, etcd: EtcdServer) -> None:
    start = (await user.stub.ListTasks(pb.ListTasksRequest())).revision
    for _ in range(3):
        await user.submit()
    await plane.stop()
    await plane.start()
    user = User(plane)
    await etcd.compact(plane.scheduler.mirror.state.revision)
    with pytest.raises(OutOfRangeError):
        async for _ in user.stub.WatchTasks(pb.WatchTasksRequest(after_revision=start)):
            pass
