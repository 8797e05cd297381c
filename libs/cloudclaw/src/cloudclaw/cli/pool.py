"""`claw pool`: the slots of nodes, for operators."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from cloudclaw.cli.command import command
from cloudclaw.cli.session import Session

if TYPE_CHECKING:
    from cloudclaw.client import Pool
    from cloudclaw.v1 import pool_manager_pb2, scheduler_pb2

_NODE = Annotated[str, typer.Option("--node", help="Node; needed where there are several.")]
_HELP = "Slots of nodes (role operator). --endpoint names a node's own service; without it --node does."


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help=_HELP, rich_markup_mode=None)
    for name, function in (
        ("get", get),
        ("slots", slots),
        ("resize", resize),
        ("drain", drain),
        ("undrain", undrain),
        ("recycle", recycle),
    ):
        command(group, name)(function)
    app.add_typer(group, name="pool")


async def get(
    session: Session, pool: Annotated[str, typer.Argument(help="Only this pool.")] = "", node: _NODE = ""
) -> None:
    """Show the pools of a node, or of all."""
    rows = []
    runtimes = []
    for manager in (await _managers(session, node)).values():
        for found in await manager.get(pool):
            if session.output.json:
                session.output.message(found)
            rows.append(_pool_row(found))
            runtimes += [
                (found.node, found.capacity.pool, status.runtime, *_readiness(status))
                for status in found.capacity.runtime_status
            ]
    if session.output.json:
        return
    session.output.table(("NODE", "POOL", "BACKEND", "SLOTS", "IDLE", "CAP", "RUNTIMES", "STATE"), rows)
    if runtimes:
        session.output.line("")
        session.output.table(("NODE", "POOL", "RUNTIME", "STATE", "VERSION", "REASON"), runtimes)


async def slots(
    session: Session, pool: Annotated[str, typer.Argument(help="Only of this pool.")] = "", node: _NODE = ""
) -> None:
    """List the slots of a node, or of all: what each is doing, and which limits hold there."""
    rows = []
    for name, manager in (await _managers(session, node)).items():
        async for slot in manager.slots(pool):
            if session.output.json:
                session.output.message(slot)
            rows.append(_slot_row(name, slot))
    if not session.output.json:
        columns = ("NODE", "SLOT", "STATE", "WAITS", "POOL", "PID", "UID", "TENANT", "TASK", "SERVED", "FOR", "LIMITS")
        session.output.table(columns, rows)


async def resize(
    session: Session,
    pool: Annotated[str, typer.Argument(help="Pool.")],
    slots: Annotated[int, typer.Argument(help="Slots that it shall have.", min=0)],
    node: _NODE = "",
) -> None:
    """Change the number of a pool's slots on one node."""
    found = await (await _manager(session, node)).resize(pool, slots)
    if session.output.json:
        session.output.message(found)
    else:
        session.output.line(f"{found.capacity.pool} on {found.node}: {found.capacity.slots} slots")


async def drain(
    session: Session,
    node: Annotated[str, typer.Argument(help="Node.")] = "",
    named: _NODE = "",
    hand_over: Annotated[
        bool, typer.Option("--hand-over", help="Let what runs there go on elsewhere, from a checkpoint.")
    ] = False,
) -> None:
    """Let a node take no new work; what runs there finishes, or is handed over."""
    from cloudclaw.cli.text import counted

    running = await (await _manager(session, node or named)).drain(hand_over=hand_over)
    if session.output.json:
        session.output.fields({"running": running})
    elif hand_over:
        session.output.line(f"draining; {counted(running, 'attempt')} to hand over")
    else:
        session.output.line(f"draining; {counted(running, 'attempt')} still to end there")


async def undrain(session: Session, node: Annotated[str, typer.Argument(help="Node.")] = "", named: _NODE = "") -> None:
    """Let a node take work again."""
    await (await _manager(session, node or named)).undrain()
    if session.output.json:
        session.output.fields({})
    else:
        session.output.line("takes work again")


async def recycle(
    session: Session,
    slot: Annotated[str, typer.Argument(help="Slot.")],
    force: Annotated[bool, typer.Option("--force", help="Also while it is in use; its attempt then fails.")] = False,
    node: _NODE = "",
) -> None:
    """Replace a slot by a fresh one."""
    found = await (await _manager(session, node)).recycle(slot, force=force)
    if session.output.json:
        session.output.message(found)
    else:
        session.output.line(f"{found.slot}: {_state(found)}")


async def _managers(session: Session, node: str) -> dict[str, Pool]:
    """The services of the node asked for, or of every node that is connected, by node."""
    from cloudclaw.errors import NotFoundError, PermissionDeniedError, UnavailableError

    if "endpoint" in session.given.explicit:
        endpoint = session.endpoint
        return {"-": session.operator(endpoint).pool(endpoint)}
    client = session.operator(session.endpoint)
    status = await client.status()
    if not status.nodes and status.pools:
        raise PermissionDeniedError("only operators see nodes", reason="ROLE_REQUIRED", metadata={"role": "operator"})
    known = {n.node: n.address for n in status.nodes if n.connected}
    if node and node not in known:
        listed = ", ".join(sorted(known)) or "none is connected"
        raise NotFoundError(f"no node {node!r}; there are: {listed}", reason="NO_NODE")
    if not known:
        raise UnavailableError("no node is connected", reason="NO_NODES")
    return {name: client.pool(address) for name, address in sorted(known.items()) if node in ("", name)}


async def _manager(session: Session, node: str) -> Pool:
    """The service of one node."""
    from cloudclaw.errors import InvalidArgumentError

    managers = await _managers(session, node)
    if len(managers) > 1:
        raise InvalidArgumentError(f"say which node: {', '.join(managers)}", field="--node")
    return next(iter(managers.values()))


def _pool_row(pool: pool_manager_pb2.Pool) -> tuple[object, ...]:
    capacity = pool.capacity
    return (
        pool.node,
        capacity.pool,
        capacity.backend,
        capacity.slots,
        capacity.idle,
        pool.hard_cap,
        ",".join(capacity.runtimes),
        "draining" if pool.draining else "ready",
    )


def _slot_row(node: str, slot: pool_manager_pb2.Slot) -> tuple[object, ...]:
    from cloudclaw.cli.text import age

    return (
        node,
        slot.slot,
        _state(slot) + (" (warm)" if slot.sandbox_ready else ""),
        _waiting(slot),
        slot.pool,
        slot.pid,
        f"{slot.uid}{' shared' if slot.uid_shared else ''}",
        slot.tenant or "-",
        slot.task_id or "-",
        slot.attempts_served,
        age(slot.state_time, time.time()),
        _limits(slot),
    )


def _readiness(status: scheduler_pb2.RuntimeStatus) -> tuple[str, str, str]:
    """State, version, and why it is not ready."""
    return "ready" if status.ready else "not ready", status.version or "-", status.reason or "-"


def _waiting(slot: pool_manager_pb2.Slot) -> str:
    """The agent that waits warm in it, and its memory."""
    from cloudclaw.cli.text import size

    if not slot.warm:
        return "-"
    return f"{slot.warm} {size(slot.warm_memory_bytes)}" if slot.warm_memory_bytes else slot.warm


def _state(slot: pool_manager_pb2.Slot) -> str:
    from cloudclaw.cli.text import word
    from cloudclaw.v1 import pool_manager_pb2

    return word(pool_manager_pb2.SlotState.Name(slot.state), "SLOT_STATE_")


def _limits(slot: pool_manager_pb2.Slot) -> str:
    """What holds each limit, as `cpu:cgroup-v1 …`."""
    from cloudclaw.cli.text import word
    from cloudclaw.v1 import pool_manager_pb2

    held = {"cpu": slot.cpu, "memory": slot.memory, "pids": slot.pids, "disk": slot.disk}
    names = pool_manager_pb2.LimitMechanism
    return " ".join(f"{name}:{word(names.Name(by), 'LIMIT_MECHANISM_')}" for name, by in held.items() if by)
