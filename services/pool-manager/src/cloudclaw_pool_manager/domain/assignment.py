"""What a node is told to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cloudclaw.coordination.records import Mode, SnapshotPointer
from cloudclaw_pool_manager.domain.attempt import AttemptId
from cloudclaw_pool_manager.domain.models import ModelLimits, ModelUse


@dataclass(frozen=True, slots=True)
class AskedLimits:
    """Limits that a task asks for; 0 means the template's default."""

    cpu_millis: int = 0
    memory_bytes: int = 0
    pids: int = 0
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Input:
    """A user's message for an agent. `number`: from 1 within the task; 0 is the prompt."""

    number: int
    message_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """The task waits for its user after each answer; `park_after`: seconds that it keeps its slot then."""

    park_after: float


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt for this node. Idempotent by its token (design rule 5).

    Attributes:
        attempt: identity and fencing token.
        pool: whose slot it needs.
        runtime, argv, prompt, env, session_id: from the spec, as the tenant sent them.
        limits: what it asks for.
        run_timeout: seconds of running, time frozen not counted; 0 for none.
        silence_timeout: seconds without output, time frozen not counted; 0 for none.
        workspace: name of the workspace, empty for a fresh tree.
        mode: how the workspace is used.
        base: snapshot to start from, None for an empty tree.
        head: the workspace's head that it works on; what it changes is told against it. `base`, unless that is a
            checkpoint.
        resumes: `base` is a checkpoint of an earlier attempt.
        cancel_requested: it was canceled before it got here.
        checkpoint_interval: seconds of running from one checkpoint to the next, 0 for none by the clock.
        artifacts: globs of workspace files to keep beside the snapshot.
        log_limit: bytes of log that it may write, 0 for the node's own limit.
        model: that the agent is to ask for, empty for its default.
        conversation: None for a task that ends with its first answer.
        session_in_base: `session_id` is of a session that `base` holds.
        inputs: messages that `base` does not hold, oldest first.
        inputs_done: messages that it holds: all up to this number.
        answered: it holds the answers to all of them.
        closing: no more messages come.
        max_turns: of the agent, 0 for no limit.
        model_limits, model_used: on the task, and by its earlier attempts.
        model_keys: the tenant's, sealed, by upstream.
        raw: the assignment as it arrived, to be remembered across a restart.
    """

    attempt: AttemptId
    pool: str = "default"
    runtime: str = "command"
    argv: tuple[str, ...] = ()
    prompt: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    session_id: str = ""
    limits: AskedLimits = AskedLimits()
    run_timeout: float = 0.0
    silence_timeout: float = 0.0
    workspace: str = ""
    mode: Mode = Mode.EPHEMERAL
    base: SnapshotPointer | None = None
    head: SnapshotPointer | None = None
    resumes: bool = False
    cancel_requested: bool = False
    checkpoint_interval: float = 0.0
    artifacts: tuple[str, ...] = ()
    log_limit: int = 0
    model: str = ""
    conversation: Conversation | None = None
    session_in_base: bool = False
    inputs: tuple[Input, ...] = ()
    inputs_done: int = 0
    answered: bool = False
    closing: bool = False
    max_turns: int = 0
    model_limits: ModelLimits = field(default_factory=ModelLimits)
    model_used: ModelUse = field(default_factory=ModelUse)
    model_keys: Mapping[str, str] = field(default_factory=dict)
    raw: bytes = b""

    @property
    def keeps_files(self) -> bool:
        """Success leaves a snapshot."""
        return bool(self.workspace) and self.mode in (Mode.EXCLUSIVE, Mode.FORK)

    @property
    def snapshot_id(self) -> str:
        """Name of that snapshot: made of the uid, so that saving again after a crash names the same one."""
        return "snap-" + self.attempt.uid.rpartition("-")[2]

    @property
    def artifact_prefix(self) -> str:
        """What the names of its artifacts' objects begin with."""
        return f"artifacts/{self.attempt.tenant}/{self.attempt.task}/{self.attempt.uid}/"
