"""Nodes and leaders that go away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from cloudclaw.clock import SystemClock
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.errors import FencedError, PreconditionError
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from tests.unit.scheduler.node import Node
from tests.unit.scheduler.plane import Plane, User, soon, until

QUEUED, RUNNING = task_pb2.TASK_STATE_QUEUED, task_pb2.TASK_STATE_RUNNING
SUCCEEDED, FAILED, CANCELED = (
    task_pb2.TASK_STATE_SUCCEEDED,
    task_pb2.TASK_STATE_FAILED,
    task_pb2.TASK_STATE_CANCELED,
)
LOST = task_pb2.ATTEMPT_STATE_LOST


@pytest_asyncio.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    """A scheduler whose grace is half a second."""
    plane = Plane(MemoryKeyValue(SystemClock()), MemoryObjects(), tmp_path, grace=0.5)
    await plane.start()
    yield plane
    await plane.stop()


def memory(plane: Plane) -> MemoryKeyValue:
    assert isinstance(plane.kv, MemoryKeyValue)
    return plane.kv


async def test_an_attempt_whose_lease_ends_runs_elsewhere(plane: Plane, user: User) -> None:
    one = await Node(plane, "one").connect()
    task_id = await user.submit()
    first = await one.next()
    await one.disconnect()
    two = await Node(plane, "two").connect()
    memory(plane).expire(one.lease)
    second = await two.next()
    assert (second.task_id, second.attempt) == (task_id, 2)
    assert second.token > first.token
    await two.finish(second)
    task = await user.wait(task_id)
    assert [(a.number, a.node, a.state) for a in task.attempts] == [
        (1, "one", LOST),
        (2, "two", task_pb2.ATTEMPT_STATE_SUCCEEDED),
    ]
    assert task.attempts[0].reason == task_pb2.END_REASON_NODE_LOST


async def test_a_node_whose_stream_broke_is_given_up_after_its_grace(plane: Plane, user: User) -> None:
    one = await Node(plane, "one").connect()
    task_id = await user.submit()
    await one.next()
    await one.disconnect()
    two = await Node(plane, "two").connect()
    assert (await two.next()).attempt == 2
    assert (await user.get(task_id)).attempts[0].state == LOST
    assert plane.scheduler.mirror.state.nodes["one"], "its lease lives: the leader did not wait for it"


async def test_a_node_that_stops_beating_is_given_up(plane: Plane, user: User) -> None:
    one = await Node(plane, "one").connect()
    await user.submit()
    await one.next()
    one.beats = False
    two = await Node(plane, "two").connect()
    assert (await two.next()).attempt == 2


async def test_a_node_that_only_the_leader_cannot_hear_keeps_its_attempt(plane: Plane, user: User) -> None:
    one = await Node(plane, "one").connect()
    task_id = await user.submit()
    assignment = await one.next()
    await one.disconnect()
    await Node(plane, "two").connect()
    for _ in range(8):
        await one.touch()
        await asyncio.sleep(0.2)
    task = await user.get(task_id)
    assert (task.state, len(task.attempts)) == (RUNNING, 1)
    await one.connect()
    assert await one.finish(assignment) == pb.ReportVerdict.VERDICT_COMMITTED


async def test_a_node_that_comes_back_in_time_keeps_its_attempt(plane: Plane, user: User) -> None:
    one = await Node(plane, "one").connect()
    task_id = await user.submit()
    assignment = await one.next()
    await one.disconnect()
    await one.connect()
    await Node(plane, "two").connect()
    start = one.acked
    await until("longer than the grace has passed", lambda: one.acked >= start + 12)
    assert (await user.get(task_id)).state == RUNNING
    assert await one.finish(assignment) == pb.ReportVerdict.VERDICT_COMMITTED


async def test_a_zombies_report_is_fenced_and_what_it_runs_is_killed(plane: Plane, user: User) -> None:
    one = await Node(plane, "one").connect()
    task_id = await user.submit()
    first = await one.next()
    await one.disconnect()
    two = await Node(plane, "two").connect()
    second = await two.next()
    await one.connect()
    kill = await soon(one.kills.get())
    assert (kill.task_id, kill.token) == (task_id, first.token)
    assert await one.finish(first) == pb.ReportVerdict.VERDICT_FENCED
    assert await two.finish(second) == pb.ReportVerdict.VERDICT_COMMITTED
    assert await one.finish(first) == pb.ReportVerdict.VERDICT_FENCED
    task = await user.get(task_id)
    assert (task.state, task.attempts[1].node) == (SUCCEEDED, "two")


async def test_a_task_that_loses_every_node_ends_failed_with_its_history(plane: Plane, user: User) -> None:
    task_id = await user.submit(retry=task_pb2.RetryPolicy(max_attempts=3))
    for number in (1, 2, 3):
        node = await Node(plane, f"node-{number}").connect()
        assert (await node.next()).attempt == number
        await node.disconnect()
        memory(plane).expire(node.lease)
    task = await user.wait(task_id)
    assert task.state == FAILED
    assert [a.state for a in task.attempts] == [LOST] * 3
    assert [e.state for e in task.events].count(RUNNING) == 3
    result = await user.result(task_id)
    assert (result.reason, len(result.attempts)) == (task_pb2.END_REASON_NODE_LOST, 3)
    assert result.message


async def test_a_task_canceled_while_its_node_is_gone_never_runs_again(plane: Plane, user: User) -> None:
    one = await Node(plane, "one").connect()
    task_id = await user.submit()
    await one.next()
    await one.disconnect()
    assert (await user.cancel(task_id)).cancel_requested
    two = await Node(plane, "two").connect()
    task = await user.wait(task_id)
    assert (task.state, len(task.attempts)) == (CANCELED, 1)
    assert two.assignments.empty()


async def test_a_node_that_lost_its_assignment_is_told_again(plane: Plane, user: User) -> None:
    one = await Node(plane, "one").connect()
    await user.submit()
    first = await soon(one.assignments.get())
    await one.disconnect()
    await one.connect()
    again = await one.next()
    assert (again.token, again.uid, again.spec) == (first.token, first.uid, first.spec)


async def test_a_node_that_forgot_an_assignment_is_told_again_by_its_heartbeats(plane: Plane, user: User) -> None:
    one = await Node(plane, "one").connect()
    await user.submit()
    first = await soon(one.assignments.get())
    assert (await one.next()).token == first.token


async def test_a_new_leader_goes_on_with_everything(plane: Plane, user: User, tmp_path: Path) -> None:
    node = await Node(plane, slots=1).connect()
    running = await user.submit()
    assignment = await node.next()
    queued = await user.submit()
    delayed = await user.submit()
    await node.disconnect()
    await plane.stop()
    term = node.term
    await plane.start()
    user = User(plane)
    await node.connect()
    assert node.term > term
    assert await node.finish(assignment) == pb.ReportVerdict.VERDICT_COMMITTED
    for task_id in (queued, delayed):
        assignment = await node.next()
        assert assignment.task_id == task_id
        await node.finish(assignment)
    assert (await user.wait(running)).state == SUCCEEDED


async def test_a_delayed_task_survives_a_change_of_leader(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    retry = task_pb2.RetryPolicy(max_attempts=2, retry_on=[task_pb2.END_REASON_NONZERO_EXIT])
    task_id = await user.submit(retry=retry)
    await node.finish(
        await node.next(), state=task_pb2.ATTEMPT_STATE_FAILED, reason=task_pb2.END_REASON_NONZERO_EXIT, exit_code=1
    )
    await node.disconnect()
    await plane.stop()
    await plane.start()
    await node.connect()
    assignment = await node.next()
    assert (assignment.task_id, assignment.attempt) == (task_id, 2)


async def test_a_lease_that_ended_while_nobody_led_is_found_by_the_sweep(plane: Plane, user: User) -> None:
    one = await Node(plane, "one").connect()
    await user.submit()
    await one.next()
    await one.disconnect()
    await plane.stop()
    memory(plane).expire(one.lease)
    await plane.start()
    two = await Node(plane, "two").connect()
    assert (await two.next()).attempt == 2


async def test_work_goes_on_after_an_outage_of_etcd(plane: Plane, user: User) -> None:
    node = await Node(plane, slots=1).connect()
    first = await user.submit()
    second = await user.submit()
    assignment = await node.next()
    memory(plane).outage = True
    await node.report(assignment)
    verdict = await soon(node.verdicts.get())
    assert verdict.verdict == pb.ReportVerdict.VERDICT_RETRY
    memory(plane).outage = False
    assert await node.finish(assignment) == pb.ReportVerdict.VERDICT_COMMITTED
    assignment = await node.next()
    assert assignment.task_id == second
    await node.finish(assignment)
    assert (await user.wait(first)).state == SUCCEEDED
    assert (await user.wait(second)).state == SUCCEEDED


@pytest.mark.parametrize("applied", [True, False])
async def test_a_claim_whose_outcome_is_unknown_is_settled(plane: Plane, user: User, applied: bool) -> None:
    node = await Node(plane).connect()
    memory(plane).fail_next("txn", applied=False)
    task_id = ""
    while not task_id:
        try:
            task_id = await user.submit(request_id="r")
        except Exception:
            continue
    assignment = await node.next()
    memory(plane).fail_next("txn", applied=applied)
    await node.report(assignment)
    verdict = await soon(node.verdicts.get())
    if verdict.verdict == pb.ReportVerdict.VERDICT_RETRY:
        assert await node.finish(assignment) == pb.ReportVerdict.VERDICT_COMMITTED
    assert (await user.wait(task_id)).state == SUCCEEDED


async def test_one_that_does_not_lead_names_the_leader_to_nodes(
    plane: Plane, user: User, another: Callable[[], Plane]
) -> None:
    follower = another()
    await follower.start(leads=False)
    await until("it knows the leader", lambda: follower.scheduler.elected() is not None)
    with pytest.raises(PreconditionError) as caught:
        await follower.stub("internal", ("node",)).Connect().read()  # it is refused whatever it would say
    assert caught.value.reason == "NOT_LEADER"
    assert caught.value.metadata["leader"] == plane.address


async def test_the_next_replica_leads_when_the_leader_stops(
    plane: Plane, user: User, another: Callable[[], Plane]
) -> None:
    follower = another()
    await follower.start(leads=False)
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    await node.disconnect()
    await plane.stop()
    await until("the follower leads", lambda: follower.scheduler.leader.term is not None)
    node.plane = follower
    await node.connect()
    assert await node.finish(assignment) == pb.ReportVerdict.VERDICT_COMMITTED
    assert (await User(follower).wait(task_id)).state == SUCCEEDED


class SlowClock(SystemClock):
    """A clock that a test sets forward, as a process that was stopped sees it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def boottime(self) -> float:
        return super().boottime() + self.ahead


async def test_a_leader_that_was_stopped_itself_requeues_nothing(tmp_path: Path) -> None:
    clock = SlowClock()
    plane = Plane(MemoryKeyValue(SystemClock()), MemoryObjects(), tmp_path, clock, grace=1.0, election_ttl=120)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(plane.stop)
        await plane.start()
        await stopped_leader(plane, clock)


async def stopped_leader(plane: Plane, clock: SlowClock) -> None:
    user = User(plane)
    one = await Node(plane, "one").connect()
    task_id = await user.submit()
    assignment = await one.next()
    await one.disconnect()
    two = await Node(plane, "two").connect()
    for _ in range(8):
        clock.ahead += 1.5
        await two.heard(2)
    assert (await user.get(task_id)).state == RUNNING
    assert two.assignments.empty()
    again = await two.next()
    assert again.attempt == 2, "once its ticks are on time, the leader gives the node up"
    assert again.token > assignment.token


async def test_a_node_that_connects_twice_has_one_link(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    await user.submit()
    assignment = await node.next()
    twin = Node(plane)
    twin.record, twin.lease, twin.create_revision = node.record, node.lease, node.create_revision
    twin.running = dict(node.running)
    await twin.connect()
    await twin.heard(8)
    assert (await user.get(assignment.task_id)).state == RUNNING
    assert await twin.finish(assignment) == pb.ReportVerdict.VERDICT_COMMITTED


async def test_an_older_incarnation_of_a_connected_node_is_refused(plane: Plane) -> None:
    node = await Node(plane).connect()
    await node.disconnect()
    await node.register()
    await node.connect()
    old = plane.stub("internal", ("node",)).Connect()
    await old.write(pb.ConnectRequest(hello=pb.Hello(node=node.name, incarnation=node.record.incarnation - 1)))
    with pytest.raises(FencedError):
        await soon(old.read())
    await node.heard(2)
