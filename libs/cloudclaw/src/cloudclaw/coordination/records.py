"""The values of the keys, as JSON: small, typed, and readable with `etcdctl`.

Times are seconds since the epoch by the writer's clock, for people and timers, never for safety.
Records are immutable; a change is a new record (`msgspec.structs.replace`).
"""

from __future__ import annotations

import base64
import enum
import functools
import zlib
from typing import Final, TypeVar, cast

import msgspec

from cloudclaw.errors import DataLossError

MAX_EVENTS: Final = 64
MAX_TASK_BYTES: Final = 8 * 1024
MAX_INLINE_SPEC: Final = 4 * 1024
MAX_MESSAGE: Final = 200
UNPACKED_ATTEMPTS: Final = 2
"""As many of the latest attempts stay readable when the others are packed."""


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
    DRAINED = "DRAINED"
    MODEL_AUTHENTICATION = "MODEL_AUTHENTICATION"
    MODEL_RATE_LIMIT = "MODEL_RATE_LIMIT"
    MODEL_OVERLOADED = "MODEL_OVERLOADED"
    MODEL_CONTEXT = "MODEL_CONTEXT"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    MODEL_UNREACHABLE = "MODEL_UNREACHABLE"
    MODEL_FAILED = "MODEL_FAILED"
    TURN_LIMIT = "TURN_LIMIT"
    REQUEST_LIMIT = "REQUEST_LIMIT"
    TOKEN_LIMIT = "TOKEN_LIMIT"  # noqa: S105 - no password
    SPEND_LIMIT = "SPEND_LIMIT"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    BAD_CONFIGURATION = "BAD_CONFIGURATION"
    AGENT_FAILED = "AGENT_FAILED"
    PARKED = "PARKED"


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


class TaskRecord(Record, frozen=True, kw_only=True):
    """`tasks/{t}/{task}`; at most 8 KiB.

    Attributes:
        op_id: random id of the last writer's transaction (rule 1: read back after an unknown outcome).
        attempt: number of the current or last attempt, 0 before the first claim.
        uid, node: of the current attempt; empty unless RUNNING.
        base: snapshot that the workspace's head must still be at finish; None for an empty head.
        checkpoint: where the next attempt starts, once one was taken; None again after a success.
        checkpoint_time: when it was recorded.
        checkpoint_wanted: number of the latest request for a checkpoint, 0 for none yet.
        checkpoint_served: number of the latest request that was answered; below `checkpoint_wanted` the leader asks
            the node that runs the attempt (state, not a message: rule 5).
        checkpoint_failure: why the latest request came to nothing, "" when it did not fail.
        frozen: seconds that the processes stood still for the latest checkpoint.
        given_back: attempts that do not count against `max_attempts` (drained: rule 9).
        request: the client's request id, "" for none.
        attempts: all attempts that still count, oldest first; while RUNNING the last one is the current.
        due: while QUEUED in `delayed`, when it may run; 0 when it is in `queue`.
        queued: when it last entered the queue (queue timeout).
        spec_object: object that holds the spec when it is over 4 KiB; empty when inline.
        result: `cloudclaw.v1.Result` as bytes in base64 when small enough, else empty.
        result_object: object that holds it otherwise.
        packed: written by `encode` and emptied by `decode`, for records that would be over 8 KiB: all but the
            latest attempts, compressed. Code never sees it.
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
    packed: str = ""
    checkpoint_time: float = 0.0
    checkpoint_wanted: int = 0
    checkpoint_served: int = 0
    checkpoint_failure: str = ""
    frozen: float = 0.0
    given_back: int = 0
    request: str = ""


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
    """`workspaces/{t}/{workspace}`. `keep_last`, `keep_daily`: retention of snapshots, 0 for the service's default."""

    name: str
    created: float
    updated: float
    op_id: str
    generation: int = 0
    head: SnapshotPointer | None = None
    keep_last: int = 0
    keep_daily: int = 0


class SnapshotRecord(Record, frozen=True, kw_only=True):
    """`snapshots/{t}/{workspace}/{id}`. `head`: it became the workspace's head, and so is one of its versions; others
    are checkpoints, and what tasks left that do not write to the workspace."""

    pointer: SnapshotPointer
    created: float
    task: str = ""
    uid: str = ""
    head: bool = False


class ConsumerRecord(Record, frozen=True, kw_only=True):
    """`consumers/{t}/{consumer}`: which results a consumer has acknowledged.

    Attributes:
        cursor: every result that ended at or before this revision is acknowledged.
        acked: revisions after `cursor` that are too, ascending; at most 1000, since no more are delivered before the
            oldest is acknowledged.
    """

    created: float
    updated: float
    op_id: str
    cursor: int = 0
    acked: tuple[int, ...] = ()


class DeliveryRecord(Record, frozen=True, kw_only=True):
    """`deliveries/{t}/{consumer}/{task}`, on a lease whose TTL is the visibility timeout: while the key is there the
    result is not delivered again. `revision`: of the task's end."""

    revision: int


class TombstoneRecord(Record, frozen=True, kw_only=True):
    """`tombstones/{t}`: the tenant is being deleted; its submits are refused while the key is there.

    `sealed`: nothing of the tenant worked any more under this tombstone, so its deletion began; it is never taken
    back, and goes with the last of the tenant's keys.
    """

    created: float
    sealed: bool = False


class LeaderRecord(Record, frozen=True, kw_only=True):
    """`election/{service}/{lease}`: where the candidate listens."""

    address: str


_R = TypeVar("_R", bound=Record)
_ENCODER: Final = msgspec.json.Encoder()


class _PackedAttempts(msgspec.Struct, frozen=True, array_like=True):
    """Attempts by column: alike values side by side compress to half of what rows do."""

    number: list[int]
    uid: list[str]
    node: list[str]
    token: list[int]
    state: list[AttemptState]
    reason: list[EndReason | None]
    message: list[str]
    exit_code: list[int | None]
    started: list[float]
    ended: list[float]
    log_end: list[int]
    base: list[str]
    resumed: list[bool] = []
    """Empty in records that were packed before attempts said this."""


@functools.cache
def _decoder(kind: type[_R]) -> msgspec.json.Decoder[_R]:
    return msgspec.json.Decoder(kind)


def encode(record: Record) -> bytes:
    """The record as JSON. A task's older attempts are packed when it would be over `MAX_TASK_BYTES`."""
    data = _ENCODER.encode(record)
    if len(data) > MAX_TASK_BYTES and isinstance(record, TaskRecord) and len(record.attempts) > UNPACKED_ATTEMPTS:
        return _ENCODER.encode(_pack(record))
    return data


def decode(data: bytes, kind: type[_R]) -> _R:
    """The record of `kind`; raises `DataLossError` when the bytes are none."""
    try:
        record: Record = _decoder(kind).decode(data)
        if isinstance(record, TaskRecord) and record.packed:
            record = _unpack(record)
    except (msgspec.DecodeError, zlib.error, ValueError) as error:
        raise DataLossError(f"a {kind.__name__} in etcd cannot be read: {error}") from error
    return cast(_R, record)


def _pack(task: TaskRecord) -> TaskRecord:
    old, kept = task.attempts[:-UNPACKED_ATTEMPTS], task.attempts[-UNPACKED_ATTEMPTS:]
    columns = _ENCODER.encode([[getattr(attempt, name) for attempt in old] for name in _COLUMNS])
    packed = base64.b85encode(zlib.compress(columns, 9)).decode()
    return msgspec.structs.replace(task, attempts=kept, packed=packed)


def _unpack(task: TaskRecord) -> TaskRecord:
    columns = msgspec.json.decode(zlib.decompress(base64.b85decode(task.packed)), type=_PackedAttempts)
    columns.resumed.extend([False] * (len(columns.number) - len(columns.resumed)))
    rows = zip(*(getattr(columns, name) for name in _COLUMNS), strict=True)
    old = tuple(AttemptEnd(**dict(zip(_COLUMNS, row, strict=True))) for row in rows)
    return msgspec.structs.replace(task, attempts=old + task.attempts, packed="")


_COLUMNS: Final = _PackedAttempts.__struct_fields__
