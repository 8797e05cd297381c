"""`claw tenant`: the tenant's keys for models; for operators, whole tenants."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from cloudclaw.cli.command import command
from cloudclaw.cli.session import Session

_LONGEST_KEY: Final = 4096
_USUAL: Final = ("anthropic", "openai", "gemini")
_UPSTREAM = Annotated[str, typer.Argument(help="Model endpoint of the gateway: anthropic, openai, or as configured.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="A tenant's keys for models; its end.", rich_markup_mode=None)
    for name, function in (("set-key", set_key), ("keys", keys), ("rm-key", rm_key), ("delete", delete)):
        command(group, name)(function)
    app.add_typer(group, name="tenant")


async def set_key(
    session: Session,
    upstream: _UPSTREAM,
    surplus: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="File that holds the key; default: standard input, asked for on a terminal.")
    ] = None,
) -> None:
    """Keep the tenant's key for a model endpoint. It is sealed there, given to no sandbox, and never shown."""
    from cloudclaw.errors import InvalidArgumentError

    if surplus:
        # Others on the machine see command lines, so it is not taken, and not repeated here.
        raise InvalidArgumentError(
            "a key does not belong on a command line, where others see it; give --key-file or standard input, and"
            " consider replacing this one",
            field="KEY",
        )
    # Before there are a connection's threads: one of them could get the Ctrl-C that is to end the question.
    key = _key(upstream, key_file)
    await session.client().set_model_key(upstream, key)
    if session.output.json:
        session.output.fields({"upstream": upstream})
    else:
        session.output.line(f"the key for {upstream} is set; tasks that start from now on use it")
        if upstream not in _USUAL:
            usual = ", ".join(_USUAL)
            session.output.remark(f"  agents use {usual}, unless the operator's pools and gateways know {upstream}")


async def keys(session: Session) -> None:
    """List the model endpoints that the tenant has keys for."""
    from cloudclaw.cli.text import age

    rows = []
    for key in await session.client().list_model_keys():
        if session.output.json:
            session.output.message(key)
        rows.append((key.upstream, f"…{key.hint}" if key.hint else "-", f"{age(key.update_time, time.time())} ago"))
    if not session.output.json:
        empty = "no keys; `claw tenant set-key UPSTREAM` sets one"
        session.output.table(("UPSTREAM", "ENDS IN", "SET"), rows, empty=empty)


async def rm_key(session: Session, upstream: _UPSTREAM) -> None:
    """Forget a key; tasks that run keep it until they end."""
    await session.client().delete_model_key(upstream)
    if session.output.json:
        session.output.fields({"upstream": upstream})
    else:
        session.output.line(f"the key for {upstream} is forgotten")


def _key(upstream: str, file: Path | None) -> str:
    """The key, without the end of its line. What is wrong with one is said without it."""
    import getpass

    from cloudclaw.cli.given import STANDARD_INPUT, interruptible, text_of
    from cloudclaw.errors import InvalidArgumentError

    try:
        if file is None and sys.stdin.isatty():
            with interruptible():
                given = getpass.getpass(f"key for {upstream}: ")
        else:
            given = text_of(file or Path(STANDARD_INPUT), "KEY" if file is None else "--key-file")
    except EOFError:
        given = ""
    key = given.strip()
    if not key:
        raise InvalidArgumentError("no key came; give it by --key-file or on standard input", field="KEY")
    if not (key.isascii() and key.isprintable()) or len(key) > _LONGEST_KEY:
        raise InvalidArgumentError(f"a key is one line of at most {_LONGEST_KEY} ASCII characters", field="KEY")
    return key


async def delete(
    session: Session,
    name: Annotated[str, typer.Argument(help="Tenant.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; nothing of it can be had back.")] = False,
) -> None:
    """Remove a tenant: its tasks, results, logs, workspaces and all their bytes (role operator).

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
