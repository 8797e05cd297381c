"""Hand-over of a node that drains: the task goes on elsewhere, from its checkpoint, and pays no attempt for it."""

from __future__ import annotations

import asyncio

import pytest

from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from tests.unit.scheduler.node import Node
from tests.unit.scheduler.plane import Plane, User, duration, until

QUEUED, RUNNING = task_pb2.TASK_STATE_QUEUED, task_pb2.TASK_STATE_RUNNING
SUCCEEDED, FAILED, CANCELED = (
    task_pb2.TASK_STATE_SUCCEEDED,
    task_pb2.TASK_STATE_FAILED,
    task_pb2.TASK_STATE_CANCELED,
)
COMMITTED = pb.ReportVerdict.VERDICT_COMMITTED


async def hand_over(node: Node, assignment: pb.Assignment, checkpoint: str, log_end: int = 0) -> None:
    """What a node does with a running attempt when it drains."""
    assert await node.checkpoint(assignment, checkpoint) == COMMITTED
    verdict = await node.finish(
        assignment,
        state=task_pb2.ATTEMPT_STATE_FAILED,
        reason=task_pb2.END_REASON_DRAINED,
        message=f"node {node.name} drains",
        retryable=True,
        log_end=log_end,
    )
    assert verdict == COMMITTED


async def test_a_drained_task_goes_on_elsewhere_at_once(plane: Plane, user: User) -> None:
    one, two = await Node(plane, "one", slots=2).connect(), await Node(plane, "two").connect()
    # A backoff that would show, and a single attempt that is not to be spent.
    retry = task_pb2.RetryPolicy(max_attempts=1, initial_backoff=duration(60))
    task_id = await user.submit(retry=retry)
    first = await one.next()
    loop = asyncio.get_running_loop()
    began = loop.time()
    await hand_over(one, first, "c-1")
    second = await two.next()
    took = loop.time() - began
    assert took < 0.5, f"the next attempt began {took:.3f} s after the hand-over"
    assert (second.attempt, second.base.snapshot_id, second.resumes) == (2, "c-1", True)
    assert await two.finish(second) == COMMITTED
    task = await user.get(task_id)
    assert task.state == SUCCEEDED
    assert [(a.node, a.state, a.reason, a.resumed) for a in task.attempts] == [
        ("one", task_pb2.ATTEMPT_STATE_FAILED, task_pb2.END_REASON_DRAINED, False),
        ("two", task_pb2.ATTEMPT_STATE_SUCCEEDED, task_pb2.END_REASON_COMPLETED, True),
    ]


async def test_it_never_comes_back_to_the_draining_node(plane: Plane, user: User) -> None:
    """Not even before the node's next heartbeat has said that it drains."""
    one = await Node(plane, "one", slots=8).connect()
    one.beats = False
    task_id = await user.submit()
    first = await one.next()
    await hand_over(one, first, "c-1")
    await until("it is in the queue", lambda: ("acme", task_id) in plane.scheduler.mirror.state.queue)
    one.draining = True
    one.beats = True
    await one.heard(3)
    assert one.assignments.empty()
    two = await Node(plane, "two").connect()
    assert (await two.next()).task_id == task_id


async def test_a_node_that_is_in_use_again_may_have_it_back(plane: Plane, user: User) -> None:
    one = await Node(plane, "one").connect()
    task_id = await user.submit()
    one.draining = True
    first = await one.next()
    await hand_over(one, first, "c-1")
    await one.heard(2)
    one.draining = False
    assert (await one.next()).task_id == task_id


async def test_hand_overs_are_never_counted(plane: Plane, user: User) -> None:
    nodes = [await Node(plane, f"node-{i}").connect() for i in range(2)]
    for node in nodes[1:]:
        node.draining = True
        await node.heard(2)
    retry = task_pb2.RetryPolicy(
        max_attempts=2, initial_backoff=duration(0.01), retry_on=[task_pb2.END_REASON_NONZERO_EXIT]
    )
    task_id = await user.submit(retry=retry)
    for number in range(4):
        here, there = nodes[number % 2], nodes[(number + 1) % 2]
        assignment = await here.next()
        assert assignment.attempt == number + 1
        here.draining, there.draining = True, False
        await hand_over(here, assignment, f"c-{number}")
    states = []
    for _ in range(2):
        assignment = await nodes[0].next()
        await nodes[0].finish(
            assignment,
            state=task_pb2.ATTEMPT_STATE_FAILED,
            reason=task_pb2.END_REASON_NONZERO_EXIT,
            exit_code=1,
        )
        states.append((await user.get(task_id)).state)
    assert states == [QUEUED, FAILED], "four hand-overs, and still two attempts of its own"
    assert len((await user.get(task_id)).attempts) == 6


async def test_the_log_of_a_drained_attempt_stays(plane: Plane, user: User) -> None:
    one, two = await Node(plane, "one").connect(), await Node(plane, "two").connect()
    task_id = await user.submit()
    first = await one.next()
    await one.write(first, 0, b"before ", end=True)
    await hand_over(one, first, "c-1", log_end=7)
    second = await two.next()
    await two.write(second, 0, b"after", end=True)
    await two.finish(second, log_end=5)
    assert await user.log(task_id, attempt=1) == b"before "
    assert await user.log(task_id) == b"before after"
    assert [a.log_end for a in (await user.get(task_id)).attempts] == [7, 5]


async def test_a_cancel_wins_over_a_hand_over(plane: Plane, user: User) -> None:
    one = await Node(plane, "one").connect()
    await Node(plane, "two").connect()
    task_id = await user.submit()
    first = await one.next()
    await user.cancel(task_id)
    await hand_over(one, first, "c-1")
    task = await user.get(task_id)
    assert (task.state, task.checkpoint.snapshot_id) == (CANCELED, "c-1")


async def test_a_hand_over_whose_verdict_was_lost_is_settled_by_the_next_leader(plane: Plane, user: User) -> None:
    one = await Node(plane, "one").connect()
    task_id = await user.submit()
    first = await one.next()
    one.draining = True
    await hand_over(one, first, "c-1")
    await one.disconnect()
    await plane.stop()
    await plane.start()
    await one.connect()
    verdict = await one.finish(first, state=task_pb2.ATTEMPT_STATE_FAILED, reason=task_pb2.END_REASON_DRAINED)
    assert verdict == COMMITTED
    two = await Node(plane, "two").connect()
    assert ((await two.next()).task_id, one.assignments.empty()) == (task_id, True)
    assert plane.scheduler.mirror.state.delayed == {}


@pytest.mark.parametrize("object_store", ["large", "small"])
async def test_an_attempt_that_is_tried_again_leaves_no_result_behind(
    plane: Plane, user: User, object_store: str
) -> None:
    one = await Node(plane, "one").connect()
    await user.submit()
    first = await one.next()
    size = 100_000 if object_store == "large" else 10
    await one.finish(
        first,
        state=task_pb2.ATTEMPT_STATE_FAILED,
        reason=task_pb2.END_REASON_SLOT_FAILED,
        retryable=True,
        final_message="m" * size,
    )
    await one.next()
    assert [info.name async for info in plane.objects.list("results/")] == []
