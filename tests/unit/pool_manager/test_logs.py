"""Logs on their way to the leader: each byte, in order, whatever breaks."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence

from hypothesis import given
from hypothesis import strategies as st

from cloudclaw.clock import SystemClock
from cloudclaw.v1 import task_pb2
from cloudclaw.v1.scheduler_pb2 import StreamLogsRequest, StreamLogsResponse
from cloudclaw_pool_manager.app.logs import BURST, CHUNK, FORGET_STEP, WINDOW, LogShipper, Pace, ShippedLog, _chunks
from cloudclaw_pool_manager.app.metrics import NodeMetrics
from cloudclaw_pool_manager.domain.attempt import AttemptId, LogFrame, Stream
from cloudclaw_pool_manager.ports.backend import SlotFailedError
from tests.unit.pool_manager.rig import Rig, settle


async def test_output_is_shipped_at_once_with_its_stream(rig: Rig) -> None:
    task, sandbox = await rig.running()
    sandbox.write(b"out\n")
    await settle()
    sandbox.write(b"err\n", Stream.STDERR)
    await settle()
    streams = [(c.chunk.offset, c.chunk.data, c.chunk.stream) for c in rig.leader.chunks]
    assert streams == [
        (0, b"out\n", task_pb2.LOG_STREAM_STDOUT),
        (4, b"err\n", task_pb2.LOG_STREAM_STDERR),
    ]
    assert {(c.uid, c.token, c.chunk.attempt) for c in rig.leader.chunks} == {(task.uid, task.token, 1)}


async def test_after_a_break_everything_not_durable_is_sent_again(rig: Rig) -> None:
    task, sandbox = await rig.running()
    sandbox.write(b"durable ")
    await settle()
    rig.leader.log_acks = False
    sandbox.write(b"provisional ")
    await settle()
    rig.leader.cut("logs")
    rig.leader.logs[task.uid] = bytearray(b"durable ")
    rig.leader.chunks.clear()
    sandbox.write(b"new")
    await rig.until(lambda: bytes(rig.leader.logs[task.uid]) == b"durable provisional new")
    assert rig.leader.chunks[0].chunk.offset == 8


async def test_a_leader_that_misses_bytes_gets_them_again(rig: Rig) -> None:
    task, sandbox = await rig.running()
    rig.leader.log_acks = False
    sandbox.write(b"0123456789")
    await settle()
    del rig.leader.logs[task.uid][4:]
    rig.leader.say_logs(uid=task.uid, resend_from=4)
    await settle()
    assert bytes(rig.leader.logs[task.uid]) == b"0123456789"
    sandbox.write(b"ab")
    sandbox.finish(0)
    await rig.gone(task)
    assert bytes(rig.leader.logs[task.uid]) == b"0123456789ab"


async def test_the_end_mark_is_sent_again_to_a_new_leader(rig: Rig) -> None:
    rig.leader.decides = False
    task, sandbox = await rig.running()
    sandbox.write(b"all")
    sandbox.finish(0)
    await rig.until(lambda: task.uid in rig.leader.ended)
    rig.leader.ended.clear()
    rig.leader.cut()
    await rig.until(lambda: task.uid in rig.leader.ended)


async def test_an_attempt_without_output_still_marks_its_end(rig: Rig) -> None:
    task, sandbox = await rig.running()
    sandbox.finish(0)
    await rig.gone(task)
    [mark] = rig.leader.chunks
    assert (mark.end, mark.chunk.offset, mark.chunk.data) == (True, 0, b"")


async def test_a_sealed_log_is_sent_no_further_and_the_attempt_can_end(rig: Rig) -> None:
    task, sandbox = await rig.running()
    sandbox.write(b"before")
    await settle()
    rig.leader.say_logs(uid=task.uid, durable_offset=6, sealed=True)
    await settle()
    rig.leader.chunks.clear()
    sandbox.write(b"after")
    sandbox.finish(0)
    await rig.gone(task)
    assert rig.leader.chunks == []
    assert rig.leader.reports


async def test_the_spool_forgets_only_what_is_durable(rig: Rig) -> None:
    task, sandbox = await rig.running()
    rig.leader.log_acks = False
    for _ in range(12):
        sandbox.write(b"x" * CHUNK)
    await settle()
    assert sandbox.forgotten == 0
    rig.leader.say_logs(uid=task.uid, durable_offset=10 * CHUNK)
    await settle()
    assert sandbox.forgotten == 10 * CHUNK
    assert await rig.state.forgotten(task.uid) == 10 * CHUNK


async def test_an_adopted_log_goes_on_where_its_spool_begins(rig: Rig) -> None:
    task, sandbox = await rig.running()
    for _ in range(8):
        sandbox.write(b"x" * CHUNK)
    await settle()
    assert sandbox.forgotten >= FORGET_STEP
    sandbox.write(b"y" * 100)
    await rig.crash()
    sandbox.write(b"z" * 100)
    await rig.start()
    sandbox.finish(0)
    await rig.gone(task)
    assert bytes(rig.leader.logs[task.uid]) == b"x" * (8 * CHUNK) + b"y" * 100 + b"z" * 100
    assert rig.state.offsets == {}


async def test_a_log_whose_durable_bytes_vanished_ends_before_them_and_the_result_is_kept(rig: Rig) -> None:
    task, sandbox = await rig.running()
    for _ in range(8):
        sandbox.write(b"x" * CHUNK)
    await settle()
    rig.leader.logs[task.uid] = bytearray(b"x" * 10)
    rig.leader.say_logs(uid=task.uid, resend_from=10)
    await settle()
    sandbox.write(b"more")
    sandbox.finish(0)
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.state, outcome.log_end) == (task_pb2.ATTEMPT_STATE_SUCCEEDED, 10)


async def _remember(uid: str, offset: int) -> None:
    """Nothing is remembered."""


class Spool:
    """A log source in memory; reading waits while `gate` is closed."""

    def __init__(self, data: bytes = b""):
        self.data = data
        self.gate: asyncio.Event | None = None
        self.broken = False

    async def read_log(self, uid: str, offset: int, max_bytes: int) -> Sequence[LogFrame]:
        if self.gate:
            await self.gate.wait()
        if self.broken:
            raise SlotFailedError("its supervisor is gone")
        data = self.data[offset : offset + max_bytes]
        return [LogFrame(offset, Stream.STDOUT, 1.0, data)] if data else []

    async def forget_log(self, uid: str, upto: int) -> None:
        """Nothing to forget."""


class Terms:
    term = 1

    async def believe(self, term: int) -> bool:
        return term >= self.term


class Channel:
    """A leader that takes log messages one at a time, when it is told to."""

    def __init__(self) -> None:
        self.taken: list[StreamLogsRequest] = []
        self.room = asyncio.Semaphore(0)
        self.answers: asyncio.Queue[StreamLogsResponse] = asyncio.Queue()

    def connect(self, requests: object) -> AsyncIterator[object]:
        raise NotImplementedError

    async def stream_logs(self, requests: AsyncIterator[StreamLogsRequest]) -> AsyncIterator[StreamLogsResponse]:
        async def take() -> None:
            while True:
                await self.room.acquire()
                self.taken.append(await anext(requests))

        taking = asyncio.ensure_future(take())
        try:
            while True:
                yield await self.answers.get()
        finally:
            taking.cancel()

    async def close(self) -> None: ...


class Shipping:
    """A shipper with one session to a `Channel`."""

    def __init__(self, rate: float = 0.0) -> None:
        self._rate = rate

    async def __aenter__(self) -> Shipping:
        self.shipper = LogShipper(Terms(), NodeMetrics(None), _remember, SystemClock(), self._rate)
        self.channel = Channel()
        self._tasks = [
            asyncio.ensure_future(self.shipper.run()),
            asyncio.ensure_future(self.shipper.session(self.channel)),  # type: ignore[arg-type]
        ]
        await settle()
        return self

    async def reconnect(self) -> None:
        """Another session, to a leader that knows nothing."""
        session = self._tasks.pop()
        session.cancel()
        await asyncio.gather(session, return_exceptions=True)
        await settle()
        self.channel = Channel()
        self._tasks.append(asyncio.ensure_future(self.shipper.session(self.channel)))  # type: ignore[arg-type]
        await settle()

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def open(self, name: str, data: bytes) -> tuple[ShippedLog, Spool]:
        spool = Spool(data)
        log = self.shipper.open(AttemptId("acme", f"task-{name}", 1, f"att-{name}", 5), spool)
        log.grown(len(data))
        return log, spool

    async def take(self, count: int) -> list[StreamLogsRequest]:
        """The next messages."""
        before = len(self.channel.taken)
        for _ in range(count):
            self.channel.room.release()
        await settle()
        return self.channel.taken[before:]


async def test_a_flood_of_one_log_does_not_hold_up_another() -> None:
    async with Shipping() as there:
        there.open("flood", b"x" * (40 * CHUNK))
        await settle()
        there.open("quiet", b"hello")
        await settle()
        messages = await there.take(8)
        assert "att-quiet" in [m.uid for m in messages], "it waited for more than a few chunks of the other"


async def test_pumps_that_waited_for_a_leader_go_on_with_the_next_one() -> None:
    async with Shipping() as there:
        logs = [there.open(f"log-{n}", b"%d" % n * (6 * CHUNK)) for n in range(8)]
        await settle()
        await there.reconnect()
        await there.take(8 * 6 + 8)
        for log, spool in logs:
            sent = [m.chunk.data for m in there.channel.taken if m.uid == log.attempt.uid]
            assert b"".join(sent) == spool.data
        assert not any(log.end_sent.is_set() for log, _ in logs)


async def test_a_spool_that_does_not_answer_holds_up_no_other() -> None:
    async with Shipping() as there:
        _, stuck = there.open("stuck", b"x")
        stuck.gate = asyncio.Event()
        there.open("fine", b"hello")
        [message] = await there.take(1)
        assert message.chunk.data == b"hello"


async def test_no_more_than_a_window_waits_for_durability() -> None:
    async with Shipping() as there:
        log, _ = there.open("big", b"x" * (WINDOW + 4 * CHUNK))
        await there.take(1000)
        assert sum(len(m.chunk.data) for m in there.channel.taken) == WINDOW
        there.channel.answers.put_nowait(StreamLogsResponse(term=1, uid="att-big", durable_offset=CHUNK))
        await settle()
        assert sum(len(m.chunk.data) for m in there.channel.taken) == WINDOW + CHUNK
        assert log.durable == CHUNK


def test_a_loud_log_is_held_to_its_rate_after_a_burst() -> None:
    pace = Pace(1000.0)
    assert pace.take(BURST, 50.0) == 0.0
    assert pace.take(500, 50.0) == 0.5
    assert pace.take(500, 51.0) == 0.0, "what it waited for was granted"
    assert pace.take(BURST, 51.0 + BURST) == 0.0, "a quiet log may burst again"
    assert Pace(0.0).take(1 << 40, 1.0) == 0.0


async def test_a_loud_log_does_not_slow_a_quiet_one() -> None:
    async with Shipping(rate=1.0) as there:
        there.open("loud", b"x" * (BURST + 4 * CHUNK))
        sent = await there.take(1000)
        assert sum(len(m.chunk.data) for m in sent) == BURST + CHUNK, "the chunk that went over it is paid for first"
        there.open("quiet", b"hello")
        [message] = await there.take(1)
        assert message.chunk.data == b"hello"


async def test_a_lost_spool_ends_the_log_at_what_was_sent() -> None:
    async with Shipping() as there:
        log, spool = there.open("lost", b"some")
        await there.take(1)
        spool.broken = True
        log.grown(100)
        await settle()
        messages = await there.take(1)
        assert [(m.end, m.chunk.offset) for m in messages] == [(True, 4)]
        assert log.final == 4
        assert log.end_sent.is_set()


async def test_a_spool_that_is_shorter_than_announced_does_not_hang_the_attempt() -> None:
    async with Shipping() as there:
        log, _ = there.open("short", b"half")
        await there.take(1)
        log.ended(10)
        await there.take(1)
        assert log.end_sent.is_set()
        assert log.final == 4


async def test_a_rewind_while_the_spool_is_read_starts_over() -> None:
    async with Shipping() as there:
        log, spool = there.open("back", b"0123456789")
        await there.take(1)
        spool.gate = asyncio.Event()
        spool.data += b"end"
        log.ended(13)
        await settle()
        there.channel.answers.put_nowait(StreamLogsResponse(term=1, uid="att-back", resend_from=4))
        await settle()
        spool.gate.set()
        [message] = await there.take(1)
        assert (message.chunk.offset, message.chunk.data, message.end) == (4, b"456789end", True)


async def test_a_message_of_an_older_term_is_ignored() -> None:
    async with Shipping() as there:
        log, _ = there.open("old", b"data")
        await there.take(1)
        there.channel.answers.put_nowait(StreamLogsResponse(term=0, uid="att-old", sealed=True))
        await settle()
        assert not log.sealed


@given(
    st.lists(st.tuples(st.sampled_from(list(Stream)), st.binary(min_size=1, max_size=50)), min_size=1, max_size=30),
    st.data(),
)
def test_chunks_hold_every_byte_from_the_wanted_offset_once(
    pieces: list[tuple[Stream, bytes]], data: st.DataObject
) -> None:
    frames, offset = [], 0
    for stream, content in pieces:
        frames.append(LogFrame(offset, stream, 1.5, content))
        offset += len(content)
    start = data.draw(st.integers(0, len(pieces[0][1]) - 1))
    chunks = list(_chunks(frames, start))
    whole = b"".join(content for _, content in pieces)
    assert b"".join(c.data for c in chunks) == whole[start:]
    position = start
    for chunk in chunks:
        assert chunk.offset == position
        position += len(chunk.data)
    streams = [int(chunk.stream) for chunk in chunks]
    assert all(a != b for a, b in itertools.pairwise(streams)), "neighbours of one stream travel together"


def test_no_chunk_is_over_its_limit() -> None:
    frames = [
        LogFrame(0, Stream.STDOUT, 1.0, b"a" * (CHUNK - 1)),
        LogFrame(CHUNK - 1, Stream.STDOUT, 1.0, b"b" * CHUNK),
    ]
    sizes = [len(c.data) for c in _chunks(frames, 0)]
    assert sizes == [CHUNK, CHUNK - 1]
