"""Tails: each byte once and in order, from anywhere, across everything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.errors import NotFoundError, OutOfRangeError, UnavailableError
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_scheduler.app.attempt_log import KEPT
from cloudclaw_scheduler.app.logs import PENDING_LIMIT
from tests.unit.scheduler.failing import FailingObjects
from tests.unit.scheduler.node import Node
from tests.unit.scheduler.plane import DEADLINE, Plane, User, soon, until

COMMITTED = pb.ReportVerdict.VERDICT_COMMITTED


class Reader:
    """Follows a tail in the background, and checks that no byte comes twice or out of order."""

    def __init__(self, user: User, task: str, attempt: int = 0, offset: int = 0) -> None:
        self.data: dict[int, bytes] = {}
        self.start = offset
        self.ended: list[int] = []
        self.durable = 0
        self._first = attempt
        self.task = asyncio.create_task(self._read(user, task, attempt, offset))

    async def _read(self, user: User, task: str, attempt: int, offset: int) -> None:
        async for response in user.tail(task, attempt, offset):
            chunk = response.chunk
            if chunk.data:
                so_far = self.data.get(chunk.attempt, b"")
                start = offset if chunk.attempt == min(self.data, default=chunk.attempt) else 0
                assert chunk.offset == start + len(so_far), "each byte once, and in order"
                self.data[chunk.attempt] = so_far + chunk.data
            self.durable = max(self.durable, response.durable_offset)
            if response.attempt_ended:
                self.ended.append(chunk.attempt)

    async def has(self, data: bytes, attempt: int = 1) -> None:
        """Wait until all of `data` came."""
        await until(f"{data[-20:]!r} came", lambda: self.task.done() or self.data.get(attempt, b"") == data)
        if self.task.done():
            self.task.result()
        assert self.data.get(attempt, b"") == data

    async def end(self) -> dict[int, bytes]:
        await soon(self.task)
        return self.data


async def room(node: Node, assignment: pb.Assignment, offset: int) -> None:
    """As a node does: no further ahead of the durable end than half of what the leader holds."""
    ahead = PENDING_LIMIT // 2
    await until("it is durable", lambda: node.durable.get(assignment.uid, 0) >= offset - ahead)


async def started(plane: Plane, user: User) -> tuple[Node, str, pb.Assignment]:
    node = await Node(plane).connect()
    task_id = await user.submit()
    return node, task_id, await node.next()


async def test_a_tail_before_during_and_after_the_run_sees_the_same(plane: Plane, user: User) -> None:
    task_id = await user.submit()
    before = Reader(user, task_id)
    node = await Node(plane).connect()
    assignment = await node.next()
    await node.write(assignment, 0, b"one ")
    await before.has(b"one ")
    during = Reader(user, task_id)
    middle = Reader(user, task_id, attempt=1, offset=2)
    await node.write(assignment, 4, b"two ")
    await node.write(assignment, 8, b"three", end=True)
    assert await node.finish(assignment, log_end=13) == COMMITTED
    whole = b"one two three"
    assert await before.end() == await during.end() == {1: whole}
    assert await middle.end() == {1: whole[2:]}
    assert before.ended == [1]
    for offset in range(len(whole) + 1):
        assert await user.log(task_id, 1, offset) == whole[offset:]


async def test_a_tail_is_served_before_anything_is_durable(plane: Plane, user: User) -> None:
    node, task_id, assignment = await started(plane, user)
    cast("FailingObjects", plane.objects).held.clear()
    reader = Reader(user, task_id)
    await node.write(assignment, 0, b"live")
    await reader.has(b"live")
    assert reader.durable == 0
    cast("FailingObjects", plane.objects).held.set()
    await until("it is durable", lambda: reader.durable == 4)


async def test_without_follow_a_tail_ends_at_what_there_is_now(plane: Plane, user: User) -> None:
    node, task_id, assignment = await started(plane, user)
    assert await user.log(task_id) == b""
    reader = Reader(user, task_id)
    await node.write(assignment, 0, b"now")
    await reader.has(b"now")
    assert await user.log(task_id) == b"now"
    assert await user.log(task_id, 1, 1) == b"ow"


async def test_an_offset_past_the_end_is_out_of_range(plane: Plane, user: User) -> None:
    node, task_id, assignment = await started(plane, user)
    await node.write(assignment, 0, b"abc", end=True)
    beyond = Reader(user, task_id, attempt=1, offset=4)
    assert await node.finish(assignment, log_end=3) == COMMITTED
    with pytest.raises(OutOfRangeError):
        await beyond.end()
    with pytest.raises(OutOfRangeError):
        await user.log(task_id, 1, 4)
    assert await user.log(task_id, 1, 3) == b""


async def test_an_attempt_that_never_was_is_not_found(plane: Plane, user: User) -> None:
    node, task_id, assignment = await started(plane, user)
    with pytest.raises(NotFoundError):
        await user.log(task_id, attempt=2)
    waiting = Reader(user, task_id, attempt=2)
    await node.finish(assignment)
    with pytest.raises(NotFoundError):
        await waiting.end()
    with pytest.raises(NotFoundError):
        await user.log("task-0000000000000000")


async def test_a_tail_of_all_attempts_crosses_a_loss(plane: Plane, user: User) -> None:
    node, task_id, assignment = await started(plane, user)
    reader = Reader(user, task_id)
    await node.write(assignment, 0, b"first")
    await node.ack(lambda ack: ack.durable_offset == 5)
    await node.disconnect()
    cast("MemoryKeyValue", plane.kv).expire(node.lease)
    other = await Node(plane, "node-2").connect()
    again = await other.next()
    await other.write(again, 0, b"second", end=True)
    await other.finish(again, log_end=6)
    assert await reader.end() == {1: b"first", 2: b"second"}
    assert reader.ended == [1, 2]
    assert await user.log(task_id) == b"firstsecond"
    assert await user.log(task_id, attempt=2) == b"second"


async def test_a_tail_goes_on_past_what_a_lost_attempt_never_stored(plane: Plane, user: User) -> None:
    objects = cast("FailingObjects", plane.objects)
    node, task_id, assignment = await started(plane, user)
    reader = Reader(user, task_id)
    objects.held.clear()
    await node.write(assignment, 0, b"provisional")
    await reader.has(b"provisional")
    await node.disconnect()
    cast("MemoryKeyValue", plane.kv).expire(node.lease)
    other = await Node(plane, "node-2").connect()
    again = await other.next()
    objects.held.set()
    await other.write(again, 0, b"second", end=True)
    await other.finish(again, log_end=6)
    assert await reader.end() == {1: b"provisional", 2: b"second"}
    assert (await user.get(task_id)).attempts[0].log_end == 0
    assert await user.log(task_id) == b"second"


async def test_the_end_of_a_lost_attempt_is_sealed_for_its_zombie(plane: Plane, user: User) -> None:
    node, task_id, assignment = await started(plane, user)
    await node.write(assignment, 0, b"kept")
    reader = Reader(user, task_id)
    await reader.has(b"kept")
    cast("MemoryKeyValue", plane.kv).expire(node.lease)
    await until("it is requeued", lambda: not plane.scheduler.mirror.state.running)
    await node.write(assignment, 4, b"never")
    sealed = await node.ack(lambda ack: ack.sealed)
    assert sealed.durable_offset == 4
    assert (await user.get(task_id)).attempts[0].log_end == 4
    assert await user.log(task_id, attempt=1) == b"kept"


async def test_overlaps_are_dropped_and_gaps_asked_for(plane: Plane, user: User) -> None:
    node, task_id, assignment = await started(plane, user)
    reader = Reader(user, task_id)
    await node.write(assignment, 0, b"abcdef")
    await node.write(assignment, 3, b"defghi")
    await node.write(assignment, 20, b"far")
    asked = await node.ack(lambda ack: ack.HasField("resend_from"))
    assert asked.resend_from == 9
    await node.write(assignment, 9, b"jkl", end=True)
    await node.finish(assignment, log_end=12)
    assert await reader.end() == {1: b"abcdefghijkl"}
    assert await user.log(task_id) == b"abcdefghijkl"


async def test_a_new_leader_asks_for_what_is_not_durable(plane: Plane, user: User) -> None:
    node, task_id, assignment = await started(plane, user)
    await node.write(assignment, 0, b"durable ")
    await node.ack(lambda ack: ack.durable_offset == 8)
    cast("FailingObjects", plane.objects).away = True
    await node.write(assignment, 8, b"provisional ")
    reader = Reader(user, task_id)
    await reader.has(b"durable provisional ")
    await node.disconnect()
    await plane.stop()
    with pytest.raises(UnavailableError):
        await reader.end()
    cast("FailingObjects", plane.objects).away = False
    await plane.start()
    user = User(plane)
    resumed = Reader(user, task_id, attempt=1, offset=4)
    await resumed.has(b"ble ")
    await node.connect()
    await node.write(assignment, 20, b"x")
    asked = await node.ack(lambda ack: ack.HasField("resend_from"))
    assert (asked.resend_from, asked.durable_offset) == (8, 8)
    await node.write(assignment, 8, b"provisional ")
    await node.write(assignment, 20, b"end", end=True)
    assert await node.finish(assignment, log_end=23) == COMMITTED
    assert await resumed.end() == {1: b"ble provisional end"}
    assert await user.log(task_id) == b"durable provisional end"


async def test_segments_that_two_leaders_wrote_do_no_harm(plane: Plane, user: User) -> None:
    node, task_id, assignment = await started(plane, user)
    await node.write(assignment, 0, b"0123456789", end=True)
    await node.ack(lambda ack: ack.durable_offset == 10)
    from cloudclaw_scheduler.app.segments import Segments
    from cloudclaw_scheduler.domain.logs import Frame

    segments = Segments(plane.objects)
    await segments.write(assignment.tenant, assignment.uid, [Frame(0, 1, 0, b"012345")])
    await segments.write(assignment.tenant, assignment.uid, [Frame(4, 1, 0, b"45"), Frame(6, 1, 0, b"67")])
    await node.finish(assignment, log_end=10)
    for offset in range(11):
        assert await user.log(task_id, 1, offset) == b"0123456789"[offset:]


async def test_a_slow_reader_falls_back_to_segments_and_holds_up_nobody(plane: Plane, user: User) -> None:
    node, task_id, assignment = await started(plane, user)
    slow = user.tail(task_id)
    piece = b"".join(b"%07d\n" % i for i in range(8192))  # 64 KiB
    await node.write(assignment, 0, piece)
    first = await anext(aiter(slow))
    total = 8 * KEPT
    for offset in range(len(piece), total, len(piece)):
        await node.write(assignment, offset, piece, end=offset + len(piece) == total)
        await room(node, assignment, offset)
    assert await node.finish(assignment, log_end=total) == COMMITTED
    data = bytearray(first.chunk.data)
    async for response in slow:
        assert not response.chunk.data or response.chunk.offset == len(data)
        data += response.chunk.data
    assert bytes(data) == piece * (total // len(piece))


async def test_an_attempt_far_ahead_of_the_store_waits_and_another_does_not(plane: Plane, user: User) -> None:
    objects = cast("FailingObjects", plane.objects)
    node = await Node(plane, slots=2).connect()
    loud, quiet = await user.submit(), await user.submit()
    first, second = await node.next(), await node.next()
    assert (first.task_id, second.task_id) == (loud, quiet)
    objects.away = True
    piece = b"x" * (256 * 1024)
    count = PENDING_LIMIT // len(piece) + 4
    for index in range(count):
        await node.write(first, index * len(piece), piece)
    await node.write(second, 0, b"quiet")
    await Reader(user, quiet).has(b"quiet")
    hub = plane.scheduler.leader.hub
    assert hub is not None
    assert hub.pending <= PENDING_LIMIT + len(piece) + 5
    objects.away = False
    asked = await node.ack(lambda ack: ack.uid == first.uid and ack.HasField("resend_from"))
    for offset in range(asked.resend_from, count * len(piece), len(piece)):
        await node.write(first, offset, piece, end=offset + len(piece) == count * len(piece))
        await room(node, first, offset)
    assert await node.finish(first, log_end=count * len(piece)) == COMMITTED
    assert await user.log(loud) == piece * count


async def test_a_log_of_many_small_pieces_comes_in_few(plane: Plane, user: User) -> None:
    node, task_id, assignment = await started(plane, user)
    for index in range(1000):
        await node.write(assignment, index * 2, b"x\n")
    await node.write(assignment, 2000, b"", end=True)
    await node.finish(assignment, log_end=2000)
    responses = [r async for r in user.tail(task_id)]
    assert len(responses) < 20
    assert b"".join(r.chunk.data for r in responses) == b"x\n" * 1000


async def test_the_wrong_token_writes_nothing(plane: Plane, user: User) -> None:
    node, task_id, assignment = await started(plane, user)
    await node.write(assignment, 0, b"forged", token=assignment.token - 1)
    assert (await node.ack(lambda ack: ack.sealed)).durable_offset == 0
    await node.write(assignment, 0, b"right", end=True)
    await node.finish(assignment, log_end=5)
    assert await user.log(task_id) == b"right"


async def test_a_follower_relays_the_tail_of_a_running_task(
    plane: Plane, user: User, another: Callable[[], Plane]
) -> None:
    follower = another()
    await follower.start(leads=False)
    await until("it knows the leader", lambda: follower.scheduler.elected() is not None)
    await until("it has loaded", follower.scheduler.mirror.loaded.is_set)
    node, task_id, assignment = await started(plane, user)
    reader = Reader(User(follower), task_id)
    stranger = User(follower, "stranger")
    await node.write(assignment, 0, b"via ")
    await reader.has(b"via ")
    with pytest.raises(NotFoundError):
        await stranger.log(task_id)
    await node.write(assignment, 4, b"leader", end=True)
    await node.finish(assignment, log_end=10)
    assert await reader.end() == {1: b"via leader"}
    assert await User(follower).log(task_id) == b"via leader"


async def test_a_tail_on_a_follower_survives_a_change_of_leader(
    plane: Plane, user: User, another: Callable[[], Plane]
) -> None:
    follower = another()
    await follower.start(leads=False)
    await until("it knows the leader", lambda: follower.scheduler.elected() is not None)
    await until("it has loaded", follower.scheduler.mirror.loaded.is_set)
    node, task_id, assignment = await started(plane, user)
    reader = Reader(User(follower), task_id)
    await node.write(assignment, 0, b"before ")
    await reader.has(b"before ")
    await node.ack(lambda ack: ack.durable_offset == 7)
    await node.disconnect()
    await plane.stop()
    await until("the follower leads", lambda: follower.scheduler.leader.term is not None)
    node.plane = follower
    await node.connect()
    await node.write(assignment, 0, b"before after", end=True)
    await node.ack(lambda ack: ack.HasField("resend_from"))
    await node.write(assignment, 7, b"after", end=True)
    assert await node.finish(assignment, log_end=12) == COMMITTED
    assert await reader.end() == {1: b"before after"}


async def test_a_client_that_vanishes_leaves_nothing_behind(plane: Plane, user: User) -> None:
    node, task_id, assignment = await started(plane, user)
    tail = user.tail(task_id)
    await node.write(assignment, 0, b"abc")
    assert await anext(aiter(tail))
    tails = plane.scheduler.metrics.tails
    assert tails._value.get() == 1
    tail.cancel()
    await until("the tail is gone", lambda: tails._value.get() == 0, DEADLINE)
    assert await node.finish(assignment) in (COMMITTED,)
    assert (await user.get(task_id)).state == task_pb2.TASK_STATE_SUCCEEDED


async def test_a_replica_that_stops_sends_its_followers_elsewhere(plane: Plane, user: User) -> None:
    node, task_id, assignment = await started(plane, user)
    queued = await user.submit()
    running, waiting = Reader(user, task_id), Reader(user, queued)
    changes = user.stub.WatchTasks(pb.WatchTasksRequest())
    await changes.initial_metadata()
    await node.write(assignment, 0, b"abc")
    await running.has(b"abc")
    stopping = asyncio.create_task(plane.scheduler.feed.stop())
    for followed in (waiting.task, anext(aiter(changes))):
        with pytest.raises(UnavailableError, match="stopping"):
            await soon(followed)
    await stopping
    await node.disconnect()
    ending = asyncio.create_task(plane.stop())
    with pytest.raises(UnavailableError):
        await running.end()
    await ending
