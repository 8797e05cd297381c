"""`claw dev`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloudclaw.cli.session import data_directory


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("dev")(dev)


def dev(
    data_dir: Annotated[
        Path | None, typer.Option(help="Where everything is kept.", envvar="CLAW_DATA_DIR", show_default=False)
    ] = None,
    nodes: Annotated[int, typer.Option(help="Pool-managers.", min=1, max=16)] = 1,
    slots: Annotated[int, typer.Option(help="Warm slots of each.", min=1, max=256)] = 2,
    backend: Annotated[str, typer.Option(help="bubblewrap or docker.")] = "bubblewrap",
    image: Annotated[
        str,
        typer.Option(help="Image of the slots, with docker.", envvar="CLAW_DEV_IMAGE", show_default="cloudclaw/agent"),
    ] = "",
    engine: Annotated[
        str, typer.Option(help="The Docker engine's socket.", envvar="DOCKER_HOST")
    ] = "unix:///var/run/docker.sock",
    objects: Annotated[str, typer.Option(help="filesystem, minio, or s3://BUCKET?endpoint=HOST:PORT.")] = "filesystem",
    base_port: Annotated[int, typer.Option(help="The scheduler's; others follow. 0: free ports.")] = 7401,
    agents: Annotated[
        Path | None, typer.Option(help="Folder of the agents' programs.", show_default="where `make setup` puts them")
    ] = None,
    no_agents: Annotated[bool, typer.Option("--no-agents", help="Offer the runtime `command` only.")] = False,
    warm: Annotated[str, typer.Option(metavar="RUNTIME", help="Agent that waits started in idle slots.")] = "",
    scripted_model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Test support: answer all calls to models by this script; no key, no network."
        ),
    ] = None,
    no_restart: Annotated[bool, typer.Option("--no-restart", help="Leave a child that died dead.")] = False,
) -> None:
    """Run a whole CloudClaw on this machine, until Ctrl-C.

    Starts etcd, the object store, the scheduler, the workspace service, and for each node a gateway and a pool-manager
    as child processes on loopback, and prints `ready` with their endpoints. DIR/ready.json has them too, with a token;
    `claw` without CLAW_ENDPOINT finds the one in the default folder. The same DIR starts again with all its state.
    The pools offer the agents that `make setup` installed.
    """
    from cloudclaw.cli.dev.options import DevOptions
    from cloudclaw.cli.dev.run import main
    from cloudclaw.cli.failures import report
    from cloudclaw.errors import CloudClawError

    options = DevOptions(
        directory=data_dir or data_directory(),
        nodes=nodes,
        slots=slots,
        backend=backend,
        objects=objects,
        base_port=base_port,
        restart=not no_restart,
        agents=agents,
        no_agents=no_agents,
        warm=warm,
        scripted_model=scripted_model,
        image=image if backend == "docker" else "",
        engine=engine,
    )
    try:
        raise typer.Exit(main(options))
    except CloudClawError as e:
        raise typer.Exit(report(e, json_output=False, endpoint="")) from e
