"""`claw logs`, and how a log is printed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from cloudclaw.cli.command import command
from cloudclaw.cli.session import STREAM, Session

if TYPE_CHECKING:
    from cloudclaw.v1 import scheduler_pb2


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "logs")(logs)


async def logs(
    session: Session,
    task: Annotated[str, typer.Argument(help="Task.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more until the task has ended.")] = False,
    offset: Annotated[int, typer.Option(help="First byte wanted.", min=0)] = 0,
    attempt: Annotated[int, typer.Option(help="Only this attempt; 0: all of them.", min=0)] = 0,
) -> None:
    """Print what a task wrote, byte for byte."""
    client = session.client(patience=STREAM)
    await stream(session, client.tail(task, attempt=attempt, offset=offset, follow=follow))


async def stream(session: Session, tail: AsyncGenerator[scheduler_pb2.TailLogsResponse, None]) -> None:
    """Print a tail: the bytes as they are, or one object for each piece and each end."""
    output = session.output
    shown = 0
    async with aclosing(tail) as responses:
        async for response in responses:
            if output.json:
                if response.chunk.data or response.attempt_ended:
                    output.message(response)
                continue
            if not response.chunk.data:
                continue
            if shown and response.chunk.attempt != shown:
                output.remark(f"--- attempt {response.chunk.attempt} ---")
            shown = response.chunk.attempt
            output.raw(response.chunk.data)
