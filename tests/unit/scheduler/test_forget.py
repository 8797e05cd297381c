"""A tenant that is being deleted: nothing new of it begins, and every node is told to forget it."""

from __future__ import annotations

import pytest

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Put
from cloudclaw.coordination.records import WorkspaceRecord
from cloudclaw.errors import PreconditionError
from cloudclaw.v1 import scheduler_pb2 as pb
from tests.unit.scheduler.failing import FailingObjects
from tests.unit.scheduler.node import Node
from tests.unit.scheduler.plane import Plane, User, soon, until


async def test_keys_of_a_later_version_are_passed_over(plane: Plane, user: User) -> None:
    await plane.kv.txn([], [Put(keys.ROOT + "later/acme/x", b"?")])
    await plane.stop()
    await plane.start()
    await plane.kv.txn([], [Put(keys.ROOT + "later/acme/y", b"?"), Put(keys.ROOT + "later", b"?")])
    assert await User(plane).submit()


async def test_every_node_is_told(plane: Plane) -> None:
    nodes = [await Node(plane, f"node-{i}").connect() for i in range(2)]
    await plane.transactions.bury("acme")
    for node in nodes:
        assert (await soon(node.forgets.get())).tenant == "acme"
    late = await Node(plane, "late").connect()
    assert (await soon(late.forgets.get())).tenant == "acme"


async def test_a_node_that_connects_after_the_deletion_is_not_told(plane: Plane) -> None:
    await plane.transactions.bury("acme")
    await until("it is seen", lambda: "acme" in plane.scheduler.mirror.state.buried)
    await plane.transactions.delete_tenant_keys("acme")
    await until("it is over", lambda: not plane.scheduler.mirror.state.buried)
    node = await Node(plane).connect()
    await node.heard(2)
    assert node.forgets.empty()


async def test_a_node_that_was_away_forgets_whose_workspaces_are_all_gone(plane: Plane) -> None:
    record = WorkspaceRecord(name="ws", created=1.0, updated=1.0, op_id="op")
    await plane.transactions.create_workspace("acme", record)
    await until("it is seen", lambda: ("acme", "ws") in plane.scheduler.mirror.state.workspaces)
    trees = [pb.CachedTree(tenant=tenant, snapshot_id="snap-1") for tenant in ("acme", "gone")]
    node = await Node(plane, cached=trees).connect()
    assert (await soon(node.forgets.get())).tenant == "gone"
    await node.heard(2)
    assert node.forgets.empty()


async def test_a_new_leader_tells_too(plane: Plane) -> None:
    await plane.transactions.bury("acme")
    await plane.stop()
    await plane.start()
    node = await Node(plane).connect()
    assert (await soon(node.forgets.get())).tenant == "acme"


async def test_submits_are_refused_and_leave_no_object(plane: Plane, user: User) -> None:
    assert isinstance(plane.objects, FailingObjects)
    await plane.transactions.bury("acme")
    await until("it is seen", lambda: "acme" in plane.scheduler.mirror.state.buried)
    with pytest.raises(PreconditionError) as caught:
        await user.submit(prompt="x" * 10_000)
    assert caught.value.reason == "TENANT_DELETED"
    assert plane.objects.puts == []
    assert await User(plane, "other").submit()


async def test_a_replica_that_has_not_seen_the_tombstone_creates_nothing_either(plane: Plane, user: User) -> None:
    await plane.transactions.bury("acme")
    plane.scheduler.mirror.state.buried.clear()
    with pytest.raises(PreconditionError) as caught:
        await user.submit()
    assert caught.value.reason == "TENANT_DELETED"
