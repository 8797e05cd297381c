"""`claw token`: keys and tokens for development."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloudclaw.cli.command import command
from cloudclaw.cli.session import Session


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Keys and tokens for development.", rich_markup_mode=None)
    command(group, "key")(key)
    command(group, "create")(create)
    app.add_typer(group, name="token")


async def key(session: Session, file: Annotated[Path, typer.Argument(help="File to write.")]) -> None:
    """Make a development key: a secret that services check tokens with, and that tokens are signed with."""
    from cloudclaw.rpc.keys import write_development_key

    write_development_key(file)
    if session.output.json:
        session.output.fields({"key": str(file)})
    else:
        session.output.line(f"{file}: keep it secret; services take it as `auth.keys`")


async def create(
    session: Session,
    key: Annotated[Path, typer.Option(help="Key file to sign with.")],
    role: Annotated[list[str] | None, typer.Option(help="user, operator or node; repeatable.")] = None,
    ttl: Annotated[str, typer.Option(help="How long it is valid.")] = "12h",
    subject: Annotated[str, typer.Option(help="Who it is for, for logs.")] = "development",
    issuer: Annotated[str, typer.Option(help="The `iss` that services expect.")] = "cloudclaw",
) -> None:
    """Print a token for the tenant given by --tenant or CLAW_TENANT."""
    from cloudclaw.cli.text import seconds
    from cloudclaw.errors import InvalidArgumentError
    from cloudclaw.rpc.auth import Minter

    tenant = session.given.tenant
    if not tenant:
        raise InvalidArgumentError("say whose token it is", field="--tenant")
    token = Minter(key, issuer=issuer).mint(tenant, role or ["user"], seconds(ttl, "--ttl"), subject)
    if session.output.json:
        session.output.fields({"token": token})
    else:
        session.output.line(token)
