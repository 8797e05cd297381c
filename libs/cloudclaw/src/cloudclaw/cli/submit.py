"""`claw submit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cloudclaw.cli.command import command
from cloudclaw.cli.follow import hint_for, run_to_end, watching
from cloudclaw.cli.session import STREAM, Session

if TYPE_CHECKING:
    from cloudclaw.client import AsyncClient
    from cloudclaw.v1 import task_pb2


_COUNT: Final = 2**31 - 1


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
    model: Annotated[str, typer.Option(help="Model, in the agent's words; default: the pool's.")] = "",
    max_turns: Annotated[int, typer.Option(help="Turns of the agent in one attempt; 0: no limit.", min=0)] = 0,
    max_requests: Annotated[int, typer.Option(help="Requests to models, all attempts; 0: no limit.", min=0)] = 0,
    max_tokens: Annotated[int, typer.Option(help="Tokens in and out, all attempts; 0: no limit.", min=0)] = 0,
    max_spend: Annotated[float, typer.Option(help="Dollars, by the operator's prices; 0: no limit.", min=0)] = 0.0,
    conversation: Annotated[
        bool, typer.Option("--conversation", help="Wait for more input after each answer.")
    ] = False,
    park_after: Annotated[str, typer.Option(help="How long it keeps its slot while it waits; default 2s.")] = "",
    idle_timeout: Annotated[str, typer.Option(help="Without input for so long it ends; default 24h.")] = "",
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
    wait: Annotated[
        bool, typer.Option("--wait", help="Show what it does to its end; exit 0 if it succeeded, 1 if not.")
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="With --wait: an agent's log as it is, not its events.")] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="With --wait: exit with the task's own code.")] = False,
) -> int:
    """Submit a task and print its id.

    With --wait it shows the log of a command, and what an agent says and does.
    """
    from cloudclaw.cli.text import duration, pairs
    from cloudclaw.errors import InvalidArgumentError
    from cloudclaw.v1 import task_pb2

    if exit_code and not wait:
        raise InvalidArgumentError("goes with --wait", field="--exit-code")
    if raw and not wait:
        raise InvalidArgumentError("goes with --wait", field="--raw")
    if (park_after or idle_timeout) and not conversation:
        raise InvalidArgumentError("goes with --conversation", field="--park-after" if park_after else "--idle-timeout")
    text = _prompt(prompt, prompt_file)
    _check_fit(runtime, argv, text, session_id, conversation=conversation)
    _check_sizes(
        {
            "--max-turns": (max_turns, _COUNT),
            "--max-requests": (max_requests, _COUNT),
            "--max-tokens": (max_tokens, _COUNT << 10),
            "--max-spend": (max_spend, 1e12),
            "--max-attempts": (max_attempts, _COUNT),
            "--priority": (priority, _COUNT),
            "--memory": (memory, _COUNT),
            "--cpu": (cpu, 1e6),
        }
    )
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
        model=model,
    )
    if max_turns or max_requests or max_tokens or max_spend:
        spec.model_limits.CopyFrom(
            task_pb2.ModelLimits(turns=max_turns, requests=max_requests, tokens=max_tokens, spend_usd=max_spend)
        )
    if conversation:
        spec.conversation.SetInParent()
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
        (park_after, spec.conversation.park_after, "--park-after"),
        (idle_timeout, spec.conversation.idle_timeout, "--idle-timeout"),
    ):
        if given:
            target.CopyFrom(duration(given, option))
    client = session.client(patience=STREAM if wait else 10.0)
    task = (await client.submit(spec=spec, request_id=request_id)).task
    if session.output.json:
        session.output.message(task)
    else:
        session.output.line(task.task_id)
    if not wait:
        return 0
    if runtime == "command" or raw:
        return _code(await _log_to_end(session, client, task.task_id), own=exit_code)
    result = await run_to_end(session, client, task.task_id)
    if session_id and result.reason in (task_pb2.END_REASON_BAD_CONFIGURATION, task_pb2.END_REASON_START_FAILED):
        session.output.remark(
            "  a session is of one runtime and lies in one workspace: give --runtime and --workspace of its task"
        )
    return _code(result, own=exit_code)


def _prompt(text: str | None, file: Path | None) -> str:
    from cloudclaw.cli.given import text_of
    from cloudclaw.errors import InvalidArgumentError

    if text is None and file is None:
        return ""
    if text is not None and file is not None:
        raise InvalidArgumentError("give --prompt or --prompt-file, not both", field="--prompt-file")
    option = "--prompt" if file is None else "--prompt-file"
    said = text_of(file, option) if file is not None else text or ""
    if not said.strip():
        raise InvalidArgumentError("it is empty: say what the agent is to do", field=option)
    return said


def _check_fit(runtime: str, argv: list[str] | None, prompt: str, session: str, *, conversation: bool) -> None:
    """Whether there is something to run, and it is of the kind that the runtime takes."""
    from cloudclaw.errors import InvalidArgumentError

    if runtime == "command":
        for given, option in ((prompt, "--prompt"), (session, "--session")):
            if given:
                raise InvalidArgumentError("goes with an agent; say which, as in --runtime claude-code", field=option)
        if not argv:
            raise InvalidArgumentError("give a command after `--`, as in `claw submit -- echo hello`", field="ARGV")
    elif argv:
        raise InvalidArgumentError(
            f"{runtime} takes a prompt and no command: --prompt TEXT, or leave --runtime out", field="ARGV"
        )
    elif not prompt and not conversation:
        raise InvalidArgumentError(f"say what {runtime} is to do: --prompt TEXT or --prompt-file F", field="--prompt")


def _check_sizes(sizes: dict[str, tuple[float, float]]) -> None:
    """Whether each option's value fits into its field: (value, the most that it may be)."""
    from cloudclaw.errors import InvalidArgumentError

    for option, (value, most) in sizes.items():
        if not abs(value) <= most:
            raise InvalidArgumentError(f"must be at most {most:,}; got {value}", field=option)


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


async def _log_to_end(session: Session, client: AsyncClient, task_id: str) -> task_pb2.Result:
    """Stream the log to its end, then say how the task ended."""
    from cloudclaw.cli.logs import stream
    from cloudclaw.cli.text import clean, word
    from cloudclaw.v1 import task_pb2

    async with watching(session, client, task_id, f"claw logs {task_id} --follow"):
        await stream(session, client.tail(task_id))
        await client.wait(task_id)
    result = await client.result(task_id)
    if session.output.json:
        session.output.message(result)
    if result.state != task_pb2.TASK_STATE_SUCCEEDED:
        state = word(task_pb2.TaskState.Name(result.state), "TASK_STATE_")
        reason = word(task_pb2.EndReason.Name(result.reason), "END_REASON_")
        session.output.remark(clean(f"{task_id} {state}: {reason}" + (f": {result.message}" if result.message else "")))
        if hint := hint_for(result):
            session.output.remark(f"  {hint}")
    return result


def _code(result: task_pb2.Result, *, own: bool) -> int:
    """What the command ends with: the task's `own` code where it has one, otherwise whether it succeeded."""
    from cloudclaw.cli.failures import TASK_FAILED
    from cloudclaw.v1 import task_pb2

    if own and result.HasField("exit_code"):
        return result.exit_code
    return 0 if result.state == task_pb2.TASK_STATE_SUCCEEDED else TASK_FAILED
