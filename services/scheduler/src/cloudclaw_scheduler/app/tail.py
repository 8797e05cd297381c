"""Tails (design §8): the bytes of a task's attempts from any offset, each once and in order, on any replica.

A tail is a cursor (attempt, offset). Of an ended attempt it reads the segments; of a running one the leader's log
hub, or the segments where the hub's window begins later; a replica that does not lead relays that part from the
leader. Whatever breaks meanwhile, it goes on at the cursor. Each tail reads at its own pace.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination import keys
from cloudclaw.coordination.records import AttemptEnd, AttemptState, TaskRecord
from cloudclaw.errors import DataLossError, NotFoundError, OutOfRangeError, PreconditionError, UnavailableError
from cloudclaw.v1.scheduler_pb2 import TailLogsRequest, TailLogsResponse
from cloudclaw.v1.task_pb2 import LogChunk
from cloudclaw_scheduler.app.attempt_log import Phase
from cloudclaw_scheduler.app.feed import Feed
from cloudclaw_scheduler.app.history import History
from cloudclaw_scheduler.app.logs import LogHub
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.segments import Segments
from cloudclaw_scheduler.app.state import TaskKey
from cloudclaw_scheduler.app.submit import task_not_found
from cloudclaw_scheduler.domain.logs import Frame, Segment, coalesce, covering, durable_end
from cloudclaw_scheduler.ports.relay import LeaderRelay

_log = structlog.get_logger()

READ: Final = 256 * 1024
"""Bytes handed over at a time."""
JOIN: Final = 64 * 1024
"""Small pieces of one stream are joined up to this size."""
_RETRY: Final = 0.2

Stream = AsyncGenerator[TailLogsResponse, None]


@dataclass(slots=True)
class _Cursor:
    """Where a tail stands, and what it has told its reader."""

    attempt: int
    offset: int
    durable: int = 0
    ranges: list[Segment] | None = None
    asked: int = 0
    """The offset that the reader asked for; beyond it, what this tail itself has sent."""


class Tails:
    """Serves `TailLogs`."""

    def __init__(
        self,
        mirror: Mirror,
        feed: Feed,
        segments: Segments,
        relay: LeaderRelay,
        hub: Callable[[], LogHub | None],
        leader: Callable[[], str],
        clock: Clock,
        history: History,
    ) -> None:
        """`hub` answers the leader's log hub while this replica leads, `leader` the leader's address or ""."""
        self._mirror = mirror
        self._feed = feed
        self._segments = segments
        self._relay = relay
        self._hub = hub
        self._leader = leader
        self._clock = clock
        self._history = history

    async def tail(
        self, tenant: str, request: TailLogsRequest, authorization: str, *, relayed: bool, start: int = 0
    ) -> Stream:
        """The log of `request.task_id` from its cursor on. `start`: the attempt to begin with, of a request for all.
        Raises as `TailLogs` documents."""
        if relayed and self._hub() is None:
            raise not_leader(self._leader())
        await self._mirror.caught_up()
        if self._mirror.state.task(tenant, request.task_id) is None:
            await self._mirror.sync(keys.task(tenant, request.task_id))
        archived: TaskRecord | None = None
        cursor = _Cursor(request.attempt or start, request.offset, asked=request.offset)
        with self._feed.signal(tenant, request.task_id) as changed:
            while True:
                changed.clear()
                record = self._record(tenant, request.task_id) or archived
                if record is None:
                    record = archived = await self._archived(tenant, request.task_id)
                attempt = _attempt_at(record, cursor, request)
                if attempt is None:
                    if record.state.ended or not request.follow:
                        _check_exists(record, request)
                        return
                    self._feed.check()
                    await changed.wait()
                    continue
                cursor.attempt = attempt.number
                if attempt.state is AttemptState.RUNNING:
                    live = self._running(tenant, request, record, attempt, cursor, changed, authorization)
                    async with aclosing(live):
                        async for response in live:
                            yield response
                    if not request.follow:
                        return
                    continue
                async for response in self._ended(tenant, attempt, cursor):
                    yield response
                if request.attempt:
                    return
                cursor = _Cursor(attempt.number + 1, 0)

    def _record(self, tenant: str, task: str) -> TaskRecord | None:
        """The task in the mirror, None when it is archived by now."""
        found = self._mirror.state.task(tenant, task)
        return self._mirror.state.whole(found.record) if found else None

    def _runs(self, tenant: str, task: str, uid: str) -> bool:
        """The attempt is still the task's current one, as far as the mirror shows."""
        found = self._mirror.state.task(tenant, task)
        return found is not None and found.record.uid == uid

    async def _archived(self, tenant: str, task: str) -> TaskRecord:
        """A task that has left the mirror. `NotFoundError`."""
        found = await self._history.find(tenant, task)
        if found is None:
            raise task_not_found(task)
        return found.task.record

    async def _ended(self, tenant: str, attempt: AttemptEnd, cursor: _Cursor) -> Stream:
        if cursor.asked > attempt.log_end:
            raise OutOfRangeError(
                f"attempt {attempt.number} wrote {attempt.log_end} bytes; {cursor.asked} is past its end",
                reason="OFFSET_PAST_END",
            )
        while cursor.offset < attempt.log_end:
            sent = False
            for frame in coalesce(await self._stored(tenant, attempt.uid, cursor, attempt.log_end), JOIN):
                sent = True
                yield _response(attempt.number, frame, attempt.log_end)
                cursor.offset = frame.end
            if not sent:
                raise DataLossError(f"the log of attempt {attempt.number} is missing from byte {cursor.offset} on")
        yield TailLogsResponse(
            # Provisional bytes that this tail sent before the attempt was lost may lie beyond its end.
            chunk=LogChunk(attempt=attempt.number, offset=attempt.log_end),
            durable_offset=attempt.log_end,
            attempt_ended=True,
        )

    async def _running(
        self,
        tenant: str,
        request: TailLogsRequest,
        record: TaskRecord,
        attempt: AttemptEnd,
        cursor: _Cursor,
        changed: asyncio.Event,
        authorization: str,
    ) -> Stream:
        """A running attempt's bytes; ends when the task changed so that the attempt must be looked at again, or,
        without `follow`, when there is no more now."""
        hub = self._hub()
        if hub is not None:
            key = (record.tenant, record.task)
            local = self._from_hub(hub, request.follow, attempt, key, cursor, changed)
            async with aclosing(local):
                async for response in local:
                    yield response
            return
        self._feed.check()
        leader = self._leader()
        if leader:
            part = TailLogsRequest(
                task_id=record.task, attempt=attempt.number, offset=cursor.offset, follow=request.follow
            )
            try:
                async with aclosing(self._relay.tail(leader, part, authorization)) as relayed:
                    async for response in relayed:
                        if response.attempt_ended:
                            break
                        if response.chunk.data:
                            cursor.offset = response.chunk.offset + len(response.chunk.data)
                        yield response
                if request.follow:
                    await self._until_moved_on(tenant, record.task, attempt.uid, changed)
                return
            except (UnavailableError, PreconditionError) as error:
                _log.info("the leader does not serve the tail; trying again", leader=leader, error=error.message)
        await self._clock.sleep(_RETRY)
        if not request.follow:
            raise UnavailableError("there is no leader at the moment; try again", retry_after=1.0)

    async def _until_moved_on(self, tenant: str, task: str, uid: str, changed: asyncio.Event) -> None:
        """The leader said that the attempt has ended: wait until this replica's mirror shows it too."""
        while self._runs(tenant, task, uid):
            self._feed.check()
            await changed.wait()
            changed.clear()

    async def _from_hub(
        self, hub: LogHub, follow: bool, attempt: AttemptEnd, key: TaskKey, cursor: _Cursor, changed: asyncio.Event
    ) -> Stream:
        number, uid = attempt.number, attempt.uid
        with hub.listen(uid, changed):
            while True:
                changed.clear()
                if not self._runs(*key, uid) or hub.closed:
                    return
                log = hub.get(uid)
                ready = log if log is not None and log.phase is not Phase.LOADING else None
                frames = ready.read(cursor.offset, READ) if ready else None
                if frames is None:
                    frames = await self._stored(key[0], uid, cursor, ready.durable if ready else None)
                    if ready and not frames and cursor.offset < ready.base:
                        raise DataLossError(f"the log of attempt {number} is missing from byte {cursor.offset} on")
                durable = ready.durable if ready else durable_end(cursor.ranges or ())
                for frame in coalesce(frames, JOIN):
                    yield _response(number, frame, durable)
                    cursor.offset = frame.end
                    cursor.durable = durable
                if frames:
                    continue
                if not follow:
                    return
                if durable > cursor.durable:
                    cursor.durable = durable
                    yield TailLogsResponse(chunk=LogChunk(attempt=number, offset=cursor.offset), durable_offset=durable)
                    continue
                await changed.wait()

    async def _stored(self, tenant: str, uid: str, cursor: _Cursor, limit: int | None) -> list[Frame]:
        """Frames of one segment, from the cursor on and below `limit`; none when there is no such segment."""
        segment = covering(cursor.ranges or (), cursor.offset)
        if segment is None:
            cursor.ranges = await self._segments.ranges(tenant, uid)
            segment = covering(cursor.ranges, cursor.offset)
        if segment is None:
            return []
        end = segment.end if limit is None else min(limit, segment.end)
        frames = await self._segments.read(tenant, uid, segment)
        return [f.after(cursor.offset).until(end) for f in frames if f.end > cursor.offset and f.offset < end]


def _attempt_at(record: TaskRecord, cursor: _Cursor, request: TailLogsRequest) -> AttemptEnd | None:
    """The attempt to read now, None when it is not there (yet)."""
    for attempt in record.attempts:
        if attempt.number == cursor.attempt or (not request.attempt and attempt.number > cursor.attempt):
            return attempt
    return None


def _check_exists(record: TaskRecord, request: TailLogsRequest) -> None:
    if request.attempt and all(attempt.number != request.attempt for attempt in record.attempts):
        raise NotFoundError(f"{record.task} has no attempt {request.attempt}", reason="ATTEMPT_NOT_FOUND")


def _response(attempt: int, frame: Frame, durable: int) -> TailLogsResponse:
    chunk = LogChunk(attempt=attempt, offset=frame.offset, data=frame.data)
    chunk.stream = frame.stream  # type: ignore[assignment]
    chunk.time.FromMicroseconds(frame.time)
    return TailLogsResponse(chunk=chunk, durable_offset=durable)


def not_leader(leader: str) -> PreconditionError:
    """The refusal of a call that is for the leader alone, with its address."""
    where = f"the leader is {leader}" if leader else "there is none at the moment"
    error = PreconditionError(f"this replica does not lead; {where}", subject=leader, reason="NOT_LEADER")
    error.metadata["leader"] = leader
    return error
