"""The log hub of the leader (design §8): chunks in from the nodes, out to tails at once, into segments each second.

The node forgets only what is acknowledged here, after its segment is stored. Memory is bounded: an attempt that is
too far ahead of the object store has its chunks dropped and asked for again, so one attempt never blocks another
on the node's one stream. Everything is fenced by the attempt's token.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Container, Iterator
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.errors import QuotaExceededError, UnavailableError
from cloudclaw.v1.scheduler_pb2 import StreamLogsRequest, StreamLogsResponse
from cloudclaw_scheduler.app.attempt_log import SEGMENT, AttemptLog, Phase
from cloudclaw_scheduler.app.metrics import Metrics
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.outbox import Outbox
from cloudclaw_scheduler.app.segments import Segments
from cloudclaw_scheduler.app.spawner import Spawner
from cloudclaw_scheduler.domain.logs import Frame, durable_end

_log = structlog.get_logger()

FLUSH_EVERY: Final = 1.0
"""Seconds that a byte waits at most for its segment to be written."""
PENDING_LIMIT: Final = 18 * 1024 * 1024
"""Bytes of one attempt that may wait for the object store: more than a node sends ahead of what is durable (16 MiB),
so that nothing is sent twice in ordinary operation."""
TOTAL_LIMIT: Final = 128 * 1024 * 1024
"""The same for all attempts; above it each may only have `SHARE`."""
SHARE: Final = 64 * 1024
_RETRY: Final = 0.5
HOLD_WAIT: Final = 1.0
"""Seconds that fixing a lost attempt's end waits for its last bytes to be stored."""
KNOW_WAIT: Final = 2.0
"""Seconds that it waits to learn that end. Less than a node waits for its Welcome, which a requeue holds up."""


class LogHub:
    """Logs of all attempts that the leader knows to run, by uid. Lives as long as the term."""

    def __init__(
        self, mirror: Mirror, segments: Segments, spawner: Spawner, clock: Clock, metrics: Metrics, term: int
    ) -> None:
        self._mirror = mirror
        self._segments = segments
        self._spawner = spawner
        self._clock = clock
        self._metrics = metrics
        self._term = term
        self._logs: dict[str, AttemptLog] = {}
        self._readers: dict[str, set[asyncio.Event]] = {}
        self._pending = 0
        self.closed = False

    @property
    def pending(self) -> int:
        """Bytes of all attempts that are not durable yet."""
        return self._pending

    def get(self, uid: str) -> AttemptLog | None:
        """The log of a running attempt, when chunks of it may come or came."""
        return self._logs.get(uid)

    def expect(self, tenant: str, task: str, uid: str, token: int) -> None:
        """This term's leader has just claimed the attempt: its log begins at 0, and nothing is stored."""
        if uid not in self._logs:
            self._logs[uid] = AttemptLog(tenant, task, uid, token, 0)
            self._wake(uid)

    def close(self, uid: str) -> None:
        """The attempt has ended: take no more of it. Tails that read it keep what they hold."""
        log = self._logs.pop(uid, None)
        if log is not None:
            self._pending -= log.pending
            log.phase = Phase.CLOSED
            log.flush_now.set()
        self._wake(uid)

    def retain(self, uids: Container[str]) -> None:
        """Close every log whose attempt is not one of `uids`: their ends were missed."""
        for uid, log in tuple(self._logs.items()):
            if uid not in uids and log.token <= self._mirror.state.revision:
                self.close(uid)

    def shut_down(self) -> None:
        """The term is over: tails go on elsewhere."""
        self.closed = True
        for uid in tuple(self._readers):
            self._wake(uid)

    @contextlib.contextmanager
    def listen(self, uid: str, event: asyncio.Event | None = None) -> Iterator[asyncio.Event]:
        """An event (`event` when given) that is set whenever the log has grown, became durable, was opened or
        closed, and when the term ends."""
        event = event or asyncio.Event()
        self._readers.setdefault(uid, set()).add(event)
        try:
            yield event
        finally:
            readers = self._readers.get(uid, set())
            readers.discard(event)
            if not readers:
                self._readers.pop(uid, None)

    async def receive(self, request: StreamLogsRequest, sink: Outbox[StreamLogsResponse]) -> None:
        """One message of a node's stream. `UnavailableError` when the mirror is too far behind to judge it."""
        log = self._logs.get(request.uid)
        if log is None or log.token != request.token:
            log = await self._admit(request)
            if log is None:
                sink.put(self._sealed(request))
                return
        if log.sink is not sink:
            log.sink, log.asked = sink, None
        if log.phase is not Phase.OPEN:
            log.resend = True
            return
        self._append(log, request)

    def _append(self, log: AttemptLog, request: StreamLogsRequest) -> None:
        chunk = request.chunk
        offset, data = chunk.offset, chunk.data
        if offset > log.end:
            if self._full(log):
                log.resend = True
            elif log.asked != log.end:
                log.asked = log.end
                log.say(self._term, resend=True)
            return
        if data and offset + len(data) > log.end:
            if self._full(log):
                log.resend = True
                return
            before = log.end
            log.append(Frame(offset, chunk.stream, chunk.time.ToMicroseconds(), data))
            grown = log.end - before
            self._pending += grown
            self._metrics.log_bytes.inc(grown)
            self._wake(log.uid)
        if request.end:
            log.final = offset + len(data)
            if log.complete:
                log.say(self._term)
            log.flush_now.set()
        elif log.pending >= SEGMENT:
            log.flush_now.set()
        if log.pending and not log.flushing:
            log.flushing = True
            self._spawner.spawn(self._flush(log))

    def _full(self, log: AttemptLog) -> bool:
        return log.pending >= (SHARE if self._pending >= TOTAL_LIMIT else PENDING_LIMIT)

    async def hold(self, tenant: str, uid: str) -> int:
        """Fix the end of an attempt that seems lost: what is durable after a last flush. Chunks are dropped until
        `release` or `close`. `UnavailableError` when this leader does not know the log, and the object store does not
        tell within `KNOW_WAIT`: nothing is fixed then."""
        log = self._logs.get(uid)
        if log is None or log.phase is Phase.LOADING:
            try:
                async with asyncio.timeout(KNOW_WAIT):
                    return await self._durable_end(tenant, uid)
            except TimeoutError:
                raise UnavailableError("the object store does not say where the log ends") from None
        log.phase = Phase.HELD
        log.flush_now.set()
        with self.listen(uid) as changed, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HOLD_WAIT):
                while log.pending and log.phase is Phase.HELD:
                    changed.clear()
                    await changed.wait()
        return log.durable

    def release(self, uid: str) -> None:
        """The attempt is not lost after all: go on."""
        log = self._logs.get(uid)
        if log is not None and log.phase is Phase.HELD:
            log.phase = Phase.OPEN
            self._ask_again(log)

    async def reached(self, tenant: str, uid: str, end: int, timeout: float) -> bool:
        """Whether the log is durable up to `end`, waiting for it at most `timeout` seconds (design §8)."""
        with self.listen(uid) as changed, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while True:
                    changed.clear()
                    log = self._logs.get(uid)
                    if end == 0 or (log is not None and log.phase is not Phase.LOADING and log.durable >= end):
                        return True
                    if log is None and await self._durable_end(tenant, uid) >= end:
                        return True
                    await changed.wait()
        return False

    async def _admit(self, request: StreamLogsRequest) -> AttemptLog | None:
        """The log of an attempt that this leader has not heard of, None when the token is not its lease's."""
        if request.token > self._mirror.state.revision:
            await self._mirror.reach(request.token)
        task = self._mirror.state.task(request.tenant, request.task_id)
        node = task.record.node if task and task.record.uid == request.uid else ""
        attempt = self._mirror.state.attempt(node, request.tenant, request.task_id) if node else None
        if attempt is None or attempt.uid != request.uid or attempt.revision != request.token:
            return None
        log = self._logs.get(request.uid)
        if log is None:
            log = AttemptLog(request.tenant, request.task_id, request.uid, request.token, None)
            self._logs[request.uid] = log
            self._spawner.spawn(self._load(log))
        return log

    def _sealed(self, request: StreamLogsRequest) -> StreamLogsResponse:
        task = self._mirror.state.task(request.tenant, request.task_id)
        ends = [a.log_end for a in task.record.attempts if a.uid == request.uid] if task else []
        return StreamLogsResponse(
            term=self._term,
            task_id=request.task_id,
            uid=request.uid,
            durable_offset=ends[0] if ends else 0,
            sealed=True,
        )

    async def _load(self, log: AttemptLog) -> None:
        durable = await self._durable_end(log.tenant, log.uid)
        if log.phase is Phase.LOADING:
            log.start_at(durable)
            self._wake(log.uid)
            self._ask_again(log)

    async def _durable_end(self, tenant: str, uid: str) -> int:
        while True:
            try:
                return durable_end(await self._segments.ranges(tenant, uid))
            except UnavailableError as error:
                _log.warning("the object store does not answer; waiting", uid=uid, error=error.message)
                await self._clock.sleep(_RETRY)

    async def _flush(self, log: AttemptLog) -> None:
        """Write segments until all that came is durable."""
        try:
            while log.pending and log.phase is not Phase.CLOSED:
                if log.final is None and log.pending < SEGMENT and log.phase is Phase.OPEN:
                    await self._wait_for_more(log)
                await self._store(log)
        finally:
            log.flushing = False

    async def _wait_for_more(self, log: AttemptLog) -> None:
        log.flush_now.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_EVERY):
                await log.flush_now.wait()

    async def _store(self, log: AttemptLog) -> None:
        frames = log.unstored()
        try:
            segment = await self._segments.write(log.tenant, log.uid, frames)
        except (UnavailableError, QuotaExceededError) as error:
            _log.warning("a log segment cannot be stored; waiting", task=log.task, uid=log.uid, error=error.message)
            self._metrics.log_stalls.inc()
            await self._clock.sleep(_RETRY)
            return
        before = log.durable
        log.stored(segment.end)
        if log.phase is Phase.CLOSED:
            return
        self._pending -= log.durable - before
        log.say(self._term)
        self._wake(log.uid)
        if log.resend and not self._full(log) and log.phase is Phase.OPEN:
            self._ask_again(log)

    def _ask_again(self, log: AttemptLog) -> None:
        log.resend, log.asked = False, log.end
        log.say(self._term, resend=True)

    def _wake(self, uid: str) -> None:
        for event in self._readers.get(uid, ()):
            event.set()
