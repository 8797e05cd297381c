"""`claw tenant`: whole tenants, for operators."""

from __future__ import annotations

from typing import Annotated

import typer

from cloudclaw.cli.command import command
from cloudclaw.cli.session import Session


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Whole tenants (role operator).", rich_markup_mode=None)
    command(group, "delete")(delete)
    app.add_typer(group, name="tenant")


async def delete(
    session: Session,
    name: Annotated[str, typer.Argument(help="Tenant.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; nothing of it can be had back.")] = False,
) -> None:
    """Remove a tenant: its tasks, results, logs, workspaces and all their bytes.

    Refused while a task of it has not ended or somebody writes. Call it again when it broke off: it goes on.
    """
    from cloudclaw.cli.text import size
    from cloudclaw.errors import InvalidArgumentError

    if not yes:
        raise InvalidArgumentError(f"this removes all that {name!r} has; say --yes", field="--yes")
    gone = await session.operator(session.endpoint).workspaces.delete_tenant(name)
    if session.output.json:
        session.output.message(gone)
    else:
        what = f"{gone.objects_removed} objects ({size(gone.bytes_removed)}) and {gone.keys_removed} keys"
        session.output.line(f"removed {name}: {what}")
