"""How one guarded transaction on a task is sent, and what is made of its outcome (rule 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import CreateIs, Delete, Entry, Guard, KeyValue, ModIs, Put, TxnResult, Write
from cloudclaw.coordination.records import (
    QueueRecord,
    SnapshotPointer,
    SnapshotRecord,
    TaskRecord,
    TaskState,
    WriterRecord,
    decode,
    encode,
)
from cloudclaw.coordination.transactions.types import Token, Versioned
from cloudclaw.errors import AbortedError, CloudClawError, FencedError, PreconditionError, UnavailableError

Found = Mapping[str, Entry]
"""What was there of the keys that a refused transaction asked for."""


def version(entry: Entry) -> Versioned[TaskRecord]:
    """The task in `entry`."""
    return Versioned(decode(entry.value, TaskRecord), entry.create_revision, entry.mod_revision)


def task_key(task: TaskRecord) -> str:
    """`tasks/{t}/{task}`."""
    return keys.task(task.tenant, task.task)


def waiting_key(task: TaskRecord) -> str:
    """Where a QUEUED task waits: its key in `delayed` when `due` is set, else in `queue`."""
    pool = task.plan.pool
    if task.due:
        return keys.delayed(pool, round(task.due * 1000), task.tenant, task.task)
    return keys.queue(pool, task.tenant, task.task)


def waiting_put(task: TaskRecord, order: int) -> Put:
    """The write that makes a QUEUED task wait. `order`: the task key's create revision."""
    return Put(waiting_key(task), encode(QueueRecord(priority=task.plan.priority, order=order)))


def snapshot_key(task: TaskRecord, snapshot: SnapshotPointer) -> str:
    """The key of `snapshot` in the task's workspace."""
    return keys.snapshot(task.tenant, task.plan.workspace, snapshot.id)


def writer_key(task: TaskRecord) -> str:
    """The writer key of the task's workspace."""
    return keys.writer(task.tenant, task.plan.workspace)


def writer_value(holder: str) -> bytes:
    """The writer key's value for this task or `user:<operation>`."""
    return encode(WriterRecord(holder=holder))


def owns_writer(task: TaskRecord) -> bool:
    """The task holds its workspace's writer key: from its first claim that counts, to its end."""
    return task.plan.writes and task.attempt > 0


def writer_lost(task: TaskRecord, there: Found) -> FencedError | None:
    """The refusal of what a task does that does not hold its workspace's writer key any more; None when it needs none,
    or holds it."""
    if not task.plan.writes:
        return None
    held = there.get(writer_key(task))
    if held is None or held.value != writer_value(task.task):
        return FencedError(f"{task.task} no longer owns workspace {task.plan.workspace!r}")
    return None


class Store:
    """One key-value store, and the way tasks are changed in it."""

    def __init__(self, kv: KeyValue) -> None:
        self._kv = kv

    async def _change(
        self,
        task: Versioned[TaskRecord],
        after: TaskRecord,
        guards: Sequence[Guard],
        writes: Sequence[Write],
        *,
        leadership: Guard | None = None,
        token: Token | None = None,
        explain: Callable[[Found], CloudClawError | None] | None = None,
        explain_by: Sequence[str] = (),
    ) -> Versioned[TaskRecord]:
        """Write `after` over `task` with `writes`, if the task is unchanged and all guards hold.

        Sent once. After an unknown outcome the task is read back. A refusal is answered as success when the task
        already has this `op_id` (sent twice), else raised by the guard that failed: the token first, then
        leadership, then what `explain` makes of the keys `explain_by`, then the task itself.
        """
        key = task_key(task.record)
        all_guards: list[Guard] = [ModIs(key, task.mod_revision), *guards]
        read = [key, *explain_by]
        if leadership is not None:
            all_guards.append(leadership)
            read.append(leadership.key)
        if token is not None:
            all_guards.append(token.guard())
            read.append(token.key)
        try:
            result = await self._kv.txn(all_guards, [Put(key, encode(after)), *writes], read_on_failure=read)
        except UnavailableError as error:
            return await self._read_back(task, after, error)
        if result.succeeded:
            return Versioned(after, task.create_revision, result.revision)
        return _settle(task, after, found(result), leadership, token, explain)

    async def _settle_now(
        self,
        task: Versioned[TaskRecord],
        after: TaskRecord,
        *,
        token: Token,
        refusal: CloudClawError,
    ) -> Versioned[TaskRecord]:
        """As a refused `_change`, for a guard that was seen not to hold before anything was sent."""
        entries = [await self._kv.get(key) for key in (task_key(task.record), token.key)]
        there = {entry.key: entry for entry in entries if entry is not None}
        return _settle(task, after, there, None, token, lambda _: refusal)

    async def _replace_snapshot(
        self,
        task: TaskRecord,
        after: TaskRecord,
        new: SnapshotPointer | None,
        old: SnapshotPointer | None,
        *,
        head: bool = False,
    ) -> tuple[list[Guard], list[Write]]:
        """What lists `new` among the snapshots of the task's workspace, and takes the checkpoint `old` off the list.
        `head`: it becomes the workspace's head.

        Nothing for a task without a workspace: its record alone keeps its checkpoint. An unchanged tree is stored as
        the snapshot that it came from, so what the list already has is neither written again (but for a checkpoint that
        becomes the head) nor, when it is not this task's own, removed. A workspace that the task does not own may be
        deleted at any time; what would then be left of it in the list nobody could remove, so nothing is added to it.
        """
        if not task.plan.workspace:
            return [], []
        guards: list[Guard] = []
        writes: list[Write] = []
        listed = {pointer.id for pointer in (task.base, None if head else old) if pointer is not None}
        if new is not None and new.id not in listed:
            there = None
            if not task.plan.writes:
                key = keys.workspace(task.tenant, task.plan.workspace)
                there = await self._kv.get(key)
                if there is not None:
                    guards.append(CreateIs(key, there.create_revision))
            if task.plan.writes or there is not None:
                record = SnapshotRecord(pointer=new, created=after.updated, task=task.task, uid=task.uid, head=head)
                writes.append(Put(snapshot_key(task, new), encode(record)))
        kept = {pointer.id for pointer in (task.base, new) if pointer is not None}
        if old is not None and old.id not in kept:
            entry = await self._kv.get(snapshot_key(task, old))
            if entry is not None and decode(entry.value, SnapshotRecord).task == task.task:
                writes.append(Delete(entry.key))
        return guards, writes

    def _leave(self, task: Versioned[TaskRecord], after: TaskRecord, token: Token | None) -> list[Write]:
        """The writes by which a task stops running: − attempt key (of `token`), and waiting again or − writer."""
        if task.record.state is not TaskState.RUNNING or after.state is TaskState.RUNNING:
            raise ValueError(f"{task.record.state} does not become {after.state} by the end of an attempt")
        writes: list[Write] = [Delete(token.key)] if token is not None else []
        if after.state is TaskState.QUEUED:
            writes.append(waiting_put(after, task.create_revision))
        if owns_writer(task.record) and (after.state.ended or not owns_writer(after)):
            writes.append(Delete(writer_key(task.record)))
        return writes

    async def _read_back(
        self, task: Versioned[TaskRecord], after: TaskRecord, error: UnavailableError
    ) -> Versioned[TaskRecord]:
        """What became of a transaction whose answer was lost: success when its `op_id` is there.

        The task unchanged proves nothing (the transaction may still arrive), so that is the outage itself; trying
        again is safe, since only one of the two can find the task unchanged.
        """
        entry = await self._kv.get(task_key(task.record))
        if entry is not None:
            current = version(entry)
            if current.record.op_id == after.op_id:
                return current
            if current.mod_revision == task.mod_revision:
                raise error
        raise _changed(after)


def found(result: TxnResult) -> Found:
    """What a refused transaction read, by key."""
    return {entry.key: entry for entry in result.read}


def tenant_deleted(tenant: str) -> PreconditionError:
    """The tombstone of the tenant is there: nothing new of it is taken."""
    return PreconditionError(f"tenant {tenant!r} is being deleted", subject=tenant, reason="TENANT_DELETED")


def lease_lost(what: str) -> FencedError:
    """The lease that a write was to hang on is gone."""
    return FencedError(f"the lease of {what} is gone", reason="LEASE_LOST")


def _settle(
    task: Versioned[TaskRecord],
    after: TaskRecord,
    there: Found,
    leadership: Guard | None,
    token: Token | None,
    explain: Callable[[Found], CloudClawError | None] | None,
) -> Versioned[TaskRecord]:
    entry = there.get(task_key(after))
    if entry is not None:
        current = version(entry)
        if current.record.op_id == after.op_id:
            return current
    if token is not None:
        held = there.get(token.key)
        if held is None or held.create_revision != token.revision:
            raise FencedError(
                f"the attempt of {after.task} on {token.node} with token {token.revision} does not hold its lease",
                metadata={"task": after.task, "token": str(token.revision)},
            )
    if isinstance(leadership, CreateIs):
        elected = there.get(leadership.key)
        if elected is None or elected.create_revision != leadership.revision:
            raise AbortedError("this replica does not lead any more", reason="NOT_LEADER")
    if explain is not None and entry is not None and entry.mod_revision == task.mod_revision:
        refusal = explain(there)
        if refusal is not None:
            raise refusal
    raise _changed(after)


def _changed(after: TaskRecord) -> AbortedError:
    return AbortedError(f"{after.task} changed meanwhile; read it again", metadata={"task": after.task})
