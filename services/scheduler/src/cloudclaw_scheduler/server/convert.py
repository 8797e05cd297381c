"""Between `cloudclaw.v1` and what the use cases speak."""

from __future__ import annotations

from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message as Proto
from google.protobuf.timestamp_pb2 import Timestamp

from cloudclaw.coordination.records import ModelLimits, TaskRecord, TaskState, Transition
from cloudclaw.coordination.transactions import Versioned
from cloudclaw.errors import InvalidArgumentError
from cloudclaw.ids import check_opaque_id
from cloudclaw.refs import ref_of
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_scheduler.app.queries import Filter, Waiting
from cloudclaw_scheduler.app.results import attempt_message, timestamp
from cloudclaw_scheduler.app.send_input import Message
from cloudclaw_scheduler.domain.spec import MAX_IDLE_SECONDS, MAX_PROMPT_BYTES, Draft

_MODES: Final = {number: name.removeprefix("WORKSPACE_MODE_") for name, number in task_pb2.WorkspaceMode.items()}
_REASONS: Final = {number: name.removeprefix("END_REASON_") for name, number in task_pb2.EndReason.items()}
_STATES: Final = {task_pb2.TaskState.Value(f"TASK_STATE_{state}"): state for state in TaskState}


def draft_of(spec: task_pb2.TaskSpec) -> Draft:
    """The spec as the domain checks it. `InvalidArgumentError` for a duration that is none."""
    timeouts, retry, limits = spec.timeouts, spec.retry, spec.model_limits
    mode = spec.workspace.mode
    return Draft(
        runtime=spec.runtime,
        argv=tuple(spec.argv),
        prompt=spec.prompt,
        env=dict(spec.env),
        workspace=spec.workspace.name,
        mode=(_MODES.get(mode, "?") if mode else ""),
        session_id=spec.session_id,
        cpu_millis=spec.resources.cpu_millis,
        memory_bytes=spec.resources.memory_bytes,
        queue_timeout=seconds(timeouts, "queue", "spec.timeouts.queue"),
        run_timeout=seconds(timeouts, "run", "spec.timeouts.run"),
        silence_timeout=seconds(timeouts, "silence", "spec.timeouts.silence"),
        max_attempts=retry.max_attempts,
        initial_backoff=seconds(retry, "initial_backoff", "spec.retry.initial_backoff"),
        backoff_multiplier=retry.backoff_multiplier,
        max_backoff=seconds(retry, "max_backoff", "spec.retry.max_backoff"),
        retry_on=tuple(_REASONS.get(r, "?") if r else "" for r in retry.retry_on),
        checkpoint_interval=seconds(spec, "checkpoint_interval", "spec.checkpoint_interval"),
        artifacts=tuple(spec.artifacts),
        priority=spec.priority,
        labels=dict(spec.labels),
        pool=spec.pool,
        model=spec.model,
        conversation=spec.HasField("conversation"),
        park_after=seconds(spec.conversation, "park_after", "spec.conversation.park_after"),
        idle_timeout=seconds(spec.conversation, "idle_timeout", "spec.conversation.idle_timeout"),
        limits=ModelLimits(
            requests=limits.requests, tokens=limits.tokens, spend_usd=limits.spend_usd, turns=limits.turns
        )
        if spec.HasField("model_limits")
        else None,
    )


def states_of(numbers: list[int]) -> frozenset[TaskState]:
    """States to filter by. `InvalidArgumentError` for a number that means nothing."""
    found = []
    for index, number in enumerate(numbers):
        if number not in _STATES:
            raise InvalidArgumentError("no such task state", field=f"states[{index}]")
        found.append(_STATES[number])
    return frozenset(found)


def filter_of(request: pb.ListTasksRequest) -> Filter:
    """Which tasks a list is of. `InvalidArgumentError` for a state or time that is none."""
    return Filter(
        states=states_of(list(request.states)),
        labels=dict(request.labels),
        workspace=request.workspace,
        created_after=max(0, _milliseconds(request, "create_after") or 0),
        created_before=_milliseconds(request, "create_before"),
    )


def message_of(request: pb.SendInputRequest) -> Message:
    """A user's message to a conversation. `InvalidArgumentError`."""
    message_id = check_opaque_id(request.message_id, "message_id")
    size = len(request.text.encode())
    if size > MAX_PROMPT_BYTES:
        raise InvalidArgumentError(f"must be at most {MAX_PROMPT_BYTES} bytes; got {size}", field="text")
    if not request.text and not request.end:
        raise InvalidArgumentError("is empty; a message without text only closes a conversation (`end`)", field="text")
    delay = seconds(request, "delay", "delay") or 0.0
    if not 0 <= delay <= MAX_IDLE_SECONDS:
        raise InvalidArgumentError(f"must be from 0 to {MAX_IDLE_SECONDS:.0f} s; got {delay} s", field="delay")
    if delay and not request.text:
        raise InvalidArgumentError("only a message with text can wait; an end without one is at once", field="delay")
    return Message(message_id, request.text, request.end, delay)


def task_message(
    task: Versioned[TaskRecord],
    waiting: Waiting,
    *,
    spec: task_pb2.TaskSpec | None = None,
    token: int = 0,
    archived: bool = False,
) -> task_pb2.Task:
    """The task as everyone sees it; without its spec in lists. `token`: of the running attempt."""
    record = task.record
    plan = record.plan
    running = record.state is TaskState.RUNNING
    last = len(record.attempts) - 1
    return task_pb2.Task(
        task_id=record.task,
        tenant=record.tenant,
        spec=spec,
        state=f"TASK_STATE_{record.state}",
        wait_reason=f"WAIT_REASON_{waiting.kind}" if waiting.kind else None,
        create_time=timestamp(record.created),
        update_time=timestamp(record.updated),
        cancel_requested=record.cancel_requested and not record.state.ended,
        attempts=[
            attempt_message(attempt, token=token if running and index == last else 0)
            for index, attempt in enumerate(record.attempts)
        ],
        events=[_event(event) for event in record.events],
        revision=task.mod_revision,
        runtime=plan.runtime,
        pool=plan.pool,
        workspace=task_pb2.WorkspaceSelection(name=plan.workspace, mode=f"WORKSPACE_MODE_{plan.mode}"),
        labels=plan.labels,
        due_time=timestamp(record.due),
        checkpoint=ref_of(record.checkpoint) if record.checkpoint else None,
        checkpoint_time=timestamp(record.checkpoint_time) if record.checkpoint else None,
        archived=archived,
        parked=record.parked,
        inputs=record.inputs + record.later,
        inputs_done=record.inputs_done,
        session_id=record.session,
        closing=record.closing and not record.state.ended,
    )


def _event(event: Transition) -> task_pb2.TaskEvent:
    return task_pb2.TaskEvent(
        time=timestamp(event.time),
        state=f"TASK_STATE_{event.state}",
        attempt=event.attempt,
        node=event.node,
        reason=f"END_REASON_{event.reason}" if event.reason else None,
        message=event.message,
    )


def seconds(message: Proto, name: str, field: str) -> float | None:
    """A duration's seconds, None when it is not set."""
    if not message.HasField(name):
        return None
    duration: Duration = getattr(message, name)
    if not -999_999_999 <= duration.nanos <= 999_999_999 or duration.seconds * duration.nanos < 0:
        raise InvalidArgumentError("is not a well-formed duration: nanos out of range or of another sign", field=field)
    return duration.seconds + duration.nanos / 1_000_000_000


def _milliseconds(message: Proto, name: str) -> int | None:
    """A time since the epoch, rounded up: creation times are whole milliseconds. None when it is not set."""
    if not message.HasField(name):
        return None
    time: Timestamp = getattr(message, name)
    if not 0 <= time.nanos <= 999_999_999 or not -62_135_596_800 <= time.seconds <= 253_402_300_799:
        raise InvalidArgumentError("is not a well-formed time: out of range", field=name)
    return time.seconds * 1000 - -time.nanos // 1_000_000
