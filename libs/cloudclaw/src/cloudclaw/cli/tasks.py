"""`claw get`, `ls`, `cancel`, `checkpoint`, `result`, `explain` and `watch`."""

from __future__ import annotations

import time
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cloudclaw.cli.command import command
from cloudclaw.cli.follow import hint_for
from cloudclaw.cli.runs import usage_words
from cloudclaw.cli.session import STREAM, Session
from cloudclaw.cli.task_view import COLUMNS, gateway_words, row, show_task, state_of

if TYPE_CHECKING:
    from cloudclaw.v1 import task_pb2

_PAGE = 100


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for name, function in (
        ("get", get),
        ("ls", ls),
        ("cancel", cancel),
        ("checkpoint", checkpoint),
        ("result", result),
        ("explain", explain),
        ("watch", watch),
    ):
        command(app, name)(function)


async def get(session: Session, task: Annotated[str, typer.Argument(help="Task.")]) -> None:
    """Show one task: its state, attempts and history."""
    found = await session.client().get(task)
    if session.output.json:
        session.output.message(found)
    else:
        show_task(session, found)


async def ls(
    session: Session,
    state: Annotated[list[str] | None, typer.Option(help="Only this state; repeatable.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Only with this label, K=V; repeatable.")] = None,
    workspace: Annotated[str, typer.Option(help="Only of this workspace.")] = "",
    since: Annotated[
        str, typer.Option(help="Only created since: how long ago (2h), or a time (2026-01-31T12:00+01:00).")
    ] = "",
    until: Annotated[str, typer.Option(help="Only created before: as --since.")] = "",
    limit: Annotated[
        int | None, typer.Option(help="At most so many; 0: all. Default: 100, with JSON all.", min=0)
    ] = None,
) -> None:
    """List tasks, newest first."""
    from cloudclaw.cli.text import pairs

    if limit is None:
        limit = 0 if session.output.json else _PAGE
    rows = []
    shown = 0
    tasks = session.client().list(
        states=[_state(name) for name in state or []],
        labels=pairs(label, "--label"),
        workspace=workspace,
        create_after=_moment(since, "--since"),
        create_before=_moment(until, "--until"),
        page_size=min(limit, 1000) if limit else 1000,
    )
    async with aclosing(tasks):
        async for task in tasks:
            if limit and shown == limit:
                session.output.remark(f"there are more; --limit 0 lists all, --limit {limit * 10} the next")
                break
            shown += 1
            if session.output.json:
                session.output.message(task)
            else:
                rows.append(row(task))
    if not session.output.json:
        session.output.table(COLUMNS, rows, empty="no tasks; `claw submit -- echo hello` makes one")


async def cancel(session: Session, task: Annotated[str, typer.Argument(help="Task.")]) -> None:
    """Ask for a task's end."""
    found = await session.client().cancel(task)
    if session.output.json:
        session.output.message(found)
    else:
        session.output.line(f"{found.task_id} {'canceling' if found.cancel_requested else state_of(found)}")


async def checkpoint(session: Session, task: Annotated[str, typer.Argument(help="Task.")]) -> None:
    """Take a checkpoint of a running task now; its next attempt would go on from it."""
    from cloudclaw.cli.text import counted, size, span

    found = await session.client().checkpoint(task)
    if session.output.json:
        session.output.message(found)
        return
    kept = found.checkpoint
    frozen = span(found.frozen.ToMicroseconds() / 1e6)
    what = f"{counted(kept.files, 'file')}, {size(kept.bytes)}"
    session.output.line(f"{kept.snapshot_id}: {what}; stood still for {frozen}")


async def result(session: Session, task: Annotated[str, typer.Argument(help="Task.")]) -> None:
    """Show how a task ended."""
    from cloudclaw.cli.text import size, word
    from cloudclaw.v1 import task_pb2

    found = await session.client().result(task)
    if session.output.json:
        session.output.message(found)
        return
    times = found.timings
    session.output.record(
        {
            "task": found.task_id,
            "state": word(task_pb2.TaskState.Name(found.state), "TASK_STATE_"),
            "reason": word(task_pb2.EndReason.Name(found.reason), "END_REASON_"),
            "message": found.message,
            "exit code": found.exit_code if found.HasField("exit_code") else "",
            "final message": found.final_message,
            "turns": found.usage.turns or "",
            "reported": ", ".join(usage_words([found.usage])),
            "gateway": gateway_words(found.model_use) if found.HasField("model_use") else "",
            "session": found.session_id,
            "snapshot": found.snapshot_id,
            "queued for": _between(times.queued, times.prepared),
            "ran for": _between(times.started, times.ended),
            "attempts": len(found.attempts),
        }
    )
    hint = hint_for(found)
    if hint:
        session.output.remark(f"  {hint}")
    for file in found.changed_files:
        change = word(task_pb2.ChangedFile.Change.Name(file.change), "CHANGE_")
        session.output.line(f"  {change:<9}{_clean(file.path)}  {size(file.new_size)}")
    if found.changed_files_truncated:
        session.output.line("  … and more")
    for artifact in found.artifacts:
        session.output.line(f"  artifact {_clean(artifact.path)}  {size(artifact.size)}")
    if found.artifacts_truncated:
        session.output.line("  … and more artifacts, which were not kept")


async def explain(session: Session, task: Annotated[str, typer.Argument(help="Task.")]) -> None:
    """Say why a task waits, and why each of its attempts ended."""
    found = await session.client().explain(task)
    if session.output.json:
        session.output.message(found)
        return
    session.output.line(f"{found.task.task_id} {state_of(found.task)}")
    for reason in found.reasons:
        session.output.line(f"  {_clean(reason)}")
    if found.task.parked:
        session.output.line(f"  `claw send {found.task.task_id} TEXT` wakes it")


async def watch(
    session: Session,
    task: Annotated[str, typer.Argument(help="Only this task; ends when it has.")] = "",
    after_revision: Annotated[int, typer.Option(help="Changes after this revision; 0: from now on.", min=0)] = 0,
) -> None:
    """Print changes of tasks as they happen."""
    from cloudclaw.client.streams import ENDED

    client = session.client(patience=STREAM)
    if task and not after_revision:
        # Its state as it is comes first, so that a task that has ended already is no endless wait.
        present = await client.get(task)
        _change(session, present)
        if present.state in ENDED:
            return
        after_revision = present.revision
    async with aclosing(client.watch(task_id=task, after_revision=after_revision)) as changes:
        async for change in changes:
            if session.output.json:
                session.output.message(change)
            else:
                _change(session, change.task)
            if task and change.task.state in ENDED:
                return


def _change(session: Session, task: task_pb2.Task) -> None:
    if session.output.json:
        from cloudclaw.v1 import scheduler_pb2

        session.output.message(scheduler_pb2.WatchTasksResponse(task=task, revision=task.revision))
        return
    last = task.events[-1] if task.events else None
    detail = f"attempt {task.attempts[-1].number} on {task.attempts[-1].node}" if task.attempts else ""
    message = last.message if last is not None else ""
    stamp = time.strftime("%H:%M:%S")
    session.output.line(_clean(f"{stamp}  {task.task_id}  {state_of(task):<18} {detail}  {message}".rstrip()))


def _state(name: str) -> task_pb2.TaskState:
    from cloudclaw.errors import InvalidArgumentError
    from cloudclaw.v1 import task_pb2

    full = name.upper() if name.upper().startswith("TASK_STATE_") else f"TASK_STATE_{name.upper()}"
    if full not in task_pb2.TaskState.keys() or full == "TASK_STATE_UNSPECIFIED":  # noqa: SIM118 - no mapping
        raise InvalidArgumentError("write queued, running, succeeded, failed or canceled", field="--state")
    return cast("task_pb2.TaskState", task_pb2.TaskState.Value(full))


def _moment(text: str, option: str) -> datetime | None:
    """A time: so long ago, or as written; without a zone it is the local one's."""
    from cloudclaw.cli.text import seconds
    from cloudclaw.errors import InvalidArgumentError

    if not text:
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        pass
    try:
        return datetime.now(UTC) - timedelta(seconds=seconds(text, option))
    except (InvalidArgumentError, OverflowError) as error:
        raise InvalidArgumentError(
            f"not a time: {text!r}; write 2h for two hours ago, or 2026-01-31T12:00", field=option
        ) from error


def _between(start: object, end: object) -> str:
    from google.protobuf.timestamp_pb2 import Timestamp

    from cloudclaw.cli.text import span

    assert isinstance(start, Timestamp)
    assert isinstance(end, Timestamp)
    if not start.ByteSize() or not end.ByteSize():
        return ""
    return span(max(0.0, (end.ToNanoseconds() - start.ToNanoseconds()) / 1e9))


def _clean(text: str) -> str:
    from cloudclaw.cli.text import clean

    return clean(text)
