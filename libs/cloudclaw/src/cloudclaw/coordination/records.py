"""The values of the keys, as JSON: small, typed, and readable with `etcdctl`.

Times are seconds since the epoch by the writer's clock, for people and timers, never for safety.
Records are immutable; a change is a new record (`msgspec.structs.replace`).
"""

from __future__ import annotations

import base64
import functools
import zlib
from collections.abc import Sequence
from typing import Final, TypeVar, cast

import msgspec

from cloudclaw.coordination.parts import AttemptEnd as AttemptEnd
from cloudclaw.coordination.parts import ModelLimits as ModelLimits
from cloudclaw.coordination.parts import Plan as Plan
from cloudclaw.coordination.parts import Record as Record
from cloudclaw.coordination.parts import SnapshotPointer as SnapshotPointer
from cloudclaw.coordination.parts import Transition as Transition
from cloudclaw.coordination.states import AttemptState as AttemptState
from cloudclaw.coordination.states import EndReason as EndReason
from cloudclaw.coordination.states import Mode as Mode
from cloudclaw.coordination.states import TaskState as TaskState
from cloudclaw.coordination.usage import ModelUse as ModelUse
from cloudclaw.coordination.usage import Usage as Usage
from cloudclaw.errors import DataLossError

MAX_EVENTS: Final = 64
MAX_TASK_BYTES: Final = 8 * 1024
MAX_INLINE_SPEC: Final = 4 * 1024
MAX_MESSAGE: Final = 200
PAGE: Final = 32
"""Attempts of a conversation that are moved out of its record at a time."""
UNPACKED_ATTEMPTS: Final = 2
"""As many of the latest attempts stay readable when the others are packed."""


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
        attempts: all attempts that still count, oldest first; while RUNNING the last one is the current. Of a
            conversation only the latest: it may have a thousand.
        earlier: of a conversation, attempts before these, which have keys of their own: `PAGE` in each.
        earlier_log: bytes of log of those, all together.
        due: while QUEUED in `delayed`, when it may run; 0 when it is in `queue`.
        queued: when it last entered the queue (queue timeout).
        spec_object: object that holds the spec when it is over 4 KiB; empty when inline.
        result: `cloudclaw.v1.Result` as bytes in base64 when small enough, else empty.
        result_object: object that holds it otherwise.
            Of a conversation what it said last is kept here already, once it was parked or its checkpoint holds it.
        parked_since: while it waits for input and holds no slot, since when; then `due` is set too. 0 otherwise.
        inputs: inputs that have a number, and so are to be delivered: 1 to this one.
        inputs_done: the checkpoint contains all up to this number.
        answered: the checkpoint contains the answers to all of them.
        beyond: what the running attempt has to go beyond, to bring anything new: `inputs_done` as it began. -1 when it
            was given nothing to answer but the prompt, or what comes while it runs.
        later: further inputs, which get their numbers when they are due.
        later_due: when the first of these is; 0 without any.
        waiting: bytes of inputs that may be in no checkpoint yet; 0 again once all of them are in one.
        closing: no more input is taken.
        session: the agent's session that the checkpoint contains; after the end, that the result names.
        usage, model_use: of ended attempts, all together. None: nothing was reported.
        usage_now, model_use_now: of the running attempt, up to its last checkpoint: what counts when it is lost.
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
    parked_since: float = 0.0
    inputs: int = 0
    inputs_done: int = 0
    answered: bool = False
    beyond: int = -1
    later: int = 0
    later_due: float = 0.0
    waiting: int = 0
    closing: bool = False
    session: str = ""
    usage: Usage | None = None
    usage_now: Usage | None = None
    model_use: ModelUse | None = None
    model_use_now: ModelUse | None = None
    earlier: int = 0
    earlier_log: int = 0

    @property
    def parked(self) -> bool:
        """It waits for input, and holds no slot."""
        return self.parked_since > 0.0

    @property
    def closes(self) -> bool:
        """It ends with the answer to the inputs that have a number: none is to come any more."""
        return self.closing and not self.later

    @property
    def asks(self) -> bool:
        """There is something to do for an agent: an input that the checkpoint does not contain, or the end."""
        return self.inputs > self.inputs_done or self.closes


class InputRecord(Record, frozen=True, kw_only=True):
    """`inputs/{t}/{task}/{message_id}`: a user's message to a conversation.

    Attributes:
        op_id: of the transaction that accepted it.
        digest: hex SHA-256 of what was sent under this id.
        number: its place among the task's inputs, from 1; 0 while it is not due, and for a mere end.
        due: when it is to be delivered; 0 for at once.
        text: up to 4 KiB of it, "" when an object holds it.
        object: name of the object that does.
        end: it only closed the conversation, and has no text.
    """

    op_id: str
    digest: str
    created: float
    number: int = 0
    due: float = 0.0
    text: str = ""
    object: str = ""
    end: bool = False

    @property
    def waits(self) -> bool:
        """It is not due yet, and so has no number."""
        return self.due > 0.0 and not self.number


class ModelKeyRecord(Record, frozen=True, kw_only=True):
    """`modelkeys/{t}/{upstream}`: the tenant's key for an upstream, sealed; `hint`: its last characters."""

    sealed: str
    hint: str = ""
    updated: float = 0.0


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
    labels: dict[str, str] = msgspec.field(default_factory=dict)
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


def encode_page(attempts: Sequence[AttemptEnd]) -> bytes:
    """The value of a key in `earlier/`: attempts, packed."""
    return _ENCODER.encode({"packed": _packed(attempts)})


@functools.lru_cache(maxsize=256)
def decode_page(data: bytes) -> tuple[AttemptEnd, ...]:
    """The attempts of such a key. `DataLossError`."""
    try:
        return _unpacked(msgspec.json.decode(data)["packed"])
    except (msgspec.DecodeError, zlib.error, ValueError, LookupError, TypeError) as error:
        raise DataLossError(f"attempts in etcd cannot be read: {error}") from error


def _packed(attempts: Sequence[AttemptEnd]) -> str:
    columns = _ENCODER.encode([[getattr(attempt, name) for attempt in attempts] for name in _COLUMNS])
    return base64.b85encode(zlib.compress(columns, 9)).decode()


def _unpacked(packed: str) -> tuple[AttemptEnd, ...]:
    columns = msgspec.json.decode(zlib.decompress(base64.b85decode(packed)), type=_PackedAttempts)
    columns.resumed.extend([False] * (len(columns.number) - len(columns.resumed)))
    rows = zip(*(getattr(columns, name) for name in _COLUMNS), strict=True)
    return tuple(AttemptEnd(**dict(zip(_COLUMNS, row, strict=True))) for row in rows)


def _pack(task: TaskRecord) -> TaskRecord:
    old, kept = task.attempts[:-UNPACKED_ATTEMPTS], task.attempts[-UNPACKED_ATTEMPTS:]
    return msgspec.structs.replace(task, attempts=kept, packed=_packed(old))


def _unpack(task: TaskRecord) -> TaskRecord:
    return msgspec.structs.replace(task, attempts=_unpacked(task.packed) + task.attempts, packed="")


_COLUMNS: Final = _PackedAttempts.__struct_fields__
