"""Keeps a task record within 8 KiB whatever its task lived through, and loses the least telling facts first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from msgspec.structs import replace

from cloudclaw.coordination.records import (
    MAX_EVENTS,
    MAX_MESSAGE,
    MAX_TASK_BYTES,
    UNPACKED_ATTEMPTS,
    AttemptEnd,
    TaskRecord,
    Transition,
    encode,
)

SHORT: Final = 40
"""What is left of a message, in characters, when nothing else makes a record fit."""

T = TypeVar("T")


def cut(message: str, limit: int = MAX_MESSAGE) -> str:
    """`message` within `limit` characters, and marked when it was longer."""
    return message if len(message) <= limit else message[: limit - 1] + "…"


def appended(events: tuple[Transition, ...], event: Transition, limit: int = MAX_EVENTS) -> tuple[Transition, ...]:
    """`events` and `event`: at most `limit`, the first one (the submit) and the latest."""
    return _first_and_latest((*events, event), limit)


def room_for_result(task: TaskRecord) -> int:
    """Bytes that `result` may have so that the record still fits with all it says now and one more end."""
    reserve = 1536  # the end of the running attempt, its use, transition and messages, JSON escapes included
    return max(0, MAX_TASK_BYTES - len(encode(task)) - reserve)


def fit(task: TaskRecord) -> TaskRecord:
    """`task`, made small enough for etcd.

    Older attempts are packed first (by `encode`, without loss); then go, until it fits: their messages, the
    messages of older transitions, transitions from the middle, tokens and bases of older attempts, attempts from
    the middle, and at last the greater part of the messages that are left. Raises `ValueError` when all that is not
    enough (a result that should have been an object, or labels that submit should have refused).
    """
    if len(encode(task)) <= MAX_TASK_BYTES:
        return task
    for reduced in _reductions(task):
        if len(encode(reduced)) <= MAX_TASK_BYTES:
            return reduced
    raise ValueError(f"the record of {task.task} cannot be brought below {MAX_TASK_BYTES} bytes")


def _reductions(task: TaskRecord) -> Iterator[TaskRecord]:
    """Ever smaller versions of `task`, each a reduction of the one before."""
    task = _older(task, lambda attempt: replace(attempt, message=""))
    yield task
    last = len(task.events) - 1
    shortened = (
        replace(event, message=event.message if index in (0, last) else "") for index, event in enumerate(task.events)
    )
    task = replace(task, events=tuple(shortened))
    yield task
    for limit in (32, 16, 8):
        task = replace(task, events=_first_and_latest(task.events, limit))
        yield task
    task = _older(task, lambda attempt: replace(attempt, token=0, base=""))
    yield task
    for limit in (64, 32, 16, 8):
        task = replace(task, attempts=_first_and_latest(task.attempts, limit))
        yield task
    yield replace(
        task,
        checkpoint_failure=cut(task.checkpoint_failure, SHORT),
        events=tuple(replace(event, message=cut(event.message, SHORT)) for event in task.events),
        attempts=tuple(replace(attempt, message=cut(attempt.message, SHORT)) for attempt in task.attempts),
    )


def _older(task: TaskRecord, change: Callable[[AttemptEnd], AttemptEnd]) -> TaskRecord:
    old, kept = task.attempts[:-UNPACKED_ATTEMPTS], task.attempts[-UNPACKED_ATTEMPTS:]
    return replace(task, attempts=(*map(change, old), *kept))


def _first_and_latest(items: tuple[T, ...], limit: int) -> tuple[T, ...]:
    return items if len(items) <= limit else (items[0], *items[-(limit - 1) :])
