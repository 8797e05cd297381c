"""The command tree."""

from __future__ import annotations

from typing import Annotated

import typer

from cloudclaw.cli import conversations, logs, pool, results, status, submit, tasks, tenant, token, workspaces
from cloudclaw.cli.command import Given, OutputFormat
from cloudclaw.cli.dev import command as dev

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="CloudClaw: durable tasks in warm, isolated sandboxes.",
    epilog="Exit codes: 0 success, 1 the task failed, 2 usage, 3 not found, 4 denied, 5 unavailable, "
    "6 precondition or quota.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root(
    context: typer.Context,
    output: Annotated[OutputFormat | None, typer.Option("--output", "-o", help="How to print.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Scheduler, host:port.", envvar="CLAW_ENDPOINT")] = None,
    token: Annotated[str | None, typer.Option(help="Bearer token.", envvar="CLAW_TOKEN", show_envvar=True)] = None,
    tenant: Annotated[str | None, typer.Option(help="Refuse tokens of other tenants.", envvar="CLAW_TENANT")] = None,
) -> None:
    context.obj = Given(output=output, endpoint=endpoint, token=token, tenant=tenant)


submit.register(app)
tasks.register(app)
results.register(app)
conversations.register(app)
logs.register(app)
status.register(app)
workspaces.register(app)
pool.register(app)
tenant.register(app)
token.register(app)
dev.register(app)
