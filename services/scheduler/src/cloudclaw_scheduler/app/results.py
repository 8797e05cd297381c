"""Results: what a task's end leaves for its user, beside what its record says already.

Stored is a `cloudclaw.v1.Result` with what only the report knew (final message, usage, files, timings), in the task's
record while that stays within its size, else as an object. The rest is put in from the record when it is read.
"""

from __future__ import annotations

import base64
from typing import Final

import structlog
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from msgspec.structs import replace

from cloudclaw.coordination.bounds import room_for_result
from cloudclaw.coordination.records import MAX_TASK_BYTES, AttemptEnd, AttemptState, TaskRecord, TaskState
from cloudclaw.errors import CloudClawError, DataLossError, NotFoundError, PreconditionError
from cloudclaw.ids import opaque_or_none
from cloudclaw.objects.port import ObjectStore
from cloudclaw.v1 import task_pb2
from cloudclaw.v1.scheduler_pb2 import AttemptOutcome
from cloudclaw_scheduler.app.use import model_use_message, usage_message
from cloudclaw_scheduler.domain.outcome import Commit

_log = structlog.get_logger()

WORDS_INLINE: Final = 1024
"""Bytes of a last answer that are kept in the record of a conversation that goes on."""


def timestamp(seconds: float) -> Timestamp | None:
    """Unix seconds as a message; None for 0."""
    if not seconds:
        return None
    stamp = Timestamp()
    stamp.FromMicroseconds(round(seconds * 1_000_000))
    return stamp


def attempt_message(end: AttemptEnd, *, token: int = 0) -> task_pb2.Attempt:
    """An attempt as the API shows it. `token` while it runs, when the record does not have it yet."""
    return task_pb2.Attempt(
        number=end.number,
        uid=end.uid,
        state=f"ATTEMPT_STATE_{end.state}",
        node=end.node,
        token=end.token or token,
        reason=f"END_REASON_{end.reason}" if end.reason else None,
        message=end.message,
        exit_code=end.exit_code,
        start_time=timestamp(end.started),
        end_time=timestamp(end.ended),
        log_end=end.log_end,
        base_snapshot_id=end.base,
        resumed=end.resumed,
    )


def reported_part(outcome: AttemptOutcome, commit: Commit, queued: float) -> task_pb2.Result:
    """The part of a result that only the report knows."""
    kept = commit.snapshot is not None
    return task_pb2.Result(
        final_message=outcome.final_message,
        session_id=opaque_or_none(outcome.session_id),
        changed_files=outcome.changed_files if kept else None,
        changed_files_truncated=outcome.changed_files_truncated and kept,
        artifacts=outcome.artifacts,
        artifacts_truncated=outcome.artifacts_truncated,
        snapshot_id=commit.snapshot.id if commit.snapshot else "",
        timings=task_pb2.Timings(
            queued=timestamp(queued),
            prepared=outcome.prepared if outcome.HasField("prepared") else None,
            started=outcome.started if outcome.HasField("started") else None,
            ended=outcome.ended if outcome.HasField("ended") else None,
        ),
    )


class Results:
    """Stores and reads results."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    async def place(
        self, record: TaskRecord, uid: str, result: task_pb2.Result, most: int = MAX_TASK_BYTES
    ) -> tuple[str, str]:
        """(inline, object) as the record keeps them; an object is stored by this call. `most`: bytes inline."""
        data = result.SerializeToString()
        # What the record has now of a parked attempt's answer makes room for it.
        if (len(data) + 2) // 3 * 4 <= min(most, room_for_result(replace(record, result=""))):
            return base64.b64encode(data).decode(), ""
        name = f"results/{record.tenant}/{record.task}/{uid}"
        await self._objects.put(name, data)
        return "", name

    async def keep_words(self, record: TaskRecord, said: str, name: str, session: str = "") -> tuple[str, str]:
        """What a conversation said last, placed beside all that its record is still to hold. `name`: of this answer
        alone, among those of its task."""
        part = task_pb2.Result(final_message=said, session_id=session)
        return await self.place(record, name, part, most=WORDS_INLINE)

    async def read(self, record: TaskRecord) -> task_pb2.Result:
        """The whole result. `PreconditionError(reason="TASK_NOT_ENDED")`, `DataLossError`, `UnavailableError`."""
        if not record.state.ended:
            now = "it is parked, and waits for its user" if record.parked else f"it is {record.state}"
            raise PreconditionError(
                f"{record.task} has not ended yet; {now}", subject=record.task, reason="TASK_NOT_ENDED"
            )
        result = await self._stored(record)
        _fill(result, record)
        return result

    async def last_words(self, record: TaskRecord) -> str:
        """What the conversation said last, as its record keeps it; "" when that is nothing, or lost."""
        try:
            return (await self._stored(record)).final_message
        except DataLossError as error:
            _log.warning("the last answer of a conversation is lost", task=record.task, error=error.message)
            return ""

    async def forget(self, record: TaskRecord) -> None:
        """Another answer took the place of the one that an object of `record` holds."""
        try:
            await self._objects.delete(record.result_object)
        except CloudClawError as error:
            _log.info("an answer of before stays", name=record.result_object, error=error.message)

    async def _stored(self, record: TaskRecord) -> task_pb2.Result:
        try:
            if record.result_object:
                return task_pb2.Result.FromString(await self._objects.get(record.result_object))
            return task_pb2.Result.FromString(base64.b64decode(record.result))
        except NotFoundError as error:
            raise DataLossError(f"the result of {record.task} is missing: {record.result_object}") from error
        except (DecodeError, ValueError) as error:
            raise DataLossError(f"the result of {record.task} cannot be read: {error}") from error


def _fill(result: task_pb2.Result, record: TaskRecord) -> None:
    """Put in what the record says."""
    event = record.events[-1] if record.events else None
    last = record.attempts[-1] if record.attempts else None
    result.task_id = record.task
    result.MergeFrom(task_pb2.Result(state=f"TASK_STATE_{record.state}"))
    if event and event.reason:
        result.MergeFrom(task_pb2.Result(reason=f"END_REASON_{event.reason}"))
    result.message = (event.message if event else "") or (last.message if last else "")
    if last and last.exit_code is not None and last.state not in (AttemptState.LOST, AttemptState.CANCELED):
        result.exit_code = last.exit_code
    result.attempts.extend(attempt_message(attempt) for attempt in record.attempts)
    if record.state is not TaskState.SUCCEEDED and record.checkpoint is not None and record.plan.workspace:
        # Nothing was committed, and these files are all that the user gets; without a workspace none could be read.
        result.snapshot_id = record.checkpoint.id
    if record.usage is not None:
        result.usage.CopyFrom(usage_message(record.usage) or task_pb2.Usage())
    if record.model_use is not None:
        result.model_use.CopyFrom(model_use_message(record.model_use) or task_pb2.ModelUse())
    result.session_id = result.session_id or record.session
    timings = result.timings
    if not timings.HasField("queued"):
        timings.queued.CopyFrom(timestamp(record.queued) or Timestamp())
    if last is not None and last.started >= record.queued:
        # What no report said is known from the last attempt, unless the task was queued again after it.
        if not timings.HasField("started") and (started := timestamp(last.started)):
            timings.started.CopyFrom(started)
        if not timings.HasField("ended") and (ended := timestamp(last.ended)):
            timings.ended.CopyFrom(ended)
    if committed := timestamp(record.updated):
        timings.committed.CopyFrom(committed)
