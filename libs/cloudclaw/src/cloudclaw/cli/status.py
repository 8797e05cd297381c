"""`claw top`: the whole of it at a glance."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from cloudclaw.cli.command import command
from cloudclaw.cli.session import STREAM, Session

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cloudclaw.client import AsyncClient
    from cloudclaw.v1 import scheduler_pb2, task_pb2

_ROWS = 20
_LOOKED_AT = 100
"""Queued tasks of which those are shown that wait for their user."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "top")(top)


async def top(
    session: Session,
    once: Annotated[bool, typer.Option("--once", help="Print it once and end.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between looks.", min=0.2)] = 1.0,
) -> None:
    """Show the cluster at a glance; live on a terminal, else once."""
    client = session.client(patience=STREAM)
    if session.output.json:
        session.output.message(await client.status())
        return
    if once or not session.output.interactive:
        session.output.console.print(await _screen(session, client))
        return
    from rich.live import Live

    with Live(await _screen(session, client), console=session.output.console, screen=True) as live:
        while True:
            await asyncio.sleep(interval)
            live.update(await _screen(session, client))


async def _screen(session: Session, client: AsyncClient) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from cloudclaw.cli.task_view import COLUMNS, row
    from cloudclaw.cli.text import clean, size
    from cloudclaw.v1 import task_pb2

    status = await client.status()
    leader = f"leader {status.leader} (term {status.term})" if status.leader else "no leader: an election is on"
    store = f"etcd {size(status.etcd_bytes)}"
    if status.etcd_limit_bytes:
        store += f" of {size(status.etcd_limit_bytes)}"
    pools = [(p.pool, p.slots, p.idle, p.running, p.queued, p.delayed) for p in status.pools]
    parts: list[RenderableType] = [
        Text(clean(f"CloudClaw {status.version}  {leader}  {store}"), style="bold"),
        Text(""),
        session.output.grid(("POOL", "SLOTS", "IDLE", "RUNNING", "QUEUED", "DELAYED"), pools),
    ]
    if status.nodes:
        parts += [Text(""), session.output.grid(NODE_COLUMNS, map(node_row, status.nodes))]
    rows = [row(task) for task in await _first(client, task_pb2.TASK_STATE_RUNNING, _ROWS)]
    parts += [Text(""), session.output.grid(COLUMNS, rows) if rows else Text("nothing runs", style="dim")]
    parked = [task for task in await _first(client, task_pb2.TASK_STATE_QUEUED, _LOOKED_AT) if task.parked]
    if parked:
        parts += [Text(""), session.output.grid(COLUMNS, map(row, parked[:_ROWS]))]
    return Group(*parts)


async def _first(client: AsyncClient, state: task_pb2.TaskState, count: int) -> list[task_pb2.Task]:
    """The newest tasks in that state."""
    found: list[task_pb2.Task] = []
    async with aclosing(client.list(states=[state], page_size=count)) as tasks:
        async for task in tasks:
            if len(found) == count:
                break
            found.append(task)
    return found


NODE_COLUMNS = ("NODE", "STATE", "ATTEMPTS", "IDLE", "HEARTBEAT", "ADDRESS")


def node_row(node: scheduler_pb2.NodeStatus) -> tuple[object, ...]:
    """A node as a line of a table (`NODE_COLUMNS`)."""
    from cloudclaw.cli.text import span

    state = "draining" if node.draining else "connected" if node.connected else "lost"
    idle = sum(pool.idle for pool in node.pools)
    return node.node, state, node.attempts, idle, f"{span(node.heartbeat_age_seconds)} ago", node.address
