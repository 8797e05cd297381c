"""Who runs where, and when."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from cloudclaw.coordination.records import SnapshotPointer, WorkspaceRecord
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from tests.unit.scheduler.node import Node
from tests.unit.scheduler.plane import Plane, User, duration, until

QUEUED, RUNNING = task_pb2.TASK_STATE_QUEUED, task_pb2.TASK_STATE_RUNNING
SUCCEEDED, FAILED = task_pb2.TASK_STATE_SUCCEEDED, task_pb2.TASK_STATE_FAILED


async def workspace(plane: Plane, name: str, head: str = "", tenant: str = "acme") -> None:
    record = WorkspaceRecord(
        name=name, created=1.0, updated=1.0, op_id="op", head=SnapshotPointer(id=head, manifest="m") if head else None
    )
    await plane.transactions.create_workspace(tenant, record, snapshot=record.head)


async def test_two_tenants_share_a_slot_in_turns(plane: Plane) -> None:
    greedy, modest = User(plane, "greedy"), User(plane, "modest")
    for _ in range(4):
        await greedy.submit()
    for _ in range(2):
        await modest.submit()
    node = await Node(plane).connect()
    order = []
    for _ in range(6):
        assignment = await node.next()
        order.append(assignment.tenant)
        await node.finish(assignment)
    assert order == ["greedy", "modest", "greedy", "modest", "greedy", "greedy"]


async def test_priority_goes_before_age_within_a_tenant(plane: Plane, user: User) -> None:
    ids = [await user.submit(priority=priority) for priority in (0, -1, 5, 0)]
    node = await Node(plane).connect()
    order = []
    for _ in ids:
        assignment = await node.next()
        order.append(assignment.task_id)
        await node.finish(assignment)
    assert order == [ids[2], ids[0], ids[3], ids[1]]


async def test_a_node_is_never_given_more_than_its_slots(plane: Plane, user: User) -> None:
    node = await Node(plane, slots=3).connect()
    for _ in range(20):
        await user.submit()
    held: list[pb.Assignment] = []
    for _ in range(20):
        held.append(await node.next())
        if len(held) == 3:
            await node.heard(2)
            assert node.assignments.empty()
            await node.finish(held.pop(0))
    for assignment in held:
        await node.finish(assignment)


async def test_the_node_that_has_the_tree_is_preferred_and_not_waited_for(plane: Plane, user: User) -> None:
    await workspace(plane, "ws", head="snap-1")
    selection = task_pb2.WorkspaceSelection(name="ws", mode=task_pb2.WORKSPACE_MODE_EPHEMERAL)
    cold = await Node(plane, "cold", slots=5).connect()
    warm = await Node(plane, "warm", cached=[pb.CachedTree(tenant="acme", snapshot_id="snap-1")]).connect()
    first = await user.submit(workspace=selection)
    assignment = await warm.next()
    assert (assignment.task_id, assignment.base.snapshot_id) == (first, "snap-1")
    second = await user.submit(workspace=selection)
    assert (await cold.next()).task_id == second


async def test_a_rejected_attempt_is_given_back_and_offered_again(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    first = await node.next()
    await node.reject(first)
    second = await node.next()
    assert (second.task_id, second.attempt) == (task_id, 1)
    assert second.uid != first.uid
    await node.finish(second)
    task = await user.wait(task_id)
    assert (task.state, len(task.attempts)) == (SUCCEEDED, 1)


async def test_a_draining_node_gets_nothing_new(plane: Plane, user: User) -> None:
    node = Node(plane)
    await node.register()
    stub = plane.stub("internal", ("node",))
    call: Any = stub.Connect()
    hello = pb.Hello(node=node.name, incarnation=1, pools=node.pools, draining=True)
    await call.write(pb.ConnectRequest(hello=hello))
    assert (await call.read()).WhichOneof("message") == "welcome"
    await user.submit()
    await call.write(pb.ConnectRequest(heartbeat=pb.Heartbeat(sequence=1, pools=node.pools, draining=True)))
    assert (await call.read()).WhichOneof("message") == "heartbeat_ack"
    await call.write(pb.ConnectRequest(heartbeat=pb.Heartbeat(sequence=2, pools=node.pools)))
    assert (await call.read()).WhichOneof("message") == "heartbeat_ack"
    assert (await call.read()).WhichOneof("message") == "assignment"
    call.cancel()


async def test_forty_claims_in_one_exclusive_workspace_never_overlap(plane: Plane, user: User) -> None:
    await workspace(plane, "ws")
    nodes = [await Node(plane, f"node-{i}", slots=2).connect() for i in range(3)]
    retry = task_pb2.RetryPolicy(
        max_attempts=10, initial_backoff=duration(0.005), backoff_multiplier=1.0,
        retry_on=[task_pb2.END_REASON_NONZERO_EXIT],
    )  # fmt: skip
    tasks = [await user.submit(workspace=task_pb2.WorkspaceSelection(name="ws"), retry=retry) for _ in range(4)]
    inside = 0
    owners: list[str] = []

    async def serve(node: Node) -> None:
        nonlocal inside
        while True:
            assignment = await node.assignments.get()
            node.take(assignment)
            inside += 1
            assert inside == 1, "two attempts in one exclusive workspace at once"
            owners.append(assignment.task_id)
            await asyncio.sleep(0)
            inside -= 1
            last = assignment.attempt == 10
            await node.finish(
                assignment,
                state=task_pb2.ATTEMPT_STATE_SUCCEEDED if last else task_pb2.ATTEMPT_STATE_FAILED,
                reason=task_pb2.END_REASON_COMPLETED if last else task_pb2.END_REASON_NONZERO_EXIT,
                exit_code=0 if last else 1,
            )

    serving = [asyncio.create_task(serve(node)) for node in nodes]
    ended = [await user.wait(task) for task in tasks]
    assert all(t.state == SUCCEEDED and len(t.attempts) == 10 for t in ended)
    assert len(owners) == 40
    assert sum(a != b for a, b in itertools.pairwise(owners)) == 3, "a task keeps the writer to its end"
    for each in serving:
        assert not each.done()
        each.cancel()
    assert ("acme", "ws") not in plane.scheduler.mirror.state.writers


async def test_a_task_waits_for_a_users_operation_and_runs_after_it(plane: Plane, user: User) -> None:
    await workspace(plane, "ws")
    token = await plane.transactions.acquire_writer("acme", "ws", "upload", await plane.kv.grant(60))
    node = await Node(plane, slots=2).connect()
    blocked = await user.submit(workspace=task_pb2.WorkspaceSelection(name="ws"))
    other = await user.submit()
    assert (await node.next()).task_id == other
    explained = await user.stub.ExplainTask(pb.ExplainTaskRequest(task_id=blocked))
    assert explained.task.wait_reason == task_pb2.WAIT_REASON_WRITER
    assert explained.writer == "user:upload"
    await plane.transactions.release_writer("acme", "ws", token)
    assert (await node.next()).task_id == blocked


async def test_a_parked_task_that_is_canceled_lets_the_next_one_go(plane: Plane, user: User) -> None:
    await workspace(plane, "ws")
    selection = task_pb2.WorkspaceSelection(name="ws")
    first, second, third = [await user.submit(workspace=selection) for _ in range(3)]
    await user.cancel(first)
    await user.cancel(second)
    node = await Node(plane).connect()
    assignment = await node.next()
    assert assignment.task_id == third


async def test_a_task_whose_workspace_was_deleted_fails_and_says_so(plane: Plane, user: User) -> None:
    await workspace(plane, "ws")
    task_id = await user.submit(workspace=task_pb2.WorkspaceSelection(name="ws"))
    found = await plane.transactions.get_workspace("acme", "ws")
    assert found is not None
    await plane.transactions.delete_workspace("acme", found)
    await Node(plane).connect()
    task = await user.wait(task_id)
    assert task.state == FAILED
    assert (await user.result(task_id)).reason == task_pb2.END_REASON_WORKSPACE_GONE


async def test_a_task_waits_no_longer_than_its_queue_timeout(plane: Plane, user: User) -> None:
    task_id = await user.submit(timeouts=task_pb2.Timeouts(queue=duration(0.05)))
    task = await user.wait(task_id)
    assert (task.state, len(task.attempts)) == (FAILED, 0)
    assert (await user.result(task_id)).reason == task_pb2.END_REASON_QUEUE_TIMEOUT
    node = await Node(plane).connect()
    other = await user.submit()
    assert (await node.next()).task_id == other


async def test_a_spec_over_four_kilobytes_arrives_whole(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    prompt = "x" * 100_000
    task_id = await user.submit("cat", prompt=prompt)
    assignment = await node.next()
    assert assignment.spec.prompt == prompt
    assert (await user.get(task_id)).spec.prompt == prompt


async def test_a_task_waits_for_a_pool_that_has_no_node_yet(plane: Plane, user: User) -> None:
    gpu = await Node(plane, "gpu-1", pool="gpu").connect()
    await until("the pool is known", lambda: "gpu" in plane.scheduler.mirror.state.pools)
    here = await user.submit()
    there = await user.submit(pool="gpu")
    assert (await gpu.next()).task_id == there
    assert (await user.get(here)).state == QUEUED
    node = await Node(plane).connect()
    assert (await node.next()).task_id == here


async def test_retries_wait_for_their_backoff_in_the_open(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    retry = task_pb2.RetryPolicy(
        max_attempts=2, initial_backoff=duration(0.3), retry_on=[task_pb2.END_REASON_NONZERO_EXIT]
    )
    task_id = await user.submit(retry=retry)
    await node.finish(
        await node.next(), state=task_pb2.ATTEMPT_STATE_FAILED, reason=task_pb2.END_REASON_NONZERO_EXIT, exit_code=7
    )
    task = await user.get(task_id)
    assert (task.state, task.wait_reason) == (QUEUED, task_pb2.WAIT_REASON_BACKOFF)
    assert task.due_time.ToMilliseconds() - task.attempts[0].end_time.ToMilliseconds() == 300
    second = await node.next()
    assert second.attempt == 2
    await node.finish(second, state=task_pb2.ATTEMPT_STATE_FAILED, reason=task_pb2.END_REASON_NONZERO_EXIT, exit_code=8)
    task = await user.get(task_id)
    assert (task.state, [a.exit_code for a in task.attempts]) == (FAILED, [7, 8])
