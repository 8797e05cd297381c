"""`claw results`, `claw consumers` and `claw artifact`: what tasks leave behind, for those who come for it."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Final

import typer

from cloudclaw.cli.command import command
from cloudclaw.cli.session import STREAM, Session

if TYPE_CHECKING:
    from cloudclaw.v1 import scheduler_pb2

_ACKED: Final = 10
"""Deliveries at once while each is acknowledged: few, since those that an interrupted command had not printed yet come
again only after their time."""
_ALL: Final = 1000
"""Deliveries at once while none is: as many as the service has."""

_TASK = Annotated[str, typer.Argument(help="Task.")]
_CONSUMER = Annotated[str, typer.Argument(help="Name of the consumer.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "results")(results)
    consumers = typer.Typer(no_args_is_help=True, help="Those who consume the tenant's results.", rich_markup_mode=None)
    for name, function in (("ls", ls), ("ack", ack), ("rm", rm)):
        command(consumers, name)(function)
    app.add_typer(consumers, name="consumers")
    artifacts = typer.Typer(no_args_is_help=True, help="Files that tasks kept.", rich_markup_mode=None)
    command(artifacts, "ls")(artifact_ls)
    command(artifacts, "get")(artifact_get)
    app.add_typer(artifacts, name="artifact")


async def results(
    session: Session,
    consumer: Annotated[str, typer.Argument(help="Name of the consumer; the first call makes it.")],
    acknowledge: Annotated[
        bool, typer.Option("--ack", help="Acknowledge each when it is printed; else all come again.")
    ] = False,
    drain: Annotated[bool, typer.Option("--drain", help="End when nothing is left, instead of waiting.")] = False,
    from_oldest: Annotated[
        bool, typer.Option("--from-oldest", help="A new consumer begins with the oldest result at hand.")
    ] = False,
    visibility: Annotated[
        str, typer.Option(help="How long a result waits for its acknowledgement before it comes again.")
    ] = "60s",
) -> None:
    """Print results as tasks end: each at least once, whoever else dies."""
    from cloudclaw.cli.text import seconds

    client = session.client(patience=STREAM)
    stream = client.results(
        consumer,
        visibility=timedelta(seconds=seconds(visibility, "--visibility")),
        from_oldest=from_oldest,
        max_outstanding=_ACKED if acknowledge else _ALL,
        drain=drain,
    )
    async with aclosing(stream) as deliveries:
        async for delivery in deliveries:
            _print(session, delivery)
            if acknowledge and await client.ack(consumer, delivery.receipt):
                session.output.remark(f"{delivery.result.task_id}: acknowledged too late; it will come again")


async def ls(session: Session) -> None:
    """List the consumers, and how far each is behind."""
    from cloudclaw.cli.text import age

    rows = []
    for consumer in await session.client().consumers.list():
        if session.output.json:
            session.output.message(consumer)
        now = time.time()
        created, updated = age(consumer.create_time, now), age(consumer.update_time, now)
        rows.append((consumer.name, consumer.backlog, f"{created} ago", f"{updated} ago"))
    if not session.output.json:
        session.output.table(
            ("CONSUMER", "BACKLOG", "CREATED", "UPDATED"), rows, empty="no consumers; `claw results NAME` makes one"
        )


async def ack(
    session: Session,
    consumer: _CONSUMER,
    receipts: Annotated[list[str], typer.Argument(help="Receipts, as `claw results --output json` prints them.")],
) -> int:
    """Acknowledge deliveries; ends with 6 when one came too late."""
    from cloudclaw.cli.failures import PRECONDITION
    from cloudclaw.v1 import scheduler_pb2

    expired = await session.client().ack(consumer, *receipts)
    if session.output.json:
        session.output.message(scheduler_pb2.AckResultsResponse(expired=expired))
    for receipt in expired:
        session.output.remark(f"too late: {receipt}")
    return PRECONDITION if expired else 0


async def rm(session: Session, consumer: _CONSUMER) -> None:
    """Forget a consumer and where it stands."""
    await session.client().consumers.delete(consumer)
    if session.output.json:
        session.output.fields({"consumer": consumer})
    else:
        session.output.line(f"{consumer} is forgotten")


async def artifact_ls(session: Session, task: _TASK) -> None:
    """List the files that a task kept."""
    from cloudclaw.cli.text import size

    result = await session.client().result(task)
    if session.output.json:
        for artifact in result.artifacts:
            session.output.message(artifact)
        return
    rows = [(size(artifact.size), artifact.digest[:12], artifact.path) for artifact in result.artifacts]
    session.output.table(("SIZE", "SHA-256", "PATH"), rows, empty="it kept no files")


async def artifact_get(
    session: Session,
    task: _TASK,
    path: Annotated[str, typer.Argument(help="File, as `claw result` lists it.")],
    to: Annotated[Path | None, typer.Option("--to", help="File to write; default: standard output.")] = None,
) -> None:
    """Fetch one file that a task kept, byte for byte."""
    pieces = session.client().workspaces.download_artifact(task, path)
    async with aclosing(pieces):
        if to is None:
            async for piece in pieces:
                session.output.raw(piece)
            return
        size = 0
        with _whole(to) as file:
            async for piece in pieces:
                size += len(piece)
                await asyncio.to_thread(file.write, piece)
    if session.output.json:
        session.output.fields({"file": str(to), "bytes": size})
    else:
        session.output.line(f"{to}: {size} bytes")


@contextmanager
def _whole(target: Path) -> Iterator[IO[bytes]]:
    """A file beside `target`, which takes its place once it is whole, and is gone otherwise."""
    from cloudclaw.errors import InvalidArgumentError

    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        try:
            with open(partial, "xb") as file:
                yield file
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InvalidArgumentError(f"cannot write {target}: {error.strerror}", field="--to") from error


def _print(session: Session, delivery: scheduler_pb2.StreamResultsResponse) -> None:
    from cloudclaw.cli.text import clean, word
    from cloudclaw.v1 import task_pb2

    if session.output.json:
        session.output.message(delivery)
        return
    result = delivery.result
    state = word(task_pb2.TaskState.Name(result.state), "TASK_STATE_")
    reason = word(task_pb2.EndReason.Name(result.reason), "END_REASON_")
    told = result.final_message or result.message
    code = f" exit {result.exit_code}" if result.HasField("exit_code") else ""
    session.output.line(clean(f"{result.task_id}  {state:<9}  {reason}{code}  {told[:200]}".rstrip()))
