"""What a task's record is made of. `records` has them all under one roof."""

from __future__ import annotations

import msgspec

from cloudclaw.coordination.states import AttemptState, EndReason, Mode, TaskState


class Record(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Base of all records."""


class ModelLimits(Record, frozen=True, kw_only=True):
    """As in `cloudclaw.v1.ModelLimits`; 0 for no limit."""

    requests: int = 0
    tokens: int = 0
    spend_usd: float = 0.0
    turns: int = 0


class Plan(Record, frozen=True, kw_only=True):
    """What scheduling needs of the immutable spec, copied so that a task record stands alone.

    Durations are seconds; 0 means none (queue, silence, checkpoint). `interactive`: it is a conversation; only then
    `park_after` and `idle_timeout` mean something. `limits`: None for none.
    """

    runtime: str = "command"
    pool: str = "default"
    priority: int = 0
    workspace: str = ""
    mode: Mode = Mode.EPHEMERAL
    labels: dict[str, str] = {}
    max_attempts: int = 3
    initial_backoff: float = 1.0
    backoff_multiplier: float = 2.0
    max_backoff: float = 60.0
    retry_on: tuple[EndReason, ...] = ()
    queue_timeout: float = 0.0
    run_timeout: float = 3600.0
    silence_timeout: float = 0.0
    checkpoint_interval: float = 0.0
    interactive: bool = False
    park_after: float = 0.0
    idle_timeout: float = 0.0
    limits: ModelLimits | None = None

    @property
    def writes(self) -> bool:
        """The task needs the workspace's writer key."""
        return bool(self.workspace) and self.mode is Mode.EXCLUSIVE


class SnapshotPointer(Record, frozen=True, kw_only=True):
    """A stored snapshot: id, and the digest (hex SHA-256) of its manifest.

    `uid` is the attempt or user's operation that stored it, and part of its objects' names (rule 8): a fork and a
    restore keep the first one's.
    """

    id: str
    manifest: str
    parent: str = ""
    files: int = 0
    bytes: int = 0
    uid: str = ""


class AttemptEnd(Record, frozen=True, kw_only=True):
    """An attempt, running (`state` RUNNING) or ended; messages are cut to 200 characters.

    `base`: the snapshot that it started from, "" for none. `resumed`: that was a checkpoint.
    """

    number: int
    uid: str
    node: str
    token: int = 0
    state: AttemptState = AttemptState.RUNNING
    reason: EndReason | None = None
    message: str = ""
    exit_code: int | None = None
    started: float = 0.0
    ended: float = 0.0
    log_end: int = 0
    base: str = ""
    resumed: bool = False


class Transition(Record, frozen=True, kw_only=True):
    """One line of a task's history."""

    time: float
    state: TaskState
    attempt: int = 0
    node: str = ""
    reason: EndReason | None = None
    message: str = ""
