"""What the steps of a task's life have in common: how an attempt closes, and how a task waits again or ends."""

from __future__ import annotations

from msgspec.structs import replace

from cloudclaw.coordination.bounds import appended, cut, fit
from cloudclaw.coordination.records import (
    AttemptState,
    EndReason,
    ModelUse,
    TaskRecord,
    TaskState,
    Transition,
    Usage,
)
from cloudclaw.coordination.usage import model_use_most, model_use_sum, usage_sum
from cloudclaw.errors import PreconditionError


def close(
    task: TaskRecord,
    now: float,
    state: AttemptState,
    reason: EndReason,
    message: str,
    exit_code: int | None,
    log_end: int,
    token: int,
    started: float,
    usage: Usage | None = None,
    model_use: ModelUse | None = None,
) -> TaskRecord:
    """The current attempt with its end. `usage`, `model_use`: of this attempt, as its holder told; None: what its last
    checkpoint said counts. No use of models that a checkpoint told of is taken back."""
    current = task.attempts[-1]
    end = replace(
        current,
        state=state,
        reason=reason,
        message=cut(message),
        exit_code=exit_code,
        log_end=log_end,
        token=token or current.token,
        started=ms(started) or current.started,
        ended=ms(now),
    )
    return replace(
        task,
        attempts=(*task.attempts[:-1], end),
        usage=usage_sum(task.usage, usage if usage is not None else task.usage_now),
        model_use=model_use_sum(task.model_use, model_use_most(model_use, task.model_use_now)),
        usage_now=None,
        model_use_now=None,
    )


def again(task: TaskRecord, now: float, pause: float, reason: EndReason, message: str, op_id: str) -> TaskRecord:
    """Waits `pause` seconds for its next attempt."""
    return moved(replace(task, due=ms(now + pause)), now, TaskState.QUEUED, reason, message, op_id)


def ended(
    task: TaskRecord,
    now: float,
    state: TaskState,
    reason: EndReason,
    message: str,
    op_id: str,
    result: str = "",
    result_object: str = "",
) -> TaskRecord:
    """`task` in its end. Without a result, what a conversation said last stays."""
    # A success leaves its files in the workspace; otherwise the checkpoint is all that the user gets of them.
    checkpoint = None if state is TaskState.SUCCEEDED else task.checkpoint
    if not result and not result_object:
        result, result_object = task.result, task.result_object
    after = replace(task, due=0.0, parked_since=0.0, result=result, result_object=result_object, checkpoint=checkpoint)
    return moved(after, now, state, reason, message, op_id)


def moved(
    task: TaskRecord, now: float, state: TaskState, reason: EndReason | None, message: str, op_id: str
) -> TaskRecord:
    """`task` in `state`, with the transition that says so."""
    now = ms(now)
    event = Transition(time=now, state=state, attempt=task.attempt, node=task.node, reason=reason, message=cut(message))
    running = state is TaskState.RUNNING
    after = replace(
        task,
        state=state,
        updated=now,
        op_id=op_id,
        uid=task.uid if running else "",
        node=task.node if running else "",
        events=appended(task.events, event),
    )
    return fit(after)


def contained(task: TaskRecord, inputs: int) -> int:
    """Inputs that a new checkpoint contains, which says it has all up to `inputs`: never fewer than the one before,
    and never more than there are."""
    return max(task.inputs_done, min(inputs, task.inputs))


def still_waiting(task: TaskRecord, done: int) -> int:
    """`waiting` of a task whose new checkpoint contains `done` inputs."""
    return task.waiting if done < task.inputs or task.later else 0


def require(task: TaskRecord, state: TaskState) -> None:
    if task.state is not state:
        raise PreconditionError(
            f"{task.task} is {task.state}, and this needs it {state}", subject=task.task, reason="WRONG_STATE"
        )


def counted(task: TaskRecord) -> int:
    """Attempts that count against `max_attempts`, the current one included (rule 9)."""
    return task.attempt - task.given_back


def ms(seconds: float) -> float:
    """To the millisecond: what a record keeps, and what the key of a delayed task says."""
    return round(seconds, 3)
