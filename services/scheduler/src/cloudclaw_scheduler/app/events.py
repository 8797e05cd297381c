"""`WatchEvents`: a task's log as structured events, attempt by attempt.

Nothing is stored: the log is the record, and the same bytes give the same events under the same numbers, on any replica
and after any restart. What is not durable yet is shown all the same; when a failure takes it back, so are the events
that it gave, and the numbers go on where the log does.

One watch holds one parser and one chunk, whatever its task writes; it reads at its reader's pace.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from cloudclaw.agents.events import AnyEvent, Note
from cloudclaw.agents.pacing import Pace, Turn, pieces
from cloudclaw.agents.parser import PlainParser, StreamParser
from cloudclaw.agents.registry import parser_for
from cloudclaw.clock import Clock
from cloudclaw.coordination.records import AttemptEnd, AttemptState, TaskRecord
from cloudclaw.errors import UnavailableError
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1.task_pb2 import LogChunk
from cloudclaw_scheduler.app.held import Held, Line
from cloudclaw_scheduler.app.lookup import Lookup
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.run_events import attempt_event, event_message
from cloudclaw_scheduler.app.tail import Tails

_log = structlog.get_logger()

COUNTED: Final = 8192
"""Ended attempts whose number of events is remembered, so that a watch from far on need not read them again."""

Stream = AsyncGenerator[pb.RunEvent, None]


class _Run:
    """One attempt's log on its way through a parser. `before`: events of the attempts before it."""

    def __init__(self, runtime: str, attempt: int, before: int) -> None:
        self.attempt = attempt
        self.before = before
        self.count = 0
        self.fed = 0
        self.time = Timestamp()
        self._runtime = runtime
        self._parser: StreamParser = parser_for(runtime)

    async def feed(self, chunk: LogChunk, turn: Turn) -> AsyncGenerator[pb.RunEvent, None]:
        """The events that `chunk` completes."""
        self.fed = chunk.offset + len(chunk.data)
        self.time = chunk.time
        for piece in pieces(chunk.data):
            for event in await self._parse(chunk.stream, piece, turn):
                yield event

    async def close(self, turn: Turn) -> list[pb.RunEvent]:
        """The events of what was incomplete."""
        return await self._parse(None, b"", turn)

    async def _parse(self, stream: int | None, data: bytes, turn: Turn) -> list[pb.RunEvent]:
        return await turn.work(lambda: [self._numbered(event) for event in self._guarded(stream, data)])

    def _numbered(self, event: AnyEvent) -> pb.RunEvent:
        self.count += 1
        message = event_message(event, self.attempt, self.time)
        message.sequence = self.before + self.count
        return message

    def _guarded(self, stream: int | None, data: bytes) -> list[AnyEvent]:
        try:
            return self._parser.close() if stream is None else self._parser.feed(stream, data)
        except Exception as error:  # noqa: BLE001 - a third party's parser, which the same bytes break everywhere
            _log.error("a parser of transcripts failed", runtime=self._runtime, error=repr(error))
            self._parser = PlainParser()
            return [Note("note", f"the parser of {self._runtime} failed; the log has the rest")]


class Events:
    """Serves `WatchEvents`."""

    def __init__(self, mirror: Mirror, lookup: Lookup, tails: Tails, clock: Clock) -> None:
        self._mirror = mirror
        self._lookup = lookup
        self._tails = tails
        self._counts: OrderedDict[str, int] = OrderedDict()
        self._pace = Pace(clock)
        self._held = Held()

    async def watch(self, tenant: str, task: str, first: int, authorization: str, *, follow: bool) -> Stream:
        """The task's events from the number `first` on. Raises what a tail of its log does, and as `Held.change`."""
        record = await self._lookup.whole(await self._lookup.task(tenant, task))
        start, before = self._skipped(record, first)
        request = pb.TailLogsRequest(task_id=task, follow=follow)
        tail = self._tails.tail(tenant, request, authorization, relayed=False, start=start)
        run: _Run | None = None
        turn = self._pace.turn(tenant)  # who watches much, or skips it, must not hold up others
        with self._held.line(tenant) as line:
            async with aclosing(tail):
                async for response in tail:
                    chunk = response.chunk
                    if run is None or chunk.attempt != run.attempt:
                        run = _Run(record.plan.runtime, chunk.attempt, before)
                        line.drop()
                    if chunk.data:
                        line.take(chunk)
                        async for event in run.feed(chunk, turn):
                            if event.sequence >= first:
                                yield event
                        await asyncio.sleep(0)
                    if not response.attempt_ended:
                        continue
                    if chunk.offset < run.fed:
                        # Its last bytes were lost with its node, and the events that they gave are taken back.
                        line.drop()
                        run = await self._again(tenant, task, record.plan.runtime, run, authorization, turn, line)
                    for event in await run.close(turn):
                        if event.sequence >= first:
                            yield event
                    end = await self._end(tenant, task, chunk.attempt)
                    before = run.before + run.count + 1
                    self._remember(end.uid, run.count + 1)
                    if before >= first:
                        message = attempt_event(end)
                        message.sequence = before
                        yield message
                    run = None

    async def _again(
        self, tenant: str, task: str, runtime: str, old: _Run, authorization: str, turn: Turn, line: Line
    ) -> _Run:
        """The same attempt, of which less was kept than was read: read anew to its end."""
        run = _Run(runtime, old.attempt, old.before)
        request = pb.TailLogsRequest(task_id=task, attempt=old.attempt)
        async with aclosing(self._tails.tail(tenant, request, authorization, relayed=False)) as tail:
            async for response in tail:
                if response.chunk.data:
                    line.take(response.chunk)
                    async for _ in run.feed(response.chunk, turn):
                        pass
        return run

    def _skipped(self, record: TaskRecord, first: int) -> tuple[int, int]:
        """The attempt with which a watch from the number `first` begins, and the events before it."""
        before = 0
        for attempt in record.attempts:
            count = self._counts.get(attempt.uid)
            if attempt.state is AttemptState.RUNNING or count is None or before + count >= first:
                return attempt.number, before
            before += count
        return record.attempt + 1, before

    def _remember(self, uid: str, count: int) -> None:
        self._counts[uid] = count
        self._counts.move_to_end(uid)
        if len(self._counts) > COUNTED:
            self._counts.popitem(last=False)

    async def _end(self, tenant: str, task: str, number: int) -> AttemptEnd:
        """How an attempt ended that a tail read to its end."""
        shown = self._mirror.state.task(tenant, task)
        record = shown.record if shown else (await self._lookup.task(tenant, task)).task.record
        record = self._mirror.state.whole(record)
        for attempt in record.attempts:
            if attempt.number == number:
                return attempt
        raise UnavailableError(f"attempt {number} of {task} is not to be found now; try again", retry_after=0.5)
