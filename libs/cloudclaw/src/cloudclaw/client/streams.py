"""Streams that survive a break: each goes on where it was."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from cloudclaw.client.retry import Patience
from cloudclaw.errors import OutOfRangeError, UnavailableError
from cloudclaw.v1 import scheduler_pb2, task_pb2

if TYPE_CHECKING:
    from cloudclaw.v1.scheduler_pb2_grpc import SchedulerServiceAsyncStub

ENDED: Final = frozenset((task_pb2.TASK_STATE_SUCCEEDED, task_pb2.TASK_STATE_FAILED, task_pb2.TASK_STATE_CANCELED))
"""States that a task does not leave."""


class Tail:
    """One tail of a task's log: every byte once and in order, through any number of breaks.

    The cursor is (attempt, offset); a break is resumed there, and what comes twice is dropped.
    """

    def __init__(
        self,
        stub: SchedulerServiceAsyncStub,
        patience: Patience,
        request: scheduler_pb2.TailLogsRequest,
    ):
        self._stub = stub
        self._patience = patience
        self._task_id = request.task_id
        self._follow = request.follow
        self._all_attempts = request.attempt == 0
        self._attempt = request.attempt
        self._offset = request.offset
        self._broken = False
        self._past = False
        """The cursor's attempt has been read to its end."""

    def run(self) -> AsyncGenerator[scheduler_pb2.TailLogsResponse, None]:
        """The tail's messages."""
        return self._patience.stream(self._open)

    async def _open(self) -> AsyncGenerator[scheduler_pb2.TailLogsResponse, None]:
        """From the cursor to the end."""
        if not (self._broken and self._all_attempts and self._attempt > 0):
            async with aclosing(self._read(self._attempt, self._offset)) as responses:
                async for response in responses:
                    yield response
            return
        # Attempt 0 asks for all attempts, and only from the first byte: after a break the rest of the attempt that
        # was being read comes first, then all of them again, of which `_advance` lets only the later ones through.
        if not self._past:
            try:
                async with aclosing(self._read(self._attempt, self._offset)) as responses:
                    async for response in responses:
                        yield response
            except OutOfRangeError:
                # What was read last was provisional and its node was lost: the attempt was sealed before it.
                pass
            self._past = True
        if not await self._is_last(self._attempt):
            async with aclosing(self._read(0, 0)) as responses:
                async for response in responses:
                    yield response

    async def _read(self, attempt: int, offset: int) -> AsyncGenerator[scheduler_pb2.TailLogsResponse, None]:
        request = scheduler_pb2.TailLogsRequest(
            task_id=self._task_id, attempt=attempt, offset=offset, follow=self._follow
        )
        call = self._stub.TailLogs(request)
        try:
            async for response in call:
                fresh = self._advance(response)
                if fresh is not None:
                    yield fresh
        except UnavailableError:
            self._broken = True
            raise
        finally:
            call.cancel()

    def _advance(self, response: scheduler_pb2.TailLogsResponse) -> scheduler_pb2.TailLogsResponse | None:
        """Move the cursor past a message, without what had been read before; None when nothing of it is new."""
        chunk = response.chunk
        if not chunk.data:
            return response
        if chunk.attempt < self._attempt or (chunk.attempt == self._attempt and self._past):
            return None
        if chunk.attempt == self._attempt and chunk.offset < self._offset:
            known = self._offset - chunk.offset
            if known >= len(chunk.data):
                return None
            chunk.data = chunk.data[known:]
            chunk.offset = self._offset
        self._attempt, self._past = chunk.attempt, False
        self._offset = chunk.offset + len(chunk.data)
        return response

    async def _is_last(self, attempt: int) -> bool:
        """Whether no attempt after this one is there, or, following, to come."""
        task = (await self._stub.GetTask(scheduler_pb2.GetTaskRequest(task_id=self._task_id))).task
        newer = any(known.number > attempt for known in task.attempts)
        return not newer and (task.state in ENDED or not self._follow)


class Watch:
    """One watch of the tenant's tasks: every change once, through any number of breaks."""

    def __init__(self, stub: SchedulerServiceAsyncStub, patience: Patience, request: scheduler_pb2.WatchTasksRequest):
        self._stub = stub
        self._patience = patience
        self._task_id = request.task_id
        self._revision = request.after_revision

    def run(self) -> AsyncGenerator[scheduler_pb2.WatchTasksResponse, None]:
        """The watch's messages."""
        return self._patience.stream(self._open)

    async def _open(self) -> AsyncGenerator[scheduler_pb2.WatchTasksResponse, None]:
        request = scheduler_pb2.WatchTasksRequest(after_revision=self._revision, task_id=self._task_id)
        call = self._stub.WatchTasks(request)
        try:
            async for response in call:
                self._revision = max(self._revision, response.revision)
                yield response
        finally:
            call.cancel()


class Events:
    """One task's structured events, each once and in order, through any number of breaks. Their numbers step back where
    a failure took events back that were shown before they were durable."""

    def __init__(self, stub: SchedulerServiceAsyncStub, patience: Patience, request: scheduler_pb2.WatchEventsRequest):
        self._stub = stub
        self._patience = patience
        self._task_id = request.task_id
        self._next = max(1, request.from_sequence)
        self._follow = request.follow

    def run(self) -> AsyncGenerator[scheduler_pb2.RunEvent, None]:
        """The events."""
        return self._patience.stream(self._open)

    async def _open(self) -> AsyncGenerator[scheduler_pb2.RunEvent, None]:
        request = scheduler_pb2.WatchEventsRequest(task_id=self._task_id, from_sequence=self._next, follow=self._follow)
        call = self._stub.WatchEvents(request)
        try:
            async for response in call:
                self._next = response.event.sequence + 1
                yield response.event
        finally:
            call.cancel()
