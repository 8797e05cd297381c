"""`claw events`, `claw send` and `claw chat`: what an agent does, and talking with it."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cloudclaw.cli.command import command
from cloudclaw.cli.follow import Watcher, print_end
from cloudclaw.cli.session import STREAM, Session

if TYPE_CHECKING:
    from cloudclaw.client import AsyncClient
    from cloudclaw.v1 import scheduler_pb2

_TASK = Annotated[str, typer.Argument(help="Task.")]
_FULL = Annotated[bool, typer.Option("--full", help="Fold nothing.")]
END: Final = "/end"
"""The line by which a person closes a conversation."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for name, function in (("events", events), ("send", send), ("chat", chat)):
        command(app, name)(function)


async def events(
    session: Session,
    task: _TASK,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more until the task has ended.")] = False,
    since: Annotated[int, typer.Option("--from", help="Number of the first event wanted.", min=1)] = 1,
    full: _FULL = False,
) -> None:
    """Show what a task's agent said and did."""
    async with aclosing(Watcher(session, task, full=full).show(from_sequence=since, follow=follow)) as shown:
        async for _ in shown:
            pass


async def send(
    session: Session,
    task: _TASK,
    text: Annotated[str | None, typer.Argument(help="The message; - is standard input.")] = None,
    file: Annotated[Path | None, typer.Option(help="The message, from a file; - is standard input.")] = None,
    message_id: Annotated[str, typer.Option(help="Makes it idempotent: the same id is sent once.")] = "",
    end: Annotated[bool, typer.Option("--end", help="Close the conversation: it ends when all is answered.")] = False,
    delay: Annotated[str, typer.Option(help="Deliver it only after so long, such as 10m.")] = "",
) -> None:
    """Send a message to a conversation; a parked one is woken."""
    from cloudclaw.cli.text import seconds
    from cloudclaw.errors import InvalidArgumentError
    from cloudclaw.ids import new_id

    said = _text(text, file)
    if not said.strip() and not end:
        raise InvalidArgumentError("say something: TEXT, --file F or - for standard input; or --end", field="TEXT")
    later = timedelta(seconds=seconds(delay, "--delay")) if delay else None
    named = message_id or new_id("input")
    answer = await session.client().send_input(task, said, message_id=named, end=end, delay=later)
    if session.output.json:
        session.output.fields({"message_id": named, "accepted": answer.accepted, "number": answer.number})
    elif not answer.accepted:
        session.output.line(f"{named} had been accepted before")
    elif not said.strip():
        session.output.line("the conversation ends when all before is answered")
    else:
        number = f" {answer.number}" if answer.number else ""
        session.output.line(f"input{number} accepted" + (", for later" if later else ""))


async def chat(
    session: Session,
    task: _TASK,
    since: Annotated[int, typer.Option("--from", help="Number of the first event to show.", min=1)] = 1,
    end: Annotated[bool, typer.Option("--end", help="Close the conversation when there are no more lines.")] = False,
    full: _FULL = False,
) -> int:
    """Talk with an agent: each line is a message; answers are shown as they come.

    A line /end closes the conversation. Without more lines (Ctrl-D) it stays as it is, for another `claw chat`. From a
    pipe, each line waits for the answer to the one before.
    """
    from cloudclaw.cli.text import word
    from cloudclaw.client.streams import ENDED
    from cloudclaw.errors import PreconditionError
    from cloudclaw.v1 import task_pb2

    client = session.client(patience=STREAM)
    found = await client.get(task)
    if not found.spec.HasField("conversation"):
        raise PreconditionError(f"{task} is no conversation", subject=task, reason="NOT_A_CONVERSATION")
    if found.state in ENDED and not sys.stdin.isatty():
        # A person sees what was said, and how it ended; a program's lines would go nowhere.
        state = word(task_pb2.TaskState.Name(found.state), "TASK_STATE_")
        raise PreconditionError(f"{task} has ended: {state}", subject=task, reason="TASK_ENDED")
    return await _Chat(session, client, task, end=end, full=full).run(since)


class _Chat:
    def __init__(self, session: Session, client: AsyncClient, task_id: str, *, end: bool, full: bool) -> None:
        self._session = session
        self._client = client
        self._task_id = task_id
        self._end = end
        self._person = sys.stdin.isatty()
        self._watcher = Watcher(session, task_id, full=full)
        self._unanswered: set[str] = set()
        self._answered = asyncio.Event()
        self._answered.set()

    async def run(self, since: int) -> int:
        if self._person:
            self._session.output.remark(f"(each line is a message; {END} closes the conversation, Ctrl-D leaves it)")
        talking = asyncio.create_task(self._talk())
        showing = asyncio.create_task(self._show(since))
        try:
            await asyncio.wait({talking, showing}, return_when=asyncio.FIRST_COMPLETED)
            if talking.done() and await talking:
                await showing  # closed: it ends by itself
            if not showing.done():
                self._stays_open()
                return 0
            await showing
        except asyncio.CancelledError:
            self._stays_open()
            raise
        finally:
            for work in (talking, showing):
                work.cancel()
            await asyncio.gather(talking, showing, return_exceptions=True)
        return await self._ended()

    def _stays_open(self) -> None:
        self._session.output.remark(f"{self._task_id} stays open; `claw chat {self._task_id}` goes on")

    async def _ended(self) -> int:
        from cloudclaw.cli.failures import TASK_FAILED
        from cloudclaw.v1 import task_pb2

        await self._client.wait(self._task_id)
        result = await self._client.result(self._task_id)
        if self._session.output.json:
            self._session.output.message(result)
        else:
            print_end(self._session, result)
        return 0 if result.state == task_pb2.TASK_STATE_SUCCEEDED else TASK_FAILED

    async def _talk(self) -> bool:
        """Send lines as they are typed; answers whether the conversation is closed now."""
        from cloudclaw.ids import new_id

        lines = _lines()
        while (line := await lines.get()) is not None:
            said = line.strip()
            if said == END:
                await self._client.send_input(self._task_id, end=True)
                return True
            if not said:
                continue
            if not self._person:
                await self._answered.wait()
            message_id = new_id("input")
            self._unanswered.add(message_id)
            if self._person:
                self._watcher.view.typed.add(message_id)  # it stands there already
            self._answered.clear()
            await self._client.send_input(self._task_id, line.rstrip("\n"), message_id=message_id)
        if self._end:
            await self._client.send_input(self._task_id, end=True)
        elif not self._person:
            await self._answered.wait()
        return self._end

    async def _show(self, since: int) -> None:
        async with aclosing(self._watcher.show(from_sequence=since, status=not self._person)) as shown:
            async for event in shown:
                self._note(event)

    def _note(self, event: scheduler_pb2.RunEvent) -> None:
        """Whether all that was said here has its answer: the agent was told it, and then had answered."""
        kind = event.WhichOneof("event")
        if kind == "message" and event.message.role == "user":
            self._unanswered.discard(event.message.message_id)
        elif kind == "finished" and not self._unanswered:
            self._answered.set()


def _lines() -> asyncio.Queue[str | None]:
    """Lines of standard input, then None. Read by a thread that nobody waits for: a terminal may never say more."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[str | None] = asyncio.Queue()

    def put(line: str | None) -> None:
        with contextlib.suppress(RuntimeError):  # the command has ended meanwhile
            loop.call_soon_threadsafe(queue.put_nowait, line)

    def read() -> None:
        with contextlib.suppress(OSError, ValueError):  # no more input, whatever the reason
            for line in _read_lines():
                put(line)
        put(None)

    threading.Thread(target=read, name="stdin", daemon=True).start()
    return queue


def _read_lines() -> Iterator[str]:
    """Lines of standard input as they come. Past its buffer, whose lock a thread that waits would keep at exit."""
    try:
        descriptor = sys.stdin.fileno()
    except io.UnsupportedOperation:
        yield from sys.stdin
        return
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    while data := os.read(descriptor, 65536):
        *lines, rest = (rest + decoder.decode(data)).split("\n")
        yield from lines
    if rest:
        yield rest


def _text(text: str | None, file: Path | None) -> str:
    """The message: given as it is, or from a file or standard input."""
    from cloudclaw.cli.given import STANDARD_INPUT, text_of
    from cloudclaw.errors import InvalidArgumentError

    if text is not None and file is not None:
        raise InvalidArgumentError("give TEXT or --file, not both", field="--file")
    if file is None and text != STANDARD_INPUT:
        return text or ""
    return text_of(file or Path(STANDARD_INPUT), "TEXT" if file is None else "--file")
