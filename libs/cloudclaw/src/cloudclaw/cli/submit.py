"""`claw submit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloudclaw.cli.command import command
from cloudclaw.cli.session import STREAM, Session

if TYPE_CHECKING:
    from cloudclaw.client import AsyncClient
    from cloudclaw.v1 import task_pb2


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "submit")(submit)


async def submit(
    session: Session,
    argv: Annotated[list[str] | None, typer.Argument(help="Program and arguments, after `--`.")] = None,
    runtime: Annotated[str, typer.Option(help="Which agent runs.")] = "command",
    prompt: Annotated[str | None, typer.Option(help="The prompt.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="The prompt, from a file; - is standard input.")] = None,
    workspace: Annotated[str, typer.Option(help="File tree that it works in.")] = "",
    workspace_mode: Annotated[str, typer.Option(help="exclusive, fork or ephemeral.")] = "",
    session_id: Annotated[str, typer.Option("--session", help="Agent session to continue.")] = "",
    pool: Annotated[str, typer.Option(help="Pool of slots.")] = "",
    priority: Annotated[int, typer.Option(help="Higher runs first: -100 to 100.")] = 0,
    request_id: Annotated[str, typer.Option(help="Makes it idempotent: the same id submits once.")] = "",
    max_attempts: Annotated[int, typer.Option(help="Attempts in all; 0: the default.", min=0)] = 0,
    timeout: Annotated[str, typer.Option(help="Longest run of one attempt, such as 10m.")] = "",
    queue_timeout: Annotated[str, typer.Option(help="Longest wait in the queue.")] = "",
    silence_timeout: Annotated[str, typer.Option(help="Longest time without output.")] = "",
    checkpoint_every: Annotated[
        str, typer.Option(help="Take a checkpoint this often while it runs, such as 30s.")
    ] = "",
    env: Annotated[list[str] | None, typer.Option(help="Environment, K=V; repeatable.")] = None,
    artifact: Annotated[
        list[str] | None, typer.Option(help="Glob of files to keep with the result; repeatable.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(help="Label, K=V; repeatable.")] = None,
    memory: Annotated[int, typer.Option(help="Memory limit, MiB; 0: the pool's.", min=0)] = 0,
    cpu: Annotated[float, typer.Option(help="Cores; 0: the pool's.", min=0)] = 0.0,
    wait: Annotated[bool, typer.Option("--wait", help="Stream the log; exit 0 if it succeeded, 1 if not.")] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="With --wait: exit with the task's own code.")] = False,
) -> int:
    """Submit a task and print its id."""
    from cloudclaw.cli.text import duration, pairs
    from cloudclaw.errors import InvalidArgumentError
    from cloudclaw.v1 import task_pb2

    if exit_code and not wait:
        raise InvalidArgumentError("goes with --wait", field="--exit-code")
    text = _prompt(prompt, prompt_file)
    if not argv and not text and runtime == "command":
        raise InvalidArgumentError("give a command after `--`, as in `claw submit -- echo hello`", field="ARGV")
    spec = task_pb2.TaskSpec(
        runtime=runtime,
        argv=argv or [],
        prompt=text,
        env=pairs(env, "--env"),
        session_id=session_id,
        artifacts=artifact or [],
        priority=priority,
        labels=pairs(label, "--label"),
        pool=pool,
    )
    if workspace or workspace_mode:
        spec.workspace.name = workspace
        spec.workspace.mode = _mode(workspace_mode)
    if max_attempts:
        spec.retry.max_attempts = max_attempts
    if memory or cpu:
        spec.resources.memory_bytes = memory << 20
        spec.resources.cpu_millis = round(cpu * 1000)
    for given, target, option in (
        (timeout, spec.timeouts.run, "--timeout"),
        (queue_timeout, spec.timeouts.queue, "--queue-timeout"),
        (silence_timeout, spec.timeouts.silence, "--silence-timeout"),
        (checkpoint_every, spec.checkpoint_interval, "--checkpoint-every"),
    ):
        if given:
            target.CopyFrom(duration(given, option))
    client = session.client(patience=STREAM if wait else 10.0)
    task = (await client.submit(spec=spec, request_id=request_id)).task
    if session.output.json:
        session.output.message(task)
    else:
        session.output.line(task.task_id)
    return await _follow(session, client, task.task_id, own_code=exit_code) if wait else 0


def _prompt(text: str | None, file: Path | None) -> str:
    from cloudclaw.errors import InvalidArgumentError

    if file is None:
        return text or ""
    if text is not None:
        raise InvalidArgumentError("give --prompt or --prompt-file, not both", field="--prompt-file")
    try:
        if str(file) == "-":
            return typer.get_text_stream("stdin").read()
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidArgumentError(f"cannot read {file}: {e}", field="--prompt-file") from e


def _mode(name: str) -> task_pb2.WorkspaceMode:
    from cloudclaw.errors import InvalidArgumentError
    from cloudclaw.v1 import task_pb2

    modes = {
        "": task_pb2.WORKSPACE_MODE_UNSPECIFIED,
        "exclusive": task_pb2.WORKSPACE_MODE_EXCLUSIVE,
        "fork": task_pb2.WORKSPACE_MODE_FORK,
        "ephemeral": task_pb2.WORKSPACE_MODE_EPHEMERAL,
    }
    if name not in modes:
        raise InvalidArgumentError("write exclusive, fork or ephemeral", field="--workspace-mode")
    return modes[name]


async def _follow(session: Session, client: AsyncClient, task_id: str, *, own_code: bool) -> int:
    """Stream the log to its end, then say how the task ended."""
    from cloudclaw.cli.failures import TASK_FAILED
    from cloudclaw.cli.logs import stream
    from cloudclaw.cli.text import clean, word
    from cloudclaw.v1 import task_pb2

    await stream(session, client.tail(task_id))
    await client.wait(task_id)
    result = await client.result(task_id)
    if session.output.json:
        session.output.message(result)
    succeeded = result.state == task_pb2.TASK_STATE_SUCCEEDED
    if not succeeded:
        state = word(task_pb2.TaskState.Name(result.state), "TASK_STATE_")
        reason = word(task_pb2.EndReason.Name(result.reason), "END_REASON_")
        session.output.remark(clean(f"{task_id} {state}: {reason}" + (f": {result.message}" if result.message else "")))
    if own_code and result.HasField("exit_code"):
        return result.exit_code
    return 0 if succeeded else TASK_FAILED
