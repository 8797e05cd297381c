"""The node that has a tree is preferred, and nobody waits for it."""

from __future__ import annotations

import asyncio
from typing import Any

from cloudclaw.coordination.records import SnapshotPointer, WorkspaceRecord
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from tests.unit.scheduler.node import Node
from tests.unit.scheduler.plane import Plane, User, duration

WS = task_pb2.WorkspaceSelection(name="ws")
EPHEMERAL = task_pb2.WorkspaceSelection(name="ws", mode=task_pb2.WORKSPACE_MODE_EPHEMERAL)
AGAIN = task_pb2.RetryPolicy(
    max_attempts=3, initial_backoff=duration(0.01), retry_on=[task_pb2.END_REASON_NONZERO_EXIT]
)
NONZERO: dict[str, Any] = {
    "state": task_pb2.ATTEMPT_STATE_FAILED,
    "reason": task_pb2.END_REASON_NONZERO_EXIT,
    "exit_code": 3,
}


def tree(snapshot: str, tenant: str = "acme") -> pb.CachedTree:
    return pb.CachedTree(tenant=tenant, snapshot_id=snapshot)


async def workspace(plane: Plane, tenant: str = "acme") -> None:
    pointer = SnapshotPointer(id="snap-1", manifest="d1")
    record = WorkspaceRecord(name="ws", created=1.0, updated=1.0, op_id="op", head=pointer)
    await plane.transactions.create_workspace(tenant, record, snapshot=pointer)


async def test_the_head_is_looked_for_where_it_was_committed(plane: Plane, user: User) -> None:
    await workspace(plane)
    small = await Node(plane, "small").connect()
    await user.submit(workspace=WS)
    first = await small.next()
    await Node(plane, "large", slots=9).connect()
    await small.finish(first, snapshot=task_pb2.SnapshotRef(snapshot_id="snap-2", manifest_digest="d2"))
    await small.heard(1)
    await user.submit(workspace=WS)
    second = await small.next()
    assert second.base.snapshot_id == "snap-2", "and not the node with more slots"


async def test_a_tree_that_an_attempt_took_is_ready_no_more(plane: Plane, user: User) -> None:
    await workspace(plane)
    warm = await Node(plane, "warm", slots=2, cached=[tree("snap-1")]).connect()
    cold = await Node(plane, "cold", slots=5).connect()
    await user.submit(workspace=EPHEMERAL)
    await warm.next()
    await user.submit(workspace=EPHEMERAL)
    await cold.next()


async def test_a_checkpoint_is_no_ready_tree(plane: Plane, user: User) -> None:
    await workspace(plane)
    small = await Node(plane, "small").connect()
    await user.submit(workspace=WS, retry=AGAIN)
    first = await small.next()
    await small.checkpoint(first, "c-1")
    large = await Node(plane, "large", slots=9).connect()
    await small.finish(first, **NONZERO)
    assert (await large.next()).base.snapshot_id == "c-1"


async def test_a_resumed_task_prefers_the_node_that_has_its_checkpoint(plane: Plane, user: User) -> None:
    await workspace(plane)
    one = await Node(plane, "one").connect()
    await user.submit(workspace=WS, retry=AGAIN)
    first = await one.next()
    await one.checkpoint(first, "c-1")
    await Node(plane, "large", slots=9, cached=[tree("snap-1")]).connect()
    warm = await Node(plane, "warm", cached=[tree("c-1")]).connect()
    await one.finish(first, **NONZERO)
    assert (await warm.next()).resumes


async def test_another_tenants_tree_of_the_same_name_does_not_count(plane: Plane, user: User) -> None:
    await workspace(plane)
    await Node(plane, "other", cached=[tree("snap-1", tenant="stranger")]).connect()
    large = await Node(plane, "large", slots=5).connect()
    await user.submit(workspace=WS)
    await large.next()


async def test_a_task_whose_warm_node_is_full_goes_elsewhere_at_once(plane: Plane, user: User) -> None:
    await workspace(plane)
    cold = await Node(plane, "cold").connect()
    warm = await Node(plane, "warm", cached=[tree("snap-1")]).connect()
    await User(plane, "stranger").submit()
    await User(plane, "stranger").submit()
    await cold.next()
    held = await warm.next()
    other = await Node(plane, "other").connect()
    loop = asyncio.get_running_loop()
    began = loop.time()
    task_id = await user.submit(workspace=WS)
    assert (await other.next()).task_id == task_id
    assert loop.time() - began < 0.5
    await warm.finish(held)


async def test_a_hot_node_delays_nobody(plane: Plane) -> None:
    """A tenant whose trees all lie on one node fills it; another's tasks run meanwhile, on whatever is free."""
    await workspace(plane, "hot")
    greedy, modest = User(plane, "hot"), User(plane, "modest")
    warm = await Node(plane, "warm", slots=2, cached=[tree("snap-1", "hot")]).connect()
    cold = await Node(plane, "cold", slots=2).connect()
    for _ in range(10):
        await greedy.submit(workspace=EPHEMERAL)
    held = [await warm.next(), await warm.next(), await cold.next(), await cold.next()]
    assert {a.tenant for a in held} == {"hot"}, "no slot stands empty while tasks wait"
    wanted = await modest.submit()
    await warm.finish(held[0])
    assert (await warm.next()).task_id == wanted, "and the first free slot is the other tenant's"
