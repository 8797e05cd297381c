"""Checkpoints that users ask for: a wish in the task's record, carried to the node by whoever leads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.errors import AbortedError, NotFoundError, PreconditionError
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from tests.unit.scheduler.node import Node
from tests.unit.scheduler.plane import Plane, User, duration, soon, until

COMMITTED = pb.ReportVerdict.VERDICT_COMMITTED
AGAIN = task_pb2.RetryPolicy(
    max_attempts=3, initial_backoff=duration(0.01), retry_on=[task_pb2.END_REASON_NONZERO_EXIT]
)


def ask(user: User, task_id: str) -> asyncio.Task[pb.CheckpointTaskResponse]:
    async def call() -> pb.CheckpointTaskResponse:
        return await user.stub.CheckpointTask(pb.CheckpointTaskRequest(task_id=task_id))

    return asyncio.create_task(call())


async def test_a_checkpoint_is_taken_when_it_is_asked_for(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    asked = ask(user, task_id)
    wish = await soon(node.wishes.get())
    assert (wish.task_id, wish.token, wish.request) == (task_id, assignment.token, 1)
    await node.checkpoint(assignment, "by the clock")
    assert not asked.done(), "one that was begun before is no answer"
    await node.checkpoint(assignment, "c-1", request=wish.request, frozen=duration(0.04))
    answer = await soon(asked)
    assert (answer.checkpoint.snapshot_id, answer.frozen.ToMilliseconds()) == ("c-1", 40)


async def test_a_tree_that_did_not_change_answers_as_well(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    for request in (1, 2):
        asked = ask(user, task_id)
        assert (await soon(node.wishes.get())).request == request
        assert await node.checkpoint(assignment, "c-1", request=request) == COMMITTED
        assert (await soon(asked)).checkpoint.snapshot_id == "c-1"


async def test_a_refused_checkpoint_says_why_and_the_task_goes_on(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    asked = ask(user, task_id)
    wish = await soon(node.wishes.get())
    failure = "workspace/dev/null: a device cannot be kept"
    assert await node.checkpoint(assignment, request=wish.request, failure=failure) == COMMITTED
    with pytest.raises(PreconditionError, match="a device cannot be kept") as caught:
        await soon(asked)
    assert caught.value.reason == "CHECKPOINT_REFUSED"
    assert await node.checkpoint(assignment, request=wish.request, failure=failure) == COMMITTED
    asked = ask(user, task_id)
    await node.checkpoint(assignment, "c-1", request=(await soon(node.wishes.get())).request)
    assert (await soon(asked)).checkpoint.snapshot_id == "c-1"


@pytest.mark.parametrize("end", ["finished", "failed", "lost"])
async def test_an_attempt_that_ends_first_ends_the_wait(plane: Plane, user: User, end: str) -> None:
    assert isinstance(plane.kv, MemoryKeyValue)
    node = await Node(plane).connect()
    task_id = await user.submit(retry=AGAIN)
    assignment = await node.next()
    asked = ask(user, task_id)
    await soon(node.wishes.get())
    if end == "finished":
        await node.finish(assignment)
    elif end == "failed":
        await node.finish(
            assignment, state=task_pb2.ATTEMPT_STATE_FAILED, reason=task_pb2.END_REASON_NONZERO_EXIT, exit_code=1
        )
    else:
        await node.disconnect()
        plane.kv.expire(node.lease)
    with pytest.raises(AbortedError) as caught:
        await soon(asked)
    assert caught.value.reason == "ATTEMPT_ENDED"


async def test_the_next_attempt_is_not_asked_for_what_nobody_waits_for(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit(retry=AGAIN)
    assignment = await node.next()
    asked = ask(user, task_id)
    await soon(node.wishes.get())
    await node.finish(
        assignment, state=task_pb2.ATTEMPT_STATE_FAILED, reason=task_pb2.END_REASON_NONZERO_EXIT, exit_code=1
    )
    await asyncio.gather(asked, return_exceptions=True)
    await node.next()
    await node.heard(2)
    assert node.wishes.empty()


async def test_only_running_tasks_of_the_caller_are_checkpointed(plane: Plane, user: User) -> None:
    queued = await user.submit()
    with pytest.raises(PreconditionError, match="QUEUED") as caught:
        await soon(ask(user, queued))
    assert caught.value.reason == "TASK_NOT_RUNNING"
    node = await Node(plane).connect()
    assignment = await node.next()
    for call in (ask(User(plane, "stranger"), queued), ask(user, "task-0000000000000000"), ask(user, "../x")):
        with pytest.raises(NotFoundError):
            await soon(call)
    await user.cancel(queued)
    with pytest.raises(PreconditionError, match="being canceled"):
        await soon(ask(user, queued))
    await node.finish(assignment, state=task_pb2.ATTEMPT_STATE_CANCELED)
    with pytest.raises(PreconditionError, match="CANCELED"):
        await soon(ask(user, queued))


async def test_two_who_ask_are_answered_by_one_checkpoint_begun_after_both(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    asked = [ask(user, task_id), ask(user, task_id)]
    requests = [(await soon(node.wishes.get())).request]
    while requests[-1] != 2:
        requests.append((await soon(node.wishes.get())).request)
    assert await node.checkpoint(assignment, "c-1", request=2) == COMMITTED
    assert {(await soon(call)).checkpoint.snapshot_id for call in asked} == {"c-1"}


async def test_the_first_of_two_is_answered_without_the_second(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    first = ask(user, task_id)
    await soon(node.wishes.get())
    second = ask(user, task_id)
    await soon(node.wishes.get())
    await node.checkpoint(assignment, "c-1", request=1)
    assert (await soon(first)).checkpoint.snapshot_id == "c-1"
    assert not second.done()
    await node.checkpoint(assignment, "c-2", request=2)
    assert (await soon(second)).checkpoint.snapshot_id == "c-2"


async def test_a_request_waits_until_the_attempt_runs_and_is_sent_once(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    node.running[assignment.token].phase = pb.ATTEMPT_PHASE_PREPARING
    await node.heard(2)
    asked = ask(user, task_id)

    async def wanted() -> bool:
        found = await plane.transactions.get_task("acme", task_id)
        return found is not None and found.record.checkpoint_wanted == 1

    await until("it is wanted", wanted)
    await node.heard(2)
    assert node.wishes.empty()
    node.running[assignment.token].phase = pb.ATTEMPT_PHASE_RUNNING
    await soon(node.wishes.get())
    await node.heard(3)
    assert node.wishes.empty()
    await node.disconnect()
    await node.connect()
    await soon(node.wishes.get())
    await node.checkpoint(assignment, "c-1", request=1)
    await soon(asked)


async def test_a_request_outlives_its_leader(plane: Plane, user: User, another: Callable[[], Plane]) -> None:
    follower = another()
    await follower.start(leads=False)
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    asked = ask(User(follower), task_id)
    await soon(node.wishes.get())
    await node.disconnect()
    await plane.stop()
    await until("the follower leads", lambda: follower.scheduler.leader.term is not None)
    again = _elsewhere(node, follower)
    await again.connect(register=False)
    wish = await soon(again.wishes.get())
    assert (wish.token, wish.request) == (assignment.token, 1)
    assert await again.checkpoint(assignment, "c-1", request=wish.request) == COMMITTED
    assert (await soon(asked)).checkpoint.snapshot_id == "c-1"
    await again.disconnect()


def _elsewhere(node: Node, plane: Plane) -> Node:
    """The same node, at another replica."""
    twin: Any = Node(plane, node.name)
    twin.record, twin.lease, twin.create_revision = node.record, node.lease, node.create_revision
    twin.running = dict(node.running)
    return twin  # type: ignore[no-any-return]


async def test_a_replica_that_stops_lets_go_of_those_who_wait(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    await node.next()
    asked = ask(user, task_id)
    await soon(node.wishes.get())
    await plane.stop()
    (outcome,) = await asyncio.gather(asked, return_exceptions=True)
    assert isinstance(outcome, BaseException)
    await plane.start()
