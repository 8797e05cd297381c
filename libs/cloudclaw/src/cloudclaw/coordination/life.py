"""The life of a task: what its record says after each step. Pure; `transactions` makes the steps durable.

Every function takes the record as it was read, the writer's wall clock `now` (seconds) and a fresh `op_id`, and
answers the record to write. Records stay within 8 KiB (`bounds.fit`). A step that the state does not allow raises
`PreconditionError(reason="WRONG_STATE")`; nothing is written then.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec.structs import replace

from cloudclaw.coordination import steps
from cloudclaw.coordination.bounds import appended, cut, fit
from cloudclaw.coordination.records import (
    AttemptEnd,
    AttemptState,
    EndReason,
    ModelUse,
    Plan,
    SnapshotPointer,
    TaskRecord,
    TaskState,
    Transition,
    Usage,
)
from cloudclaw.errors import InvalidArgumentError, PreconditionError

MAX_PLAN_BYTES: Final = 2 * 1024
"""What a plan (labels, in the first place) may take of a record, so that a hundred attempts still find room."""

LOSSES_WITHOUT_PAUSE: Final = 2
"""So many attempts lost in a row are tried again at once; further ones wait their backoff."""

ALWAYS_RETRYABLE: Final = frozenset({EndReason.NODE_LOST, EndReason.SLOT_FAILED})
RETRYABLE_BY_DEFAULT: Final = frozenset({EndReason.INTERNAL})
"""Beyond `ALWAYS_RETRYABLE`, when the plan names no reasons (`RetryPolicy.retry_on`)."""


def queued(
    *, tenant: str, task: str, plan: Plan, now: float, op_id: str, spec_object: str = "", request: str = ""
) -> TaskRecord:
    """A task as submitted, by the client's request id `request`.

    `InvalidArgumentError` when its labels are too much for a record.
    """
    if len(msgspec.json.encode(plan)) > MAX_PLAN_BYTES:
        raise InvalidArgumentError("labels take more than about 1.5 KiB in all", field="spec.labels")
    now = steps.ms(now)
    return TaskRecord(
        tenant=tenant,
        task=task,
        plan=plan,
        created=now,
        updated=now,
        queued=now,
        op_id=op_id,
        spec_object=spec_object,
        request=request,
        events=(Transition(time=now, state=TaskState.QUEUED),),
    )


def claimed(task: TaskRecord, node: str, uid: str, base: SnapshotPointer | None, now: float, op_id: str) -> TaskRecord:
    """The next attempt, on `node`. `base` is the workspace's head now (None: empty, or no workspace).

    A task that holds its workspace's writer, or goes on from a checkpoint, keeps the base it has instead: nobody else
    can have moved the head, so another `base` is an old one; and a checkpoint's changes are told against what it was
    made of. The attempt starts from the checkpoint when there is one, else from the base. Requests for a checkpoint
    that the attempt before it left open are answered now, as failed: nobody waits for them any more.
    """
    steps.require(task, TaskState.QUEUED)
    if task.due:
        raise PreconditionError(f"{task.task} waits its backoff", subject=task.task, reason="WRONG_STATE")
    number = task.attempt + 1
    if task.checkpoint is not None or (task.plan.writes and task.attempt > 0):
        base = task.base
    start = task.checkpoint or base
    now = steps.ms(now)
    attempt = AttemptEnd(
        number=number,
        uid=uid,
        node=node,
        started=now,
        base=start.id if start else "",
        resumed=task.checkpoint is not None,
    )
    stale = task.checkpoint_served < task.checkpoint_wanted
    after = replace(
        task,
        state=TaskState.RUNNING,
        updated=now,
        op_id=op_id,
        due=0.0,
        attempt=number,
        uid=uid,
        node=node,
        base=base,
        beyond=task.inputs_done if task.asks and task.checkpoint is not None else -1,
        attempts=(*task.attempts, attempt),
        checkpoint_served=task.checkpoint_wanted,
        checkpoint_failure="the attempt ended before it was taken" if stale else task.checkpoint_failure,
        events=appended(task.events, Transition(time=now, state=TaskState.RUNNING, attempt=number, node=node)),
    )
    return fit(after)


def unclaimed(task: TaskRecord, now: float, *, op_id: str, message: str = "") -> TaskRecord:
    """The attempt never started: given back, not counted (rule 9). CANCELED when that was asked for meanwhile.

    A first attempt that took a checkpoint has started, whoever says otherwise: with its writer given back, the
    checkpoint would be of a workspace that others may have written since. `PreconditionError(reason="WRONG_STATE")`.
    """
    steps.require(task, TaskState.RUNNING)
    if task.attempt == 1 and task.checkpoint is not None:
        raise PreconditionError(
            f"{task.task} has a checkpoint, so it has begun", subject=task.task, reason="WRONG_STATE"
        )
    after = replace(
        task,
        attempt=task.attempt - 1,
        attempts=task.attempts[:-1],
        base=task.base if task.attempt > 1 else None,
    )
    if task.cancel_requested:
        return steps.ended(after, now, TaskState.CANCELED, EndReason.CANCELED, message, op_id)
    return steps.moved(after, now, TaskState.QUEUED, None, message, op_id)


def checkpointed(
    task: TaskRecord,
    now: float,
    checkpoint: SnapshotPointer,
    *,
    op_id: str,
    request: int = 0,
    frozen: float = 0.0,
    session: str = "",
    inputs: int = 0,
    answered: bool = False,
    usage: Usage | None = None,
    model_use: ModelUse | None = None,
    result: str = "",
    result_object: str = "",
) -> TaskRecord:
    """The next attempt will start from `checkpoint`.

    Args:
        request: the number of the request that it answers, 0 for none.
        frozen: seconds that the processes stood still.
        session: the agent's session, if the checkpoint contains it. It was made of the one before, so that a session
            which that one contains is in this one too.
        inputs: inputs that it contains: all up to this number.
        answered: the agent had answered all of them.
        usage, model_use: of the running attempt up to here.
        result, result_object: what a conversation said last, in the place of what it said before; neither: as it was.
    """
    steps.require(task, TaskState.RUNNING)
    now, done = steps.ms(now), steps.contained(task, inputs)
    if not result and not result_object:
        result, result_object = task.result, task.result_object
    after = replace(
        task,
        checkpoint=checkpoint,
        checkpoint_time=now,
        checkpoint_served=_served(task, request),
        checkpoint_failure="",
        frozen=round(frozen, 6),
        session=session or task.session,
        inputs_done=done,
        waiting=steps.still_waiting(task, done),
        answered=answered,
        usage_now=usage if usage is not None else task.usage_now,
        model_use_now=model_use if model_use is not None else task.model_use_now,
        result=result,
        result_object=result_object,
        updated=now,
        op_id=op_id,
    )
    return fit(after)


def checkpoint_refused(task: TaskRecord, now: float, failure: str, *, op_id: str, request: int) -> TaskRecord:
    """The checkpoint of `request` came to nothing; the attempt goes on. One answered before is left as it was."""
    steps.require(task, TaskState.RUNNING)
    served = _served(task, request)
    if served == task.checkpoint_served:
        return task
    failure = cut(failure) or "the node did not say why"
    return fit(
        replace(task, checkpoint_served=served, checkpoint_failure=failure, updated=steps.ms(now), op_id=op_id),
    )


def checkpoint_wanted(task: TaskRecord, now: float, *, op_id: str) -> TaskRecord:
    """Somebody asks for a checkpoint of the running attempt; the request's number is `checkpoint_wanted`."""
    steps.require(task, TaskState.RUNNING)
    return fit(replace(task, checkpoint_wanted=task.checkpoint_wanted + 1, updated=steps.ms(now), op_id=op_id))


def reported(
    task: TaskRecord,
    now: float,
    state: AttemptState,
    reason: EndReason,
    message: str = "",
    *,
    op_id: str,
    exit_code: int | None = None,
    log_end: int = 0,
    retryable: bool = False,
    token: int = 0,
    started: float = 0.0,
    result: str = "",
    result_object: str = "",
    session: str = "",
    usage: Usage | None = None,
    model_use: ModelUse | None = None,
) -> TaskRecord:
    """What the holder's report of the attempt's end makes of the task.

    CANCELED whatever the report says, once that was requested (rule 7). A failure is tried again while attempts are
    left, when the report says so (`retryable`), its reason always allows it, or the plan names it; then `due` is
    set. DRAINED is no fault of the task's: the attempt is given back, and the task goes on, at once from its
    checkpoint, or after a pause from the start when it has none. `result` and `result_object` are kept only by a task
    that ends. `started`: when the sandbox was handed over. `session`: the agent's; it is kept by a task that ends.
    `usage`, `model_use`: of this attempt. PARKED is `conversation.parked`'s, and no end.
    """
    steps.require(task, TaskState.RUNNING)
    if state is AttemptState.LOST:
        return lost(task, now, reason, message, log_end, op_id=op_id, token=token)
    if state is AttemptState.RUNNING:
        raise PreconditionError("an attempt that still runs has no end to report", reason="WRONG_STATE")
    if state is AttemptState.CANCELED and not task.cancel_requested:
        # Nobody asked for it, so the holder is at fault, not the task.
        state, reason, retryable = AttemptState.FAILED, EndReason.INTERNAL, True
        message = message or "canceled by its node without a request"
    if task.cancel_requested:
        state, reason = AttemptState.CANCELED, EndReason.CANCELED
    if reason is EndReason.PARKED:
        raise PreconditionError("a task does not end by being parked", subject=task.task, reason="WRONG_STATE")
    after = steps.close(task, now, state, reason, message, exit_code, log_end, token, started, usage, model_use)
    ended = replace(after, session=session or task.session)
    if state is not AttemptState.FAILED:
        done = TaskState.SUCCEEDED if state is AttemptState.SUCCEEDED else TaskState.CANCELED
        return steps.ended(ended, now, done, reason, message, op_id, result, result_object)
    if reason is EndReason.DRAINED:
        after = replace(after, given_back=task.given_back + 1)
        pause = 0.0 if task.checkpoint is not None else backoff(task.plan, steps.counted(task))
        return steps.again(after, now, pause, reason, message, op_id)
    if steps.counted(task) < task.plan.max_attempts and (retryable or _retryable(task.plan, reason)):
        return steps.again(after, now, backoff(task.plan, steps.counted(task)), reason, message, op_id)
    return steps.ended(ended, now, TaskState.FAILED, reason, message, op_id, result, result_object)


def lost(
    task: TaskRecord,
    now: float,
    reason: EndReason = EndReason.NODE_LOST,
    message: str = "",
    log_end: int = 0,
    *,
    op_id: str,
    token: int = 0,
) -> TaskRecord:
    """The holder vanished. Tried again (`due` is set) while attempts are left; CANCELED when that was requested.

    The first two losses in a row wait for nothing; a task that goes on losing its nodes waits its backoff.
    """
    steps.require(task, TaskState.RUNNING)
    after = steps.close(task, now, AttemptState.LOST, reason, message, None, log_end, token, 0.0)
    if task.cancel_requested:
        return steps.ended(after, now, TaskState.CANCELED, EndReason.CANCELED, message, op_id)
    if steps.counted(task) >= task.plan.max_attempts:
        return steps.ended(after, now, TaskState.FAILED, reason, message, op_id)
    beyond = _losses(after) - LOSSES_WITHOUT_PAUSE
    return steps.again(after, now, backoff(task.plan, beyond) if beyond > 0 else 0.0, reason, message, op_id)


def cancel_requested(task: TaskRecord, now: float, *, op_id: str, message: str = "") -> TaskRecord:
    """A RUNNING task that is to end CANCELED. One that was asked already is answered as it is."""
    steps.require(task, TaskState.RUNNING)
    if task.cancel_requested:
        return task
    return steps.moved(
        replace(task, cancel_requested=True), now, TaskState.RUNNING, None, message or "cancel requested", op_id
    )


def canceled(task: TaskRecord, now: float, *, op_id: str, message: str = "") -> TaskRecord:
    """A QUEUED task (delayed or not) that its user canceled."""
    steps.require(task, TaskState.QUEUED)
    message = message or "canceled by its user"
    return steps.ended(task, now, TaskState.CANCELED, EndReason.CANCELED, message, op_id)


def failed(task: TaskRecord, now: float, reason: EndReason, message: str = "", *, op_id: str) -> TaskRecord:
    """A QUEUED task that cannot go on: QUEUE_TIMEOUT, WORKSPACE_GONE and the like."""
    steps.require(task, TaskState.QUEUED)
    return steps.ended(task, now, TaskState.FAILED, reason, message, op_id)


def became_due(task: TaskRecord, now: float, *, op_id: str) -> TaskRecord:
    """A delayed task enters the queue."""
    steps.require(task, TaskState.QUEUED)
    if not task.due or task.parked:
        raise PreconditionError(f"{task.task} does not wait its backoff", subject=task.task, reason="WRONG_STATE")
    now = steps.ms(now)
    return replace(task, due=0.0, queued=now, updated=now, op_id=op_id)


def backoff(plan: Plan, failures: int) -> float:
    """Seconds to wait after the `failures`-th failure (from 1): initial × multiplier^(n − 1), capped."""
    try:
        pause = plan.initial_backoff * plan.backoff_multiplier ** (failures - 1)
    except OverflowError:
        return plan.max_backoff
    return min(pause, plan.max_backoff)


def _retryable(plan: Plan, reason: EndReason) -> bool:
    return reason in ALWAYS_RETRYABLE or reason in (plan.retry_on or RETRYABLE_BY_DEFAULT)


def _served(task: TaskRecord, request: int) -> int:
    """The latest request that is answered now that `request` is; a node can answer none that nobody made."""
    return max(task.checkpoint_served, min(request, task.checkpoint_wanted))


def _losses(task: TaskRecord) -> int:
    """Attempts lost in a row, up to the latest."""
    count = 0
    for attempt in reversed(task.attempts):
        if attempt.state is not AttemptState.LOST:
            break
        count += 1
    return count
