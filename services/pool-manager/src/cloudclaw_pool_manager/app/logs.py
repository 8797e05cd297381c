"""Ships logs: from the supervisors' spools to the leader, and tells the spools what is durable (design §8).

One stream carries the logs of all attempts. Each log has a pump of its own that reads from the spool where it
believes the leader to be and waits for its turn in a short queue, so no log holds up another for more than a few
chunks, and a leader that takes nothing holds up the pumps, not the tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from cloudclaw.clock import Clock
from cloudclaw.v1.scheduler_pb2 import StreamLogsRequest, StreamLogsResponse
from cloudclaw.v1.task_pb2 import LOG_STREAM_STDERR, LOG_STREAM_STDOUT, LOG_STREAM_SYSTEM, LogChunk
from cloudclaw_pool_manager.app.metrics import NodeMetrics
from cloudclaw_pool_manager.domain.attempt import AttemptId, LogFrame, Stream
from cloudclaw_pool_manager.ports.backend import SlotFailedError
from cloudclaw_pool_manager.ports.scheduler import SchedulerChannel

_log = structlog.get_logger()

CHUNK: Final = 256 << 10
WINDOW: Final = 16 << 20
"""Bytes of one log on their way to durability; more waits in the spool."""
BURST: Final = 8 << 20
"""Bytes of one log that may be sent at once, whatever its rate."""
FORGET_STEP: Final = 1 << 20
"""A spool is told to forget in steps of so many bytes, not at every ack."""
_QUEUE: Final = 4
_STREAMS: Final = {
    Stream.STDOUT: LOG_STREAM_STDOUT,
    Stream.STDERR: LOG_STREAM_STDERR,
    Stream.SYSTEM: LOG_STREAM_SYSTEM,
}


class Terms(Protocol):
    """What is known of the leaders' terms."""

    @property
    def term(self) -> int:
        """The newest seen."""
        ...

    async def believe(self, term: int) -> bool:
        """Whether a message of `term` counts: it is the newest seen, or newer and now remembered."""
        ...


class LogSource(Protocol):
    """Where a log is read: a slot."""

    async def read_log(self, uid: str, offset: int, max_bytes: int) -> Sequence[LogFrame]: ...

    async def forget_log(self, uid: str, upto: int) -> None: ...


class Pace:
    """A token bucket: `rate` bytes a second on average, `BURST` at once; 0 for no limit.

    What is held back here stays in the spool, and a full spool holds back the task: so one loud task costs the leader
    and the object store no more than its share.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._level = float(BURST)
        self._at = 0.0

    def take(self, size: int, now: float) -> float:
        """Account for `size` bytes sent at `now` (seconds of any steady clock); seconds to wait before the next."""
        if not self._rate:
            return 0.0
        self._level = min(float(BURST), self._level + (now - self._at) * self._rate) - size
        self._at = now
        return max(0.0, -self._level / self._rate)


class LogReader(Protocol):
    """Somebody of this node who reads a log too, and at another pace."""

    position: int
    """Everything below was read."""

    async def remember(self) -> None:
        """Keep over restarts what was made of the bytes below `position`: the spool is about to forget them."""
        ...


@dataclass(eq=False)
class ShippedLog:
    """One attempt's log on its way.

    Attributes:
        available: bytes in the spool.
        final: its length, once the attempt is over.
        sent: everything below was sent on the present stream.
        durable: everything below is in the object store.
        sealed: the leader wants no more of it.
        end_sent: set once the last byte was sent, with the mark that it is the last; and when sealed.
        reader: who else reads it; the spool forgets nothing before that one did.
    """

    attempt: AttemptId
    source: LogSource
    available: int = 0
    final: int | None = None
    sent: int = 0
    durable: int = 0
    forgotten: int = 0
    sealed: bool = False
    marked: bool = False
    was_cut: bool = False
    generation: int = 0
    end_sent: asyncio.Event = field(default_factory=asyncio.Event)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    pump: asyncio.Task[None] | None = None
    pace: Pace = field(default_factory=lambda: Pace(0.0))
    reader: LogReader | None = None

    def grown(self, available: int) -> None:
        """The spool holds so many bytes."""
        if available > self.available and not self.was_cut:
            self.available = available
            self.wake.set()

    def ended(self, final: int | None) -> None:
        """The attempt is over after `final` bytes (None: what was sent so far, for a spool that is lost)."""
        if self.was_cut:
            return
        self.final = self.sent if final is None else final
        self.available = self.final
        self.wake.set()

    def cut(self, offset: int) -> None:
        """Nothing after `offset` can reach the leader any more."""
        self.was_cut = True
        self.final = self.available = offset
        self.rewind(offset)

    def rewind(self, offset: int) -> None:
        """Send again from `offset`."""
        self.sent = offset
        self.marked = False
        self.generation += 1
        self.wake.set()


class LogShipper:
    """All logs of this node."""

    def __init__(
        self,
        terms: Terms,
        metrics: NodeMetrics,
        remember: Callable[[str, int], Awaitable[None]],
        clock: Clock,
        rate: float = 0.0,
    ):
        """`remember` keeps, over restarts, where the rest of a spool begins, before the spool is told to forget.
        `rate`: bytes a second of one log on average, 0 for no limit."""
        self._terms = terms
        self._clock = clock
        self._rate = rate
        self._remember = remember
        self._metrics = metrics
        self._logs: dict[str, ShippedLog] = {}
        self._queue: asyncio.Queue[StreamLogsRequest] | None = None
        self._turn = asyncio.Lock()
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Own the pumps until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for log in self._logs.values():
                self._start(group, log)
            await asyncio.get_running_loop().create_future()

    def open(self, attempt: AttemptId, source: LogSource, start: int = 0) -> ShippedLog:
        """Begin to ship an attempt's log from byte `start`, where the spool begins: all below is durable. What the
        leader has of the rest already, it drops."""
        log = ShippedLog(attempt, source, start, sent=start, durable=start, forgotten=start, pace=Pace(self._rate))
        self._logs[attempt.uid] = log
        if self._group is not None:
            self._start(self._group, log)
        return log

    def close(self, log: ShippedLog) -> None:
        """Ship no more of it; its spool may go."""
        if self._logs.pop(log.attempt.uid, None) is not None and log.pump is not None:
            log.pump.cancel()

    async def session(self, channel: SchedulerChannel) -> None:
        """One stream, until it ends or raises `CloudClawError`."""
        queue: asyncio.Queue[StreamLogsRequest] = asyncio.Queue(_QUEUE)
        self._queue = queue
        for log in self._logs.values():
            log.rewind(log.durable)
        try:
            async for response in channel.stream_logs(_drain(queue)):
                if await self._terms.believe(response.term):
                    self._answered(response)
        finally:
            self._queue = None
            while not queue.empty():  # who waits for room in it goes on
                queue.get_nowait()

    def _answered(self, response: StreamLogsResponse) -> None:
        log = self._logs.get(response.uid)
        if log is None:
            return
        if response.durable_offset > log.durable:
            self._metrics.log_acked.inc(response.durable_offset - log.durable)
            log.durable = response.durable_offset
            log.sent = max(log.sent, log.durable)
            log.wake.set()
        if response.sealed:
            log.sealed = True
            log.end_sent.set()
            log.wake.set()
        elif response.HasField("resend_from"):
            if response.resend_from < log.forgotten:
                log.cut(response.resend_from)
                _log.error(
                    "bytes of a log that were acked as durable are gone; the log ends before them",
                    task=log.attempt.task,
                    attempt=log.attempt.uid,
                    offset=response.resend_from,
                    forgotten=log.forgotten,
                )
            else:
                log.rewind(response.resend_from)

    def _start(self, group: asyncio.TaskGroup, log: ShippedLog) -> None:
        log.pump = group.create_task(self._pump(log), name=f"log {log.attempt.uid}")

    async def _pump(self, log: ShippedLog) -> None:
        while True:
            await log.wake.wait()
            log.wake.clear()
            try:
                await self._ship(log)
            except SlotFailedError as error:
                _log.warning("a log's spool is lost", task=log.attempt.task, attempt=log.attempt.uid, error=str(error))
                log.ended(None)
            except OSError as error:
                # Only the note before forgetting writes: the spool keeps its bytes, and the next ack tries again.
                _log.error("a log cannot be forgotten", attempt=log.attempt.uid, error=str(error))

    async def _ship(self, log: ShippedLog) -> None:
        """Send all that can be sent now."""
        while (queue := self._queue) is not None and not log.sealed:
            durable = log.durable if log.reader is None else min(log.durable, log.reader.position)
            if durable - log.forgotten >= FORGET_STEP:
                if log.reader is not None:
                    await log.reader.remember()
                await self._remember(log.attempt.uid, durable)
                await log.source.forget_log(log.attempt.uid, durable)
                log.forgotten = durable
            generation = log.generation
            if log.sent < log.available:
                if log.sent - log.durable >= WINDOW:
                    return
                frames = await log.source.read_log(log.attempt.uid, log.sent, CHUNK)
                if generation != log.generation:
                    continue
                if not frames or frames[0].offset > log.sent:
                    self._missing(log)
                    return
                for chunk in _chunks(frames, log.sent):
                    end = chunk.offset + len(chunk.data)
                    last = end == log.final
                    there = await self._put(queue, self._message(log, chunk, end=last))
                    if not there or generation != log.generation:
                        break
                    self._metrics.log_shipped.inc(len(chunk.data))
                    log.sent = max(log.sent, end)
                    if last:
                        self._mark(log)
                    wait = log.pace.take(len(chunk.data), self._clock.boottime())
                    if wait and not last:
                        await self._clock.sleep(wait)
            elif log.final is not None and not log.marked:
                chunk = LogChunk(attempt=log.attempt.number, offset=log.final)
                if await self._put(queue, self._message(log, chunk, end=True)) and generation == log.generation:
                    self._mark(log)
            else:
                return

    async def _put(self, queue: asyncio.Queue[StreamLogsRequest], message: StreamLogsRequest) -> bool:
        """False when the session ended first."""
        # A queue lets who puts again overtake who has waited; a lock does not.
        async with self._turn:
            if self._queue is queue:
                await queue.put(message)
        return self._queue is queue

    def _missing(self, log: ShippedLog) -> None:
        """The spool does not hold what it announced. While the attempt runs, the next status wakes the pump."""
        if log.final is not None:
            _log.error(
                "a log ends early: its spool is not whole",
                task=log.attempt.task,
                attempt=log.attempt.uid,
                offset=log.sent,
                expected=log.final,
            )
            log.ended(None)

    def _mark(self, log: ShippedLog) -> None:
        log.marked = True
        log.end_sent.set()

    def _message(self, log: ShippedLog, chunk: LogChunk, *, end: bool) -> StreamLogsRequest:
        attempt = log.attempt
        chunk.attempt = attempt.number
        return StreamLogsRequest(
            term=self._terms.term,
            tenant=attempt.tenant,
            task_id=attempt.task,
            uid=attempt.uid,
            token=attempt.token,
            chunk=chunk,
            end=end,
        )


async def _drain(queue: asyncio.Queue[StreamLogsRequest]) -> AsyncIterator[StreamLogsRequest]:
    while True:
        yield await queue.get()


def _chunks(frames: Sequence[LogFrame], start: int) -> Iterator[LogChunk]:
    """Frames as chunks from byte `start` on: neighbours of one stream together, at most 256 KiB in each."""
    held = bytearray()
    first: LogFrame | None = None
    offset = start
    for frame in frames:
        data = memoryview(frame.data)[max(start - frame.offset, 0) :]
        while data:
            if first is not None and (frame.stream is not first.stream or len(held) >= CHUNK):
                yield _chunk(first, offset, held)
                offset += len(held)
                held.clear()
                first = None
            if first is None:
                first = frame
            piece = data[: CHUNK - len(held)]
            held += piece
            data = data[len(piece) :]
    if first is not None:
        yield _chunk(first, offset, held)


def _chunk(frame: LogFrame, offset: int, data: bytearray) -> LogChunk:
    seconds = int(frame.time)
    return LogChunk(
        offset=offset,
        data=bytes(data),
        stream=_STREAMS[frame.stream],
        time=Timestamp(seconds=seconds, nanos=int((frame.time - seconds) * 1e9)),
    )
