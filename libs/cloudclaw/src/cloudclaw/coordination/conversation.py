"""The life of a conversation beside that of any task (`life`): input, parking, and waking. Pure, and with the same
words: the record as it was read, `now`, a fresh `op_id`; a step that the state does not allow raises and changes
nothing.

An input has a number as soon as it is to be delivered. One that is sent with a delay gets it when it is due, so that
what is said meanwhile does not wait behind it.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from cloudclaw.coordination import life, steps
from cloudclaw.coordination.bounds import fit
from cloudclaw.coordination.records import (
    PAGE,
    AttemptState,
    EndReason,
    ModelUse,
    SnapshotPointer,
    TaskRecord,
    TaskState,
    Usage,
)
from cloudclaw.errors import PreconditionError, QuotaExceededError

MAX_INPUTS: Final = 1000
"""Of one task, delivered or not."""
MAX_WAITING: Final = 16 << 20
"""Bytes of inputs that are in no checkpoint yet: the node that runs the task keeps them in memory until its agent takes
them."""
KEPT: Final = 16
"""Attempts that stay in the record at least."""


def sent(
    task: TaskRecord, now: float, *, op_id: str, text: bool = True, size: int = 0, end: bool = False, due: float = 0.0
) -> TaskRecord:
    """A user's message is accepted: its number is `inputs`, unless it has a `due` time to come or no text.

    `size`: of the text in bytes. `end`: no further input is taken. A parked task enters the queue if this gives it
    something to do, and wakes earlier if the message is due earlier. `PreconditionError`, reason NOT_A_CONVERSATION,
    TASK_ENDED or CONVERSATION_CLOSED; `QuotaExceededError(reason="TOO_MANY_INPUTS")`.
    """
    if not task.plan.interactive:
        raise _refused(task, "NOT_A_CONVERSATION", "is no conversation: it was submitted without one")
    if task.state.ended or task.cancel_requested:
        raise _refused(task, "TASK_ENDED", f"has ended: {task.state}" if task.state.ended else "is being canceled")
    if task.closing:
        raise _refused(task, "CONVERSATION_CLOSED", "takes no more input: its conversation was closed")
    if task.inputs + task.later >= MAX_INPUTS and text:
        raise QuotaExceededError(
            f"{task.task} has had {MAX_INPUTS} inputs, and takes no more", subject=task.task, reason="TOO_MANY_INPUTS"
        )
    waiting = task.waiting + size
    if text and task.waiting and waiting > MAX_WAITING:
        raise QuotaExceededError(
            f"{task.task} has {task.waiting} bytes of input that it has not answered, and takes at most {MAX_WAITING}",
            subject=task.task,
            reason="TOO_MANY_INPUTS",
        )
    after = replace(task, closing=task.closing or end, waiting=waiting, updated=steps.ms(now), op_id=op_id)
    if text and due:
        due = steps.ms(due)
        first = min(task.later_due, due) if task.later else due
        after = replace(after, later=task.later + 1, later_due=first)
    elif text:
        after = replace(after, inputs=task.inputs + 1)
    return _woken(after, now, "woken by input", op_id)


def came_due(task: TaskRecord, now: float, count: int, next_due: float, *, op_id: str) -> TaskRecord:
    """`count` delayed inputs get the next numbers; `next_due`: when the first of the others is due, 0 without any. A
    parked task enters the queue."""
    if task.state.ended or not 0 < count <= task.later:
        raise _refused(task, "WRONG_STATE", f"has {task.later} inputs to come")
    after = replace(
        task,
        inputs=task.inputs + count,
        later=task.later - count,
        later_due=steps.ms(next_due) if task.later > count else 0.0,
        updated=steps.ms(now),
        op_id=op_id,
    )
    return _woken(after, now, "woken by an input that is due", op_id)


def idled(task: TaskRecord, now: float, *, op_id: str) -> TaskRecord:
    """A parked task whose user said nothing for too long enters the queue, to be closed."""
    if not task.parked or task.later:
        raise _refused(task, "WRONG_STATE", "is not idle")
    message = f"no input for {task.plan.idle_timeout:g} s"
    return _woken(replace(task, closing=True, updated=steps.ms(now), op_id=op_id), now, message, op_id)


def parked(
    task: TaskRecord,
    now: float,
    snapshot: SnapshotPointer,
    message: str = "",
    *,
    op_id: str,
    token: int = 0,
    log_end: int = 0,
    started: float = 0.0,
    session: str = "",
    inputs: int = 0,
    usage: Usage | None = None,
    model_use: ModelUse | None = None,
    result: str = "",
    result_object: str = "",
) -> TaskRecord:
    """The running attempt answered all that it was given, and gives its slot back; the task goes on from `snapshot`.

    It waits for input then: until `due`, when a delayed input is, or when it has idled too long. With an input that the
    snapshot does not contain, or when it is to be closed, it enters the queue at once.

    An attempt that parks is not counted, and neither are those before it: each answer is a new beginning. One that was
    to do something and brought nothing new is counted, so that none does so for ever: the task waits its backoff, and
    FAILED is the end of the last.

    Its oldest attempts leave the record when there are many (`earlier`): who writes it writes them.
    """
    steps.require(task, TaskState.RUNNING)
    if not task.plan.interactive:
        raise _refused(task, "NOT_A_CONVERSATION", "is no conversation, and cannot be parked")
    if task.cancel_requested:
        raise _refused(task, "WRONG_STATE", "is being canceled")
    reason = EndReason.PARKED
    after = steps.close(
        task, now, AttemptState.FAILED, reason, message, None, log_end, token, started, usage, model_use
    )
    done = steps.contained(task, inputs)
    after = replace(
        _without_earlier(after),
        checkpoint=snapshot,
        checkpoint_time=steps.ms(now),
        session=session or task.session,
        inputs_done=done,
        waiting=steps.still_waiting(task, done),
        answered=True,
        result=result,
        result_object=result_object,
    )
    if after.asks and done <= task.beyond:
        if steps.counted(task) >= task.plan.max_attempts:
            said = "it was parked again and again without an answer"
            return steps.ended(after, now, TaskState.FAILED, EndReason.INTERNAL, said, op_id)
        return steps.again(after, now, life.backoff(task.plan, steps.counted(task)), reason, message, op_id)
    after = replace(after, given_back=task.attempt)
    if not after.asks:
        due = task.later_due if task.later else now + task.plan.idle_timeout
        after = replace(after, parked_since=steps.ms(now), due=steps.ms(due))
    after = replace(after, queued=steps.ms(now))
    return steps.moved(after, now, TaskState.QUEUED, reason, message, op_id)


def _without_earlier(task: TaskRecord) -> TaskRecord:
    """`task` without its oldest attempts, when it has many: they get a key of their own."""
    if len(task.attempts) < KEPT + PAGE:
        return task
    old = task.attempts[:PAGE]
    log = task.earlier_log + sum(attempt.log_end for attempt in old)
    return replace(task, attempts=task.attempts[PAGE:], earlier=task.earlier + PAGE, earlier_log=log)


def _woken(task: TaskRecord, now: float, message: str, op_id: str) -> TaskRecord:
    """`task` as it is, but for a parked one: that enters the queue if there is something to do for it."""
    if not task.parked:
        return fit(task)
    if not task.asks:
        return fit(replace(task, due=task.later_due or task.due))
    awake = replace(task, parked_since=0.0, due=0.0, queued=steps.ms(now))
    return steps.moved(awake, now, TaskState.QUEUED, None, message, op_id)


def _refused(task: TaskRecord, reason: str, what: str) -> PreconditionError:
    return PreconditionError(f"{task.task} {what}", subject=task.task, reason=reason)
