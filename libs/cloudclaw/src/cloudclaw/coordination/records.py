"""The values of the keys, as JSON: small, typed, and readable with `etcdctl`.

Times are seconds since the epoch by the writer's clock, for people and timers, never for safety.
Records are immutable; a change is a new record (`msgspec.structs.replace`).
"""

from __future__ import annotations

import enum
from typing import Final, TypeVar

import msgspec

from cloudclaw.errors import DataLossError

MAX_EVENTS: Final = 64
MAX_TASK_BYTES: Final = 8 * 1024
MAX_INLINE_SPEC: Final = 4 * 1024


class TaskState(enum.StrEnum):
    """Task states; names equal those of `cloudclaw.v1.TaskState` without its prefix."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"

    @property
    def ended(self) -> bool:
        return self in (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELED)


class AttemptState(enum.StrEnum):
    """Attempt states, as in `cloudclaw.v1.AttemptState`."""

    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"
    LOST = "LOST"


class Mode(enum.StrEnum):
    """Workspace modes, as in `cloudclaw.v1.WorkspaceMode`."""

    EXCLUSIVE = "EXCLUSIVE"
    FORK = "FORK"
    EPHEMERAL = "EPHEMERAL"


class EndReason(enum.StrEnum):
    """Why an attempt ended, as in `cloudclaw.v1.EndReason`."""

    COMPLETED = "COMPLETED"
    NONZERO_EXIT = "NONZERO_EXIT"
    KILLED_BY_SIGNAL = "KILLED_BY_SIGNAL"
    START_FAILED = "START_FAILED"
    CANCELED = "CANCELED"
    QUEUE_TIMEOUT = "QUEUE_TIMEOUT"
    RUN_TIMEOUT = "RUN_TIMEOUT"
    SILENCE_TIMEOUT = "SILENCE_TIMEOUT"
    MEMORY_LIMIT = "MEMORY_LIMIT"
    PIDS_LIMIT = "PIDS_LIMIT"
    DISK_LIMIT = "DISK_LIMIT"
    LOG_LIMIT = "LOG_LIMIT"
    NODE_LOST = "NODE_LOST"
    SLOT_FAILED = "SLOT_FAILED"
    WORKSPACE_FAILED = "WORKSPACE_FAILED"
    SNAPSHOT_FAILED = "SNAPSHOT_FAILED"
    WORKSPACE_GONE = "WORKSPACE_GONE"
    INTERNAL = "INTERNAL"


class Record(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Base of all records."""


class Plan(Record, frozen=True, kw_only=True):
    """What scheduling needs of the immutable spec, copied so that a task record stands alone.

    Durations are seconds; 0 means none (queue, silence, checkpoint).
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

    @property
    def writes(self) -> bool:
        """The task needs the workspace's writer key."""
        return bool(self.workspace) and self.mode is Mode.EXCLUSIVE


class SnapshotPointer(Record, frozen=True, kw_only=True):
    """A stored snapshot: id, and the digest (hex SHA-256) of its manifest."""

    id: str
    manifest: str
    parent: str = ""
    files: int = 0
    bytes: int = 0


class AttemptEnd(Record, frozen=True, kw_only=True):
    """An attempt, running (`state` RUNNING) or ended. At most 100 of them; messages are cut to 200 characters."""

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


class Transition(Record, frozen=True, kw_only=True):
    """One line of a task's history."""

    time: float
    state: TaskState
    attempt: int = 0
    node: str = ""
    reason: EndReason | None = None
    message: str = ""


class TaskRecord(Record, frozen=True, kw_only=True):
    """`tasks/{t}/{task}`; at most 8 KiB.

    Attributes:
        op_id: random id of the last writer's transaction (rule 1: read back after an unknown outcome).
        attempt: number of the current or last attempt, 0 before the first claim.
        uid, node: of the current attempt; empty unless RUNNING.
        base: snapshot that the workspace's head must still be at finish; None for an empty head.
        checkpoint: where the next attempt starts, once one was taken.
        attempts: all attempts that still count, oldest first; while RUNNING the last one is the current.
        due: while QUEUED in `delayed`, when it may run; 0 when it is in `queue`.
        queued: when it last entered the queue (queue timeout).
        spec_object: object that holds the spec when it is over 4 KiB; empty when inline.
        result: `cloudclaw.v1.Result` as bytes in base64 when small enough, else empty.
        result_object: object that holds it otherwise.
    """

    tenant: str
    task: str
    plan: Plan
    created: float
    op_id: str
    state: TaskState = TaskState.QUEUED
    updated: float = 0.0
    queued: float = 0.0
    due: float = 0.0
    attempt: int = 0
    uid: str = ""
    node: str = ""
    cancel_requested: bool = False
    base: SnapshotPointer | None = None
    checkpoint: SnapshotPointer | None = None
    attempts: tuple[AttemptEnd, ...] = ()
    events: tuple[Transition, ...] = ()
    spec_object: str = ""
    result: str = ""
    result_object: str = ""


class RequestRecord(Record, frozen=True, kw_only=True):
    """`requests/{t}/{request}`: the task that it made, and the hash of the body."""

    task: str
    digest: str


class QueueRecord(Record, frozen=True, kw_only=True):
    """`queue/…` and `delayed/…`. `order` is the task key's create revision, 0 while still unknown (first
    submit: the queue key's own create revision is the same)."""

    priority: int = 0
    order: int = 0


class AttemptRecord(Record, frozen=True, kw_only=True):
    """`attempts/{n}/{t}/{task}`, put once."""

    number: int
    uid: str


class PoolSlots(Record, frozen=True, kw_only=True):
    """Slots of one pool on one node, and what its template offers."""

    pool: str
    slots: int
    runtimes: tuple[str, ...] = ("command",)
    backend: str = "bubblewrap"


class NodeRecord(Record, frozen=True, kw_only=True):
    """`nodes/{n}`, on the node's lease. `touched` changes with every touch, so that its mod_revision does."""

    node: str
    address: str
    incarnation: int
    pools: tuple[PoolSlots, ...] = ()
    labels: dict[str, str] = {}
    touched: float = 0.0


class WriterRecord(Record, frozen=True, kw_only=True):
    """`writers/{t}/{workspace}`: `task` or `user:<operation>`."""

    holder: str


class WorkspaceRecord(Record, frozen=True, kw_only=True):
    """`workspaces/{t}/{workspace}`."""

    name: str
    created: float
    updated: float
    op_id: str
    generation: int = 0
    head: SnapshotPointer | None = None


class SnapshotRecord(Record, frozen=True, kw_only=True):
    """`snapshots/{t}/{workspace}/{id}`."""

    pointer: SnapshotPointer
    created: float
    task: str = ""
    uid: str = ""


class LeaderRecord(Record, frozen=True, kw_only=True):
    """`election/{service}/{lease}`: where the candidate listens."""

    address: str


_R = TypeVar("_R", bound=Record)
_ENCODER: Final = msgspec.json.Encoder()


def encode(record: Record) -> bytes:
    """The record as JSON."""
    return _ENCODER.encode(record)


def decode(data: bytes, kind: type[_R]) -> _R:
    """The record of `kind`; raises `DataLossError` when the bytes are none."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise DataLossError(f"a {kind.__name__} in etcd cannot be read: {error}") from error
