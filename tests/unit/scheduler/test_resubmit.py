"""A submit that is repeated finds its task, whatever has become of the cluster since."""

from __future__ import annotations

import pytest

from cloudclaw.coordination.records import WorkspaceRecord
from cloudclaw.errors import AlreadyExistsError, QuotaExceededError
from cloudclaw.v1 import task_pb2
from tests.unit.scheduler.failing import FailingObjects
from tests.unit.scheduler.node import Node
from tests.unit.scheduler.plane import Plane, User, until

WS = task_pb2.WorkspaceSelection(name="ws")


async def test_a_repeated_submit_meets_no_load_shedding(plane: Plane, user: User) -> None:
    task_id = await user.submit("a", request_id="r")
    plane.scheduler.fullness.used, plane.scheduler.fullness.limit = 61, 100
    assert await user.submit("a", request_id="r") == task_id
    with pytest.raises(AlreadyExistsError) as caught:
        await user.submit("b", request_id="r")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    with pytest.raises(QuotaExceededError):
        await user.submit("a", request_id="another")


async def test_a_repeated_submit_meets_no_check_of_what_is_gone_by_now(plane: Plane, user: User) -> None:
    record = WorkspaceRecord(name="ws", created=1.0, updated=1.0, op_id="op")
    await plane.transactions.create_workspace("acme", record)
    task_id = await user.submit(workspace=WS, request_id="r")
    found = await plane.transactions.get_workspace("acme", "ws")
    assert found is not None
    await plane.transactions.delete_workspace("acme", found)
    await until("it is gone", lambda: not plane.scheduler.mirror.state.workspaces)
    assert await user.submit(workspace=WS, request_id="r") == task_id


async def test_a_repeated_submit_stores_nothing(plane: Plane, user: User) -> None:
    assert isinstance(plane.objects, FailingObjects)
    task_id = await user.submit(prompt="x" * 10_000, request_id="r")
    assert len(plane.objects.puts) == 1
    plane.objects.away = True
    assert await user.submit(prompt="x" * 10_000, request_id="r") == task_id
    assert len(plane.objects.puts) == 1


async def test_a_repeated_submit_is_answered_while_its_tenant_is_deleted(plane: Plane, user: User) -> None:
    task_id = await user.submit("a", request_id="r")
    node = await Node(plane).connect()
    await node.finish(await node.next())
    await plane.transactions.bury("acme")
    assert await user.submit("a", request_id="r") == task_id


async def test_the_record_knows_its_request(plane: Plane, user: User) -> None:
    task_id = await user.submit("a", request_id="r")
    found = await plane.transactions.get_task("acme", task_id)
    assert found is not None
    assert found.record.request == "r"
