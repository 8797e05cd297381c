"""Every guarded transaction of design §5, and nothing else writes those keys.

Each function sends one transaction, once. Where the outcome is unknown it reads the task back and looks for its
own `op_id` (rule 1), until `UnavailableError` says that even the read did not get through; the caller then knows
nothing and reconciles from what it sees later. A guard that does not hold raises `AbortedError` (something changed:
read again) or `FencedError` (the token is no longer valid), unless the docstring says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from cloudclaw.coordination.port import CreateIs, Entry, Guard, KeyValue
from cloudclaw.coordination.records import (
    AttemptEnd,
    NodeRecord,
    SnapshotPointer,
    TaskRecord,
    WorkspaceRecord,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Versioned(Generic[T]):
    """A record and the revisions it was read at."""

    record: T
    create_revision: int
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Submission:
    """Outcome of a submit: the task as stored, and whether this call created it."""

    task: Versioned[TaskRecord]
    created: bool


@dataclass(frozen=True, slots=True)
class Token:
    """The fencing token of one attempt: the create revision of its lease key.

    `guard` is the compare that every protected transaction carries.
    """

    node: str
    tenant: str
    task: str
    revision: int

    def guard(self) -> CreateIs:
        raise NotImplementedError


class Transactions:
    """The transactions over one store.

    Leadership guards are passed in by the leader (`Leadership.guard()`), so that a leader that lost its term can
    write nothing.
    """

    def __init__(self, kv: KeyValue) -> None:
        self._kv = kv

    # -- tasks, by the scheduler --

    async def submit(self, record: TaskRecord, spec: bytes, *, request_id: str = "", digest: str = "") -> Submission:
        """Store a QUEUED task with its spec, request and queue keys.

        `record.task` is a fresh id; `spec` is empty when `record.spec_object` is set. With `request_id`, an earlier
        submit of the same `digest` is answered (`created` False); of another digest raises
        `AlreadyExistsError(reason="REQUEST_ID_REUSED")`. Two at once with one id: one creates, both get that task.
        """
        raise NotImplementedError

    async def get_task(self, tenant: str, task: str) -> Versioned[TaskRecord] | None:
        """The task now (linearizable)."""
        raise NotImplementedError

    async def get_spec(self, tenant: str, task: str) -> bytes | None:
        """The inline spec, or None."""
        raise NotImplementedError

    async def claim(
        self,
        leadership: Guard,
        task: Versioned[TaskRecord],
        claimed: TaskRecord,
        node: Entry,
        *,
        workspace: Entry | None,
    ) -> Versioned[TaskRecord]:
        """Make `claimed` (RUNNING, with `uid`, `node`, attempt raised, last of `attempts` the new one) of `task`.

        Guards: leadership; task unchanged; queue key exists; attempt key absent; node's key still of the lease and
        create revision of `node`; for an exclusive workspace the writer key absent or this task's own, and, on
        taking it, the workspace unchanged since `workspace` was read. Writes: task; attempt key on `node.lease`;
        writer; − queue. The token is the answer's `mod_revision`.
        """
        raise NotImplementedError

    async def unclaim(
        self, leadership: Guard, token: Token, task: Versioned[TaskRecord], queued: TaskRecord
    ) -> Versioned[TaskRecord]:
        """Give an attempt back that never started: queue again, attempt number − 1, − attempt key, − writer when it
        was the first claim."""
        raise NotImplementedError

    async def expire(self, leadership: Guard, task: Versioned[TaskRecord], after: TaskRecord) -> Versioned[TaskRecord]:
        """The attempt's key is gone. `after` is QUEUED with `due` set (→ delayed; writer kept) or ended (− writer).

        Guards: leadership; attempt key of `task.record.node` absent AND task unchanged.
        """
        raise NotImplementedError

    async def requeue_early(
        self,
        leadership: Guard,
        token: Token,
        task: Versioned[TaskRecord],
        after: TaskRecord,
        node: Entry | None,
    ) -> Versioned[TaskRecord]:
        """As `expire`, for a node seen silent: also − attempt key. Guards: leadership; token; task unchanged; the
        node's key unchanged since `node` was read (or still absent)."""
        raise NotImplementedError

    async def finish(
        self,
        token: Token,
        task: Versioned[TaskRecord],
        after: TaskRecord,
        *,
        snapshot: SnapshotPointer | None = None,
        move_head: bool = False,
    ) -> Versioned[TaskRecord]:
        """End an attempt by its holder's report: `after` is ended, or QUEUED with `due` for a retry (writer kept).

        Guards: token; task unchanged; with `task.record.plan.writes`: writer own; with `move_head`: workspace head =
        `task.record.base`. Writes: task; − attempt key; when ended − writer; with `snapshot` its key; with
        `move_head` the workspace's new head and generation + 1. Success and head move together or not at all.
        Raises `FencedError` when the token or writer is gone, `AbortedError` when only the task changed (cancel
        requested meanwhile: read again), `PreconditionError(reason="HEAD_MOVED")`.
        """
        raise NotImplementedError

    async def checkpoint(
        self, token: Token, task: Versioned[TaskRecord], after: TaskRecord, snapshot: SnapshotPointer
    ) -> Versioned[TaskRecord]:
        """Record a snapshot from which the next attempt starts. Guards: token; task unchanged."""
        raise NotImplementedError

    async def cancel(self, task: Versioned[TaskRecord], after: TaskRecord) -> Versioned[TaskRecord]:
        """Queued or delayed: CANCELED, − queue / − delayed, − writer if own. Running: `cancel_requested`.

        Also the way to end a queued task otherwise (queue timeout, workspace gone). Guards: task unchanged.
        """
        raise NotImplementedError

    async def due(self, leadership: Guard, task: Versioned[TaskRecord], after: TaskRecord) -> Versioned[TaskRecord]:
        """Move a delayed task (`due` > 0) to the queue (`after.due` 0). Guards: leadership; task unchanged; delayed
        key exists."""
        raise NotImplementedError

    # -- nodes --

    async def register_node(self, record: NodeRecord, lease: int) -> Versioned[NodeRecord]:
        """Put `nodes/{n}` on `lease` with incarnation + 1 of what is there.

        A key on another, living lease raises `PreconditionError(reason="NODE_ID_TAKEN")`: two pool-managers with
        one node id. A key on the same lease is our own, from before a restart.
        """
        raise NotImplementedError

    async def touch_node(self, record: NodeRecord, lease: int, create_revision: int) -> Versioned[NodeRecord]:
        """Put the node's record again so that its mod_revision moves (rule 3 contact, rule 4). Guards: still our
        key (create revision) and incarnation; else `FencedError`."""
        raise NotImplementedError

    async def attempts_of(self, node: str) -> list[tuple[Token, AttemptEnd]]:
        """What `attempts/{n}/` holds (number and uid filled in), for adoption and reconciliation."""
        raise NotImplementedError

    async def token_valid(self, token: Token, uid: str) -> bool:
        """Linearizable: the attempt's key is there, with this create revision and uid."""
        raise NotImplementedError

    # -- workspaces --

    async def create_workspace(
        self, tenant: str, record: WorkspaceRecord, *, snapshot: SnapshotPointer | None = None
    ) -> Versioned[WorkspaceRecord]:
        """A new workspace, with a snapshot key for its head when forked. `AlreadyExistsError`."""
        raise NotImplementedError

    async def get_workspace(self, tenant: str, name: str) -> Versioned[WorkspaceRecord] | None:
        """The workspace now."""
        raise NotImplementedError

    async def acquire_writer(self, tenant: str, workspace: str, operation: str, lease: int) -> int:
        """Take the writer key for a user's operation (`user:<operation>`), on a lease so that a crash frees it.

        Answers the key's create revision (its fencing token). `AbortedError(reason="WRITER_BUSY")` naming the
        holder; `NotFoundError` when there is no such workspace.
        """
        raise NotImplementedError

    async def commit_workspace(
        self,
        tenant: str,
        workspace: Versioned[WorkspaceRecord],
        after: WorkspaceRecord,
        snapshot: SnapshotPointer,
        writer_token: int,
    ) -> Versioned[WorkspaceRecord]:
        """A user's write: new head, snapshot key, − writer. Guards: workspace unchanged; writer key with this create
        revision (`FencedError`)."""
        raise NotImplementedError

    async def release_writer(self, tenant: str, workspace: str, writer_token: int) -> None:
        """Give the writer key back without a commit; one that is not ours any more is left alone."""
        raise NotImplementedError

    async def delete_workspace(self, tenant: str, workspace: Versioned[WorkspaceRecord]) -> None:
        """Remove the workspace and its snapshot keys. Guards: workspace unchanged; writer absent
        (`PreconditionError(reason="WRITER_BUSY")`). Over 100 snapshots: the workspace first, then the rest."""
        raise NotImplementedError
