"""What a tenant may submit: every limit of `task.proto`, the defaults, and the plan that scheduling keeps.

Pure: the server converts the request to a `Draft` before. All of it is hostile input.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cloudclaw.coordination.records import EndReason, Mode, ModelLimits, Plan
from cloudclaw.errors import InvalidArgumentError
from cloudclaw.ids import check_name, check_opaque_id
from cloudclaw.snapshots.globs import check_pattern

KIB: Final = 1024
MAX_ARGV_BYTES: Final = 64 * KIB
MAX_PROMPT_BYTES: Final = 1024 * KIB
MAX_ENV_BYTES: Final = 64 * KIB
MAX_CPU_MILLIS: Final = 64_000
MIN_MEMORY_BYTES: Final = 4 * KIB * KIB
MAX_RUN_SECONDS: Final = 7 * 86_400.0
MAX_WAIT_SECONDS: Final = 365 * 86_400.0
MAX_ATTEMPTS: Final = 100
MAX_ARTIFACTS: Final = 64
MIN_CHECKPOINT_SECONDS: Final = 1.0
MAX_LABELS: Final = 32
MAX_LABEL_KEY_BYTES: Final = 63
MAX_LABEL_VALUE_BYTES: Final = 255
MAX_PRIORITY: Final = 100
MAX_IDLE_SECONDS: Final = 30 * 86_400.0
MAX_MODEL_BYTES: Final = 256

DEFAULT_RUNTIME: Final = "command"
DEFAULT_POOL: Final = "default"
DEFAULT_RUN_SECONDS: Final = 3600.0
DEFAULT_ATTEMPTS: Final = 3
DEFAULT_BACKOFF: Final = 1.0
DEFAULT_MULTIPLIER: Final = 2.0
DEFAULT_MAX_BACKOFF: Final = 60.0
DEFAULT_PARK_SECONDS: Final = 2.0
DEFAULT_IDLE_SECONDS: Final = 86_400.0

_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NEVER_RETRIED: Final = frozenset({EndReason.COMPLETED, EndReason.CANCELED, EndReason.PARKED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A spec as it was asked for. Durations are seconds, None where unset; enums are names, "" where unset and
    "?" where the number means nothing."""

    runtime: str = ""
    argv: tuple[str, ...] = ()
    prompt: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    workspace: str = ""
    mode: str = ""
    session_id: str = ""
    cpu_millis: int = 0
    memory_bytes: int = 0
    queue_timeout: float | None = None
    run_timeout: float | None = None
    silence_timeout: float | None = None
    max_attempts: int = 0
    initial_backoff: float | None = None
    backoff_multiplier: float = 0.0
    max_backoff: float | None = None
    retry_on: tuple[str, ...] = ()
    checkpoint_interval: float | None = None
    artifacts: tuple[str, ...] = ()
    priority: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    pool: str = ""
    model: str = ""
    conversation: bool = False
    park_after: float | None = None
    idle_timeout: float | None = None
    limits: ModelLimits | None = None


def plan(draft: Draft) -> Plan:
    """The plan of a valid draft, with the defaults filled in; `InvalidArgumentError` names the field otherwise."""
    runtime = check_name(draft.runtime or DEFAULT_RUNTIME, "spec.runtime")
    pool = check_name(draft.pool or DEFAULT_POOL, "spec.pool")
    _check_command(draft, runtime)
    _check_env(draft.env)
    _check_resources(draft)
    _check_artifacts(draft.artifacts)
    _check_labels(draft.labels)
    if draft.session_id:
        check_opaque_id(draft.session_id, "spec.session_id")
    if abs(draft.priority) > MAX_PRIORITY:
        raise _invalid("spec.priority", f"must be from -{MAX_PRIORITY} to {MAX_PRIORITY}; got {draft.priority}")
    _check_model(draft, runtime)
    park_after, idle_timeout = _conversation(draft, runtime)
    run = _duration(draft.run_timeout, "spec.timeouts.run", most=MAX_RUN_SECONDS)
    return Plan(
        runtime=runtime,
        pool=pool,
        priority=draft.priority,
        workspace=draft.workspace,
        mode=_mode(draft),
        labels=dict(draft.labels),
        max_attempts=_max_attempts(draft.max_attempts),
        initial_backoff=_or(_duration(draft.initial_backoff, "spec.retry.initial_backoff"), DEFAULT_BACKOFF),
        backoff_multiplier=_multiplier(draft.backoff_multiplier),
        max_backoff=_or(_duration(draft.max_backoff, "spec.retry.max_backoff"), DEFAULT_MAX_BACKOFF),
        retry_on=_retry_on(draft.retry_on),
        queue_timeout=_or(_duration(draft.queue_timeout, "spec.timeouts.queue"), 0.0),
        run_timeout=run or DEFAULT_RUN_SECONDS,
        silence_timeout=_or(_duration(draft.silence_timeout, "spec.timeouts.silence"), 0.0),
        checkpoint_interval=_checkpoint_interval(draft.checkpoint_interval),
        interactive=draft.conversation,
        park_after=park_after,
        idle_timeout=idle_timeout,
        limits=draft.limits,
    )


def _invalid(name: str, message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, field=name)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _check_command(draft: Draft, runtime: str) -> None:
    size = 0
    for index, argument in enumerate(draft.argv):
        size += _size(argument) + 1
        if "\0" in argument:
            raise _invalid(f"spec.argv[{index}]", "must not hold a NUL byte")
    if size > MAX_ARGV_BYTES:
        raise _invalid("spec.argv", f"must be at most {MAX_ARGV_BYTES} bytes in all; got {size}")
    if draft.argv and not draft.argv[0]:
        raise _invalid("spec.argv[0]", "the program's name is empty")
    if runtime == DEFAULT_RUNTIME and not draft.argv:
        raise _invalid("spec.argv", "the command runtime needs a program: give it after `--`, as in `-- make test`")
    if runtime != DEFAULT_RUNTIME and not draft.argv and not draft.prompt:
        raise _invalid("spec.prompt", f"the runtime {runtime!r} needs a prompt or arguments")
    prompt = _size(draft.prompt)
    if prompt > MAX_PROMPT_BYTES:
        raise _invalid("spec.prompt", f"must be at most {MAX_PROMPT_BYTES} bytes; got {prompt}")
    if "\0" in draft.prompt:
        raise _invalid("spec.prompt", "must not hold a NUL character")


def _check_env(env: Mapping[str, str]) -> None:
    size = 0
    for name, value in env.items():
        if not _ENV_NAME.fullmatch(name):
            raise _invalid("spec.env", f"names match [A-Za-z_][A-Za-z0-9_]*; got {name[:80]!r}")
        if name.startswith("CLAW_"):
            raise _invalid("spec.env", f"names beginning with CLAW_ are CloudClaw's own; got {name[:80]!r}")
        if "\0" in value:
            raise _invalid("spec.env", f"the value of {name[:80]!r} must not hold a NUL byte")
        size += len(name) + _size(value) + 2
    if size > MAX_ENV_BYTES:
        raise _invalid("spec.env", f"must be at most {MAX_ENV_BYTES} bytes in all; got {size}")


def _check_resources(draft: Draft) -> None:
    if draft.cpu_millis > MAX_CPU_MILLIS:
        raise _invalid("spec.resources.cpu_millis", f"must be at most {MAX_CPU_MILLIS}; got {draft.cpu_millis}")
    if 0 < draft.memory_bytes < MIN_MEMORY_BYTES:
        raise _invalid("spec.resources.memory_bytes", f"must be at least {MIN_MEMORY_BYTES}; got {draft.memory_bytes}")


def _checkpoint_interval(value: float | None) -> float:
    """0 for none: checkpoints are then taken only when somebody asks."""
    seconds = _duration(value, "spec.checkpoint_interval", most=MAX_RUN_SECONDS)
    if seconds is None:
        return 0.0
    if seconds < MIN_CHECKPOINT_SECONDS:
        raise _invalid("spec.checkpoint_interval", f"must be at least {MIN_CHECKPOINT_SECONDS:.0f} s; got {seconds} s")
    return seconds


def _check_artifacts(globs: tuple[str, ...]) -> None:
    if len(globs) > MAX_ARTIFACTS:
        raise _invalid("spec.artifacts", f"must be at most {MAX_ARTIFACTS}; got {len(globs)}")
    for index, glob in enumerate(globs):
        try:
            check_pattern(glob)
        except InvalidArgumentError as error:
            raise _invalid(f"spec.artifacts[{index}]", error.message) from error


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > MAX_LABELS:
        raise _invalid("spec.labels", f"must be at most {MAX_LABELS}; got {len(labels)}")
    for key, value in labels.items():
        if not 1 <= _size(key) <= MAX_LABEL_KEY_BYTES:
            raise _invalid("spec.labels", f"keys are 1 to {MAX_LABEL_KEY_BYTES} bytes; got {key[:80]!r}")
        if _size(value) > MAX_LABEL_VALUE_BYTES:
            raise _invalid("spec.labels", f"the value of {key!r} is over {MAX_LABEL_VALUE_BYTES} bytes")


def _check_model(draft: Draft, runtime: str) -> None:
    if draft.model and (_size(draft.model) > MAX_MODEL_BYTES or not draft.model.isprintable()):
        raise _invalid("spec.model", f"must be at most {MAX_MODEL_BYTES} bytes, all of them printable")
    if draft.model.startswith("-"):
        raise _invalid("spec.model", f"must not begin like an option; got {draft.model[:80]!r}")
    limits = draft.limits
    if limits is not None and not (math.isfinite(limits.spend_usd) and limits.spend_usd >= 0):
        raise _invalid("spec.model_limits.spend_usd", f"must be a finite number from 0; got {limits.spend_usd}")
    if runtime == DEFAULT_RUNTIME:
        for name, given in (("model", draft.model), ("model_limits", limits), ("conversation", draft.conversation)):
            if given:
                raise _invalid(f"spec.{name}", "the command runtime has none: name the runtime of an agent")


def _conversation(draft: Draft, runtime: str) -> tuple[float, float]:
    """(park_after, idle_timeout); 0 for what is no conversation."""
    if not draft.conversation:
        return 0.0, 0.0
    park = _duration(draft.park_after, "spec.conversation.park_after", most=MAX_RUN_SECONDS)
    idle = _duration(draft.idle_timeout, "spec.conversation.idle_timeout", most=MAX_IDLE_SECONDS)
    if idle == 0.0:
        raise _invalid("spec.conversation.idle_timeout", "must be more than 0: it would end before any input")
    return _or(park, DEFAULT_PARK_SECONDS), _or(idle, DEFAULT_IDLE_SECONDS)


def _mode(draft: Draft) -> Mode:
    if draft.workspace:
        check_name(draft.workspace, "spec.workspace.name")
    if not draft.mode:
        return Mode.EXCLUSIVE if draft.workspace else Mode.EPHEMERAL
    if draft.mode not in Mode.__members__:
        raise _invalid("spec.workspace.mode", "no such workspace mode")
    mode = Mode(draft.mode)
    if mode is not Mode.EPHEMERAL and not draft.workspace:
        raise _invalid("spec.workspace.name", f"the mode {mode} needs the name of a workspace")
    return mode


def _max_attempts(value: int) -> int:
    if value > MAX_ATTEMPTS:
        raise _invalid("spec.retry.max_attempts", f"must be 1 to {MAX_ATTEMPTS}; got {value}")
    return value or DEFAULT_ATTEMPTS


def _multiplier(value: float) -> float:
    if value == 0.0:
        return DEFAULT_MULTIPLIER
    if not 1.0 <= value <= 10.0:  # NaN included
        raise _invalid("spec.retry.backoff_multiplier", f"must be 1.0 to 10.0; got {value}")
    return value


def _retry_on(names: tuple[str, ...]) -> tuple[EndReason, ...]:
    reasons: list[EndReason] = []
    for index, name in enumerate(names):
        if name not in EndReason.__members__ or EndReason(name) in _NEVER_RETRIED:
            raise _invalid(f"spec.retry.retry_on[{index}]", f"not a reason that can be retried: {name or 'unset'}")
        if EndReason(name) not in reasons:
            reasons.append(EndReason(name))
    return tuple(reasons)


def _duration(value: float | None, name: str, most: float = MAX_WAIT_SECONDS) -> float | None:
    if value is None:
        return None
    if math.isnan(value) or value < 0:
        raise _invalid(name, f"must not be negative; got {value} s")
    if value > most:
        raise _invalid(name, f"must be at most {most:.0f} s; got {value:.0f} s")
    return value
