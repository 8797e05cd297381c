"""What runners of attempts share, and what they tell the link to the leader."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import structlog

from cloudclaw.agents.pacing import Pace
from cloudclaw.agents.transcript import Transcript
from cloudclaw.clock import Clock, SystemClock
from cloudclaw.coordination.records import AttemptState, EndReason
from cloudclaw.errors import InvalidArgumentError
from cloudclaw.snapshots.port import WorkspaceManager
from cloudclaw.v1.scheduler_pb2 import AttemptReport, CheckpointReport
from cloudclaw_pool_manager.app.egress import ModelAccess
from cloudclaw_pool_manager.app.logs import LogShipper
from cloudclaw_pool_manager.app.metrics import NodeMetrics
from cloudclaw_pool_manager.app.probes import Readiness
from cloudclaw_pool_manager.app.slots import SlotPool
from cloudclaw_pool_manager.domain.assignment import Assignment
from cloudclaw_pool_manager.domain.attempt import AttemptId, Exit, KillReason, Launch, Limits
from cloudclaw_pool_manager.domain.outcome import Outcome
from cloudclaw_pool_manager.domain.timers import RunTimers
from cloudclaw_pool_manager.ports.runtime import AgentAdapter, RunRequest, RuntimeAdapter
from cloudclaw_pool_manager.ports.state import NodeState, Started

_log = structlog.get_logger()

_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWN: Final = "CLAW_"


class NotOursError(Exception):
    """The attempt is not this node's any more."""


class NotStartedError(Exception):
    """It cannot be started here, and was not."""


class Link(Protocol):
    """The way to the leader. Nothing of it blocks; what cannot be sent now is sent after the next connect."""

    def changed(self) -> None:
        """Something that heartbeats carry is different."""
        ...

    def report(self, report: AttemptReport) -> None:
        """Send a report now, if there is a leader; the table repeats it."""
        ...

    def checkpoint(self, report: CheckpointReport) -> None:
        """The same for the report of a checkpoint."""
        ...

    def reject(self, attempt: AttemptId, message: str) -> None:
        """Tell the leader that this attempt was never started here."""
        ...


@dataclass(frozen=True, slots=True)
class Template:
    """One pool of this node: its slots, what an attempt gets by default, and the runtimes it offers.

    Attributes:
        warm: the runtime that waits in idle slots, empty for none.
        readiness: of its agents, as their probes found; kept up by `Probes`.
        agents: those of its runtimes that are agents. Found once: to ask takes long.
    """

    slots: SlotPool
    limits: Limits
    runtimes: Mapping[str, RuntimeAdapter]
    backend: str = "bubblewrap"
    warm: str = ""
    readiness: dict[str, Readiness] = field(default_factory=dict)
    agents: Mapping[str, AgentAdapter] = field(init=False)

    def __post_init__(self) -> None:
        agents = {name: runtime for name, runtime in self.runtimes.items() if isinstance(runtime, AgentAdapter)}
        object.__setattr__(self, "agents", agents)

    def refusal(self, runtime: str) -> str:
        """Why a runtime cannot run here, empty when it can as far as is known."""
        found = self.readiness.get(runtime)
        return "" if found is None or found.ready else found.reason

    @property
    def offered(self) -> list[str]:
        """Names of the runtimes that can run."""
        return sorted(name for name in self.runtimes if not self.refusal(name))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """All that a runner needs beside its assignment.

    Attributes:
        deadline: the present self-fencing deadline (boot time).
        cancel_grace: seconds between SIGTERM and SIGKILL.
        slot_wait: seconds that an assignment waits for a slot.
        store_patience: seconds that a step waits for an object store that is away or full.
        turn_spacing: seconds of running between two checkpoints at an agent's turns; None for none of these.
        access: to models; None where there is no gateway.
        parsing: shared by all that read what agents print. It measures work, so its clock is the machine's.
    """

    clock: Clock
    state: NodeState
    workspaces: WorkspaceManager
    templates: Mapping[str, Template]
    shipper: LogShipper
    metrics: NodeMetrics
    link: Link
    deadline: Callable[[], float]
    cancel_grace: float = 2.0
    slot_wait: float = 10.0
    store_patience: float = 0.0
    turn_spacing: float | None = None
    access: ModelAccess | None = None
    parsing: Pace = field(default_factory=lambda: Pace(SystemClock()))


def agent_of(template: Template | None, assignment: Assignment) -> AgentAdapter | None:
    """The adapter of its runtime, when that is an agent."""
    return template.agents.get(assignment.runtime) if template is not None else None


def run_request(assignment: Assignment, *, egress: str = "", memory_bytes: int = 0) -> RunRequest:
    """What the runtime is told. The tenant's environment can neither set nor shadow `CLAW_` names."""
    attempt = assignment.attempt
    env = {
        name: value
        for name, value in assignment.env.items()
        if _ENV_NAME.fullmatch(name) and not name.startswith(_OWN) and "\0" not in value
    }
    return RunRequest(
        argv=assignment.argv,
        prompt=assignment.prompt,
        env=env,
        session_id=assignment.session_id,
        resumes=assignment.resumes and assignment.session_in_base,
        uid=attempt.uid,
        model=assignment.model,
        max_turns=assignment.max_turns,
        inputs=assignment.inputs,
        conversation=assignment.conversation is not None,
        egress=egress,
        memory_bytes=memory_bytes,
        identity={
            "CLAW_TASK_ID": attempt.task,
            "CLAW_ATTEMPT": str(attempt.number),
            "CLAW_TENANT": attempt.tenant,
            **({"CLAW_RESUMED_FROM": assignment.base.id} if assignment.resumes and assignment.base else {}),
        },
    )


def limits_of(assignment: Assignment, defaults: Limits) -> Limits:
    """The limits of an attempt: what it asked for, the template's where it did not."""
    asked = assignment.limits
    return Limits(
        cpu_millis=asked.cpu_millis or defaults.cpu_millis,
        memory_bytes=asked.memory_bytes or defaults.memory_bytes,
        pids=asked.pids or defaults.pids,
        disk_bytes=asked.disk_bytes or defaults.disk_bytes,
        file_bytes=min(defaults.file_bytes, asked.disk_bytes or defaults.file_bytes),
        tmp_bytes=defaults.tmp_bytes,
        log_bytes=assignment.log_limit,
    )


def launch_of(template: Template, assignment: Assignment, egress: str = "") -> Launch:
    """The command line of an attempt. Raises `InvalidArgumentError` when the pool or the runtime cannot run it."""
    runtime = template.runtimes.get(assignment.runtime)
    if runtime is None:
        offered = ", ".join(sorted(template.runtimes)) or "none"
        raise InvalidArgumentError(
            f"pool {assignment.pool!r} offers {offered} here, not {assignment.runtime!r}",
            field="spec.runtime",
        )
    if reason := template.refusal(assignment.runtime):
        raise InvalidArgumentError(f"{assignment.runtime} cannot run on this node: {reason}", field="spec.runtime")
    runtime.validate(assignment.argv, assignment.prompt)
    return runtime.launch(_request(template, assignment, egress))


def join_of(template: Template, assignment: Assignment, egress: str) -> Launch | None:
    """How it goes on in an agent that waits warm; None when it needs one of its own. What failed warm is tried cold."""
    adapter = agent_of(template, assignment)
    if adapter is None or template.warm != assignment.runtime or assignment.attempt.number > 1:
        return None
    return adapter.join(_request(template, assignment, egress))


def _request(template: Template, assignment: Assignment, egress: str) -> RunRequest:
    return run_request(assignment, egress=egress, memory_bytes=limits_of(assignment, template.limits).memory_bytes)


def judged(template: Template | None, assignment: Assignment, exit: Exit, transcript: Transcript) -> Outcome:
    """What the runtime makes of a program's own end."""
    if template is None:
        raise LookupError(f"this node has no pool {assignment.pool!r} any more")
    if exit.killed is KillReason.ANSWERED:
        exit = replace(exit, killed=KillReason.NONE, code=0, signal=0)  # noqa: A001 - as the port names it
    verdict = template.runtimes[assignment.runtime].judge(run_request(assignment), exit, transcript)
    return Outcome(
        state=AttemptState.SUCCEEDED if verdict.succeeded else AttemptState.FAILED,
        reason=EndReason(verdict.reason),
        message=verdict.message,
        retryable=verdict.retryable,
        exit_code=exit.code,
        log_end=exit.log_end,
        final_message=verdict.final_message,
        session_id=verdict.session_id,
        started=exit.started,
        ended=exit.ended,
    )


def note_of(assignment: Assignment, slot: str, pid: int, prepared: float, now: float) -> Started:
    """What is remembered of an attempt that is about to start."""
    return Started(
        uid=assignment.attempt.uid,
        assignment=assignment.raw,
        pool=assignment.pool,
        slot=slot,
        pid=pid,
        prepared=prepared,
        boottime=now,
    )


async def forget(state: NodeState, uid: str) -> None:
    """Drop the note of an attempt that is over."""
    try:
        await state.forget_attempt(uid)
    except OSError as error:
        _log.error("a note was left behind", error=str(error))


def timers_of(assignment: Assignment, started: float) -> RunTimers:
    """Its timeouts, for a program started at boot time `started`."""
    return RunTimers(started, assignment.run_timeout, assignment.silence_timeout)
