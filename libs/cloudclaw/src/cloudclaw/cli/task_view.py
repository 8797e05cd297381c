"""Tasks in words: as a line of a table, and in full."""

from __future__ import annotations

import shlex
import time
from datetime import datetime
from typing import TYPE_CHECKING

from cloudclaw.cli.session import Session

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from cloudclaw.v1 import task_pb2

COLUMNS = ("TASK", "STATE", "RUNTIME", "POOL", "WORKSPACE", "ATTEMPTS", "NODE", "AGE")


def gateway_words(use: task_pb2.ModelUse) -> str:
    """What the gateway counted."""
    from cloudclaw.cli.text import counted

    words = [counted(use.requests, "request"), f"tokens {use.input_tokens:,} in, {use.output_tokens:,} out"]
    if use.cache_read_tokens:
        words[-1] += f", {use.cache_read_tokens:,} cached"
    return ", ".join(words + ([f"${use.spend_usd:.4f}"] if use.spend_usd else []))


def row(task: task_pb2.Task) -> tuple[object, ...]:
    """A task as a line of a table (`COLUMNS`)."""
    from cloudclaw.cli.text import age

    node = task.attempts[-1].node if task.attempts else ""
    return (
        task.task_id,
        state_of(task),
        task.runtime,
        task.pool,
        task.workspace.name or "-",
        len(task.attempts),
        node or "-",
        age(task.create_time, time.time()),
    )


def state_of(task: task_pb2.Task) -> str:
    """Its state in words, with what a queued task waits for; since when, if that is its user."""
    from cloudclaw.cli.text import age, word
    from cloudclaw.v1 import task_pb2

    if task.parked:
        return f"parked (input, {age(_parked_since(task), time.time())})"
    state = word(task_pb2.TaskState.Name(task.state), "TASK_STATE_")
    if task.state == task_pb2.TASK_STATE_QUEUED and task.wait_reason:
        return f"{state} ({word(task_pb2.WaitReason.Name(task.wait_reason), 'WAIT_REASON_')})"
    return state


def _parked_since(task: task_pb2.Task) -> Timestamp:
    """When it began to wait for its user, as far as its history is at hand."""
    from cloudclaw.v1 import task_pb2

    parked = [event.time for event in task.events if event.reason == task_pb2.END_REASON_PARKED]
    return parked[-1] if parked else task.update_time


def _waits(task: task_pb2.Task) -> str:
    """What a parked conversation waits for, and until when."""
    from cloudclaw.cli.text import age, until

    if not task.parked:
        return ""
    now = time.time()
    said = f"for input since {_clock(_parked_since(task))} ({age(_parked_since(task), now)} ago)"
    return said + (f"; wakes or ends by itself in {until(task.due_time, now)}" if task.HasField("due_time") else "")


def _clock(moment: Timestamp) -> str:
    """A time of day, with the date when it is not today's; local time."""
    at = datetime.fromtimestamp(moment.ToNanoseconds() / 1e9).astimezone()
    return at.strftime("%H:%M:%S" if at.date() == datetime.now().astimezone().date() else "%Y-%m-%d %H:%M")


def _inputs(task: task_pb2.Task) -> str:
    """How many messages a conversation was sent, and whether it is closed."""
    from cloudclaw.cli.text import counted

    if not task.inputs and not task.closing:
        return ""
    said = f"{counted(task.inputs, 'message')}, {task.inputs_done} answered and kept"
    return said + (", closing" if task.closing else "")


def show_task(session: Session, task: task_pb2.Task) -> None:
    from cloudclaw.cli.text import age, size, word
    from cloudclaw.v1 import task_pb2

    now = time.time()
    session.output.record(
        {
            "task": task.task_id,
            "tenant": task.tenant,
            "state": state_of(task) + (", cancel requested" if task.cancel_requested else ""),
            "waits": _waits(task),
            "runtime": task.runtime,
            "model": task.spec.model,
            "session": task.session_id or task.spec.session_id,
            "inputs": _inputs(task),
            "command": shlex.join(task.spec.argv),
            "pool": task.pool,
            "workspace": task.workspace.name,
            "labels": " ".join(f"{key}={value}" for key, value in sorted(task.labels.items())),
            "created": f"{age(task.create_time, now)} ago" + (", archived" if task.archived else ""),
            "checkpoint": _checkpoint(task, now),
        }
    )
    if task.attempts:
        session.output.line("")
        session.output.table(
            ("ATTEMPT", "STATE", "NODE", "REASON", "EXIT", "LOG", "MESSAGE"),
            [
                (
                    attempt.number,
                    _attempt_state(attempt) + (" (resumed)" if attempt.resumed else ""),
                    attempt.node,
                    word(task_pb2.EndReason.Name(attempt.reason), "END_REASON_") if attempt.reason else "-",
                    attempt.exit_code if attempt.HasField("exit_code") else "-",
                    size(attempt.log_end),
                    attempt.message,
                )
                for attempt in task.attempts
            ],
        )
    if task.events:
        session.output.line("")
        session.output.table(
            ("WHEN", "STATE", "ATTEMPT", "NODE", "MESSAGE"),
            [
                (
                    f"{age(event.time, now)} ago",
                    word(task_pb2.TaskState.Name(event.state), "TASK_STATE_"),
                    event.attempt or "-",
                    event.node or "-",
                    event.message,
                )
                for event in task.events
            ],
        )


def _attempt_state(attempt: task_pb2.Attempt) -> str:
    """Its state; one that gave its slot back to wait for its user has not failed."""
    from cloudclaw.cli.text import word
    from cloudclaw.v1 import task_pb2

    if attempt.reason == task_pb2.END_REASON_PARKED:
        return "parked"
    return word(task_pb2.AttemptState.Name(attempt.state), "ATTEMPT_STATE_")


def _checkpoint(task: task_pb2.Task, now: float) -> str:
    from cloudclaw.cli.text import age, size

    kept = task.checkpoint
    if not kept.snapshot_id:
        return ""
    return f"{kept.snapshot_id}, {age(task.checkpoint_time, now)} ago: {kept.files} files, {size(kept.bytes)}"
