"""Following an agent's run: its events, a status line on a terminal, and how it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from cloudclaw.cli.runs import RunView, usage_words
from cloudclaw.cli.session import STREAM, Session
from cloudclaw.cli.text import clean, counted, size, span, word

if TYPE_CHECKING:
    from rich.text import Text

    from cloudclaw.client import AsyncClient
    from cloudclaw.v1 import scheduler_pb2, task_pb2

STYLES: Final = {
    "user": "bold cyan",
    "assistant": "",
    "tool": "magenta",
    "dim": "dim",
    "error": "red",
    "warn": "yellow",
    "notice": "yellow",
}
WAITS_AFTER: Final = 3.0
"""Seconds in the queue before who watches is told why."""
CHANGED: Final = 40
"""Changed files that are listed."""


class Watcher:
    """Shows one task's events as they come.

    Attributes:
        view: what has been shown.
    """

    def __init__(self, session: Session, task_id: str, *, full: bool = False) -> None:
        self._session = session
        self._client = session.client(patience=STREAM)
        self._task_id = task_id
        self._task: task_pb2.Task | None = None
        self._began = time.monotonic()
        self.view = RunView(self._write, full=full)

    async def show(
        self, *, from_sequence: int = 1, follow: bool = True, status: bool = True
    ) -> AsyncGenerator[scheduler_pb2.RunEvent, None]:
        """Print each event, and yield it; ends with the task (or with what there is, without `follow`).

        `status`: on a terminal, while it follows, the last line says where the task stands.
        """
        output = self._session.output
        async with (
            aclosing(self._client.watch_events(self._task_id, from_sequence=from_sequence, follow=follow)) as events,
            self._status(shown=status and follow and output.interactive),
        ):
            async for event in events:
                if output.json:
                    output.message(event)
                else:
                    self.view.show(event)
                yield event

    def _write(self, line: str, style: str) -> None:
        output = self._session.output
        if not output.interactive:
            output.line(line)
            return
        from rich.text import Text

        output.console.print(Text(line, style=STYLES[style]), soft_wrap=True)

    @asynccontextmanager
    async def _status(self, *, shown: bool) -> AsyncIterator[None]:
        """On a terminal, a last line that says where the task stands."""
        if not shown:
            yield
            return
        from rich.live import Live

        looking = asyncio.create_task(self._look())
        try:
            with Live(
                get_renderable=self._line, console=self._session.output.console, refresh_per_second=4, transient=True
            ):
                yield
        finally:
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking

    async def _look(self) -> None:
        """Keep the task's state at hand; whatever goes wrong is told by the events' own stream."""
        from cloudclaw.errors import CloudClawError

        with suppress(CloudClawError):
            self._task = await self._client.get(self._task_id)
            async with aclosing(
                self._client.watch(task_id=self._task_id, after_revision=self._task.revision)
            ) as changes:
                async for change in changes:
                    self._task = change.task

    def _line(self) -> Text:
        from rich.text import Text

        from cloudclaw.cli.task_view import state_of

        parts = []
        if self._task is None:
            parts.append("connecting")
        else:
            last = self._task.attempts[-1] if self._task.attempts else None
            parts.append(state_of(self._task))
            if last is not None:
                parts.append(f"attempt {last.number} on {last.node}")
        parts += [str(self.view.totals), span(time.monotonic() - self._began)]
        return Text(
            clean(" · ".join(part for part in parts if part)), style="reverse", no_wrap=True, overflow="ellipsis"
        )


@asynccontextmanager
async def watching(session: Session, client: AsyncClient, task_id: str, command: str) -> AsyncIterator[None]:
    """Around what shows a task to its end: say what it waits for if it does not begin, and at Ctrl-C that only the
    watching ends, and which `command` goes on with it."""
    waiting = asyncio.create_task(_say_why_it_waits(session, client, task_id))
    try:
        yield
    except asyncio.CancelledError:
        session.output.remark(f"{task_id} goes on; `{command}` shows it again, `claw cancel {task_id}` ends it")
        raise
    finally:
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting


async def _say_why_it_waits(session: Session, client: AsyncClient, task_id: str) -> None:
    from cloudclaw.cli.task_view import state_of
    from cloudclaw.errors import CloudClawError
    from cloudclaw.v1 import task_pb2

    await asyncio.sleep(WAITS_AFTER)
    with suppress(CloudClawError):  # what is wrong is told by what shows the task
        found = await client.explain(task_id)
        if found.task.state == task_pb2.TASK_STATE_QUEUED and not found.task.parked:
            session.output.remark(f"{task_id} is {state_of(found.task)}")
            for reason in found.reasons:
                session.output.remark(f"  {clean(reason)}")


async def run_to_end(session: Session, client: AsyncClient, task_id: str, *, full: bool = False) -> task_pb2.Result:
    """Show a task's events to its end, then what came of it."""
    async with watching(session, client, task_id, f"claw events {task_id} --follow"):
        async with aclosing(Watcher(session, task_id, full=full).show()) as events:
            async for _ in events:
                pass
        await client.wait(task_id)
    result = await client.result(task_id)
    if session.output.json:
        session.output.message(result)
    else:
        print_end(session, result)
    return result


def print_end(session: Session, result: task_pb2.Result) -> None:
    """The changed files, and how it ended."""
    from cloudclaw.v1 import task_pb2

    output = session.output
    files = result.changed_files
    if files:
        more = " or more" if result.changed_files_truncated else ""
        output.line(f"\nchanged {counted(len(files), 'file')}{more}:")
    for file in files[:CHANGED]:
        change = word(task_pb2.ChangedFile.Change.Name(file.change), "CHANGE_")
        output.line(f"  {change:<9}{clean(file.path)}  {size(file.new_size)}")
    if len(files) > CHANGED:
        output.line(f"  … {len(files) - CHANGED} more; `claw result {result.task_id}` lists all")
    output.line("")
    output.line(clean(f"{result.task_id} {how_it_ended(result)}"))
    hint = hint_for(result)
    if hint:
        output.line(f"  {hint}")


def how_it_ended(result: task_pb2.Result) -> str:
    """State, reason and use on one line: `succeeded: completed · 3 turns · tokens 1,200 in, 90 out · $0.0123 · 42s`."""
    from cloudclaw.v1 import task_pb2

    reason = word(task_pb2.EndReason.Name(result.reason), "END_REASON_")
    succeeded = result.state == task_pb2.TASK_STATE_SUCCEEDED
    parts = [f"{word(task_pb2.TaskState.Name(result.state), 'TASK_STATE_')}: {reason}"]
    if result.message and not succeeded:
        parts[0] += f": {result.message}"
    if result.usage.HasField("turns"):
        parts.append(counted(result.usage.turns, "turn"))
    parts += usage_words([result.usage])
    if len(result.attempts) > 1:
        parts.append(counted(len(result.attempts), "attempt"))
    times = result.timings
    if times.HasField("queued") and times.HasField("committed"):
        parts.append(span(max(0.0, (times.committed.ToNanoseconds() - times.queued.ToNanoseconds()) / 1e9)))
    return " · ".join(parts)


def hint_for(result: task_pb2.Result) -> str:
    """What to do about its end, empty when there is nothing to say."""
    from cloudclaw.v1 import task_pb2

    return {
        task_pb2.END_REASON_MODEL_AUTHENTICATION: "`claw tenant keys` shows which keys there are; "
        "`claw tenant set-key UPSTREAM` sets one",
        task_pb2.END_REASON_MODEL_NOT_FOUND: "`--model` names another",
        task_pb2.END_REASON_RUN_TIMEOUT: "`--timeout` is the limit",
        task_pb2.END_REASON_SILENCE_TIMEOUT: "`--silence-timeout` is the limit",
        task_pb2.END_REASON_QUEUE_TIMEOUT: "`--queue-timeout` is the limit",
        task_pb2.END_REASON_TURN_LIMIT: "`--max-turns` is the limit",
        task_pb2.END_REASON_REQUEST_LIMIT: "`--max-requests` is the limit",
        task_pb2.END_REASON_TOKEN_LIMIT: "`--max-tokens` is the limit",
        task_pb2.END_REASON_SPEND_LIMIT: "`--max-spend` is the limit",
    }.get(result.reason, "")
