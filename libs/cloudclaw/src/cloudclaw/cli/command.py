"""How a command is made: common options, one event loop, errors to exit codes."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer

_CONNECTION: Final = "Connection"


class OutputFormat(StrEnum):
    """`text` for people, `json` for programs: one object a line."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Given:
    """What the command line and the environment say about connecting and printing; None where they say nothing."""

    output: OutputFormat | None = None
    endpoint: str | None = None
    workspace_endpoint: str | None = None
    token: str | None = None
    tenant: str | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_server_name: str | None = None
    explicit: frozenset[str] = field(default_factory=frozenset)
    """Options that stood on the command line, not in the environment."""

    @property
    def json(self) -> bool:
        """Whether to print JSON."""
        return self.output is OutputFormat.JSON


Command = Callable[..., Awaitable[int | None]]
C = TypeVar("C", bound=Command)

_COMMON: Final[dict[str, Any]] = {
    "output": Annotated[OutputFormat | None, typer.Option("--output", "-o", help="How to print.")],
    "endpoint": Annotated[
        str | None, typer.Option(help="Scheduler, host:port.", envvar="CLAW_ENDPOINT", rich_help_panel=_CONNECTION)
    ],
    "workspace_endpoint": Annotated[
        str | None,
        typer.Option(
            help="Workspace service; default: two ports after the scheduler.",
            envvar="CLAW_WORKSPACE_ENDPOINT",
            rich_help_panel=_CONNECTION,
        ),
    ],
    "token": Annotated[
        str | None, typer.Option(help="Bearer token.", envvar="CLAW_TOKEN", rich_help_panel=_CONNECTION)
    ],
    "tenant": Annotated[
        str | None,
        typer.Option(help="Refuse tokens of other tenants.", envvar="CLAW_TENANT", rich_help_panel=_CONNECTION),
    ],
    "tls_ca": Annotated[
        Path | None,
        typer.Option(help="Certificates to trust; turns TLS on.", envvar="CLAW_TLS_CA", rich_help_panel=_CONNECTION),
    ],
    "tls_cert": Annotated[
        Path | None, typer.Option(help="Client certificate.", envvar="CLAW_TLS_CERT", rich_help_panel=_CONNECTION)
    ],
    "tls_key": Annotated[
        Path | None, typer.Option(help="Its key.", envvar="CLAW_TLS_KEY", rich_help_panel=_CONNECTION)
    ],
    "tls_server_name": Annotated[
        str | None,
        typer.Option(
            help="Name in the server's certificate.", envvar="CLAW_TLS_SERVER_NAME", rich_help_panel=_CONNECTION
        ),
    ],
}


def command(group: typer.Typer, name: str, **settings: Any) -> Callable[[C], C]:
    """Make an async function a command of `group`.

    Its first parameter is the `Session`; the others are its options and arguments, and the common options are added.
    It answers the exit code, None for 0.
    """

    def register(function: C) -> C:
        signature = inspect.signature(function, eval_str=True)
        own = list(signature.parameters.values())[1:]
        common = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for key, annotation in _COMMON.items()
        ]
        context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        parameters = [context, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *common]

        def run(context: typer.Context, **values: Any) -> None:
            given = _merge(context, {key: values.pop(key) for key in _COMMON})
            raise typer.Exit(_run(function, given, values))

        run.__doc__ = function.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        group.command(name, **settings)(run)
        return function

    return register


def _merge(context: typer.Context, values: dict[str, Any]) -> Given:
    """What the command was given, over what `claw` itself was given."""
    above = context.find_root().obj
    base = above if isinstance(above, Given) else Given()
    explicit = frozenset(
        key for key in values if str(getattr(context.get_parameter_source(key), "name", "")) == "COMMANDLINE"
    )
    # An option of `claw` itself is as explicit as the command's own, and goes before a variable.
    ours = {key: value for key, value in values.items() if value is not None}
    for key in ("output", "endpoint", "token", "tenant"):
        if key not in explicit and getattr(base, key) is not None:
            ours[key] = getattr(base, key)
    return replace(base, **ours, explicit=explicit)


def _run(function: Command, given: Given, values: dict[str, Any]) -> int:
    import asyncio

    from cloudclaw.cli.failures import UNAVAILABLE, not_text, report
    from cloudclaw.cli.session import Session
    from cloudclaw.errors import CloudClawError

    session = Session(given)

    async def main() -> int:
        async with session:
            return await function(session, **values) or 0

    try:
        return asyncio.run(main())
    except CloudClawError as e:
        return report(e, json_output=given.json, endpoint=session.endpoint_tried)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return session.output.broken_pipe()
    except UnicodeEncodeError as e:
        # What is sent is UTF-8; an argument that is not came as lone surrogates. What is printed never fails so.
        return report(not_text(e), json_output=given.json, endpoint=session.endpoint_tried)
    except OSError as e:
        # What is expected to fail is handled where it does; what is left is the output's own: a full disk.
        session.output.give_up()
        sys.stderr.write(f"error: {e.strerror or e}{f': {e.filename}' if e.filename else ''}\n")
        return UNAVAILABLE
