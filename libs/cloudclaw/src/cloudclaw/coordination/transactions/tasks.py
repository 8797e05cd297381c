"""Transactions on a task that no attempt takes part in: submit, cancel, due."""

from __future__ import annotations

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Absent, Delete, Entry, Exists, Guard, Put, Write
from cloudclaw.coordination.records import QueueRecord, RequestRecord, TaskRecord, TaskState, decode, encode
from cloudclaw.coordination.transactions.store import (
    Store,
    owns_writer,
    task_key,
    tenant_deleted,
    version,
    waiting_key,
    waiting_put,
    writer_key,
)
from cloudclaw.coordination.transactions.types import Submission, Versioned
from cloudclaw.errors import AlreadyExistsError, NotFoundError, UnavailableError


class TaskTransactions(Store):
    """Submit, get, cancel and due."""

    async def submit(self, record: TaskRecord, spec: bytes, *, request_id: str = "", digest: str = "") -> Submission:
        """Store a QUEUED task with its spec, request and queue keys.

        `record.task` is a fresh id; `spec` is empty when `record.spec_object` is set. With `request_id`, an earlier
        submit of the same `digest` is answered (`created` False); of another digest raises
        `AlreadyExistsError(reason="REQUEST_ID_REUSED")`. Two at once with one id: one creates, both get that task.
        A request whose task is gone (archived) raises `NotFoundError` (metadata `task`). While the tenant is being
        deleted nothing is created: `PreconditionError(reason="TENANT_DELETED")`.
        """
        key, tombstone = task_key(record), keys.tombstone(record.tenant)
        guards: list[Guard] = [Absent(key), Absent(tombstone)]
        # `order` stays 0: the queue key's own create revision is the task's, and nobody knows it yet.
        queued = Put(waiting_key(record), encode(QueueRecord(priority=record.plan.priority)))
        writes: list[Write] = [Put(key, encode(record)), queued]
        if spec:
            writes.append(Put(keys.spec(record.tenant, record.task), spec))
        read = [key, tombstone]
        request = keys.request(record.tenant, request_id)
        if request_id:
            guards.append(Absent(request))
            writes.append(Put(request, encode(RequestRecord(task=record.task, digest=digest))))
            read.append(request)
        buried = False
        try:
            result = await self._kv.txn(guards, writes, read_on_failure=read)
        except UnavailableError:
            entry = await self._kv.get(key)
            earlier = None if entry is not None or not request_id else await self._kv.get(request)
            if entry is None and earlier is None:
                raise
        else:
            if result.succeeded:
                return Submission(Versioned(record, result.revision, result.revision), True)
            there = {entry.key: entry for entry in result.read}
            entry = there.get(key)
            earlier = there.get(request) if request_id else None
            buried = tombstone in there
        if entry is not None:
            # A fresh id is there only because this very submit arrived, or was sent before.
            if version(entry).record.created != record.created:
                raise AlreadyExistsError(f"{record.task} exists", reason="TASK_ID_TAKEN")
            return Submission(version(entry), True)
        if earlier is None and buried:
            raise tenant_deleted(record.tenant)
        if earlier is None:
            raise AlreadyExistsError(f"{record.task} was there for a moment", reason="TASK_ID_TAKEN")
        return await self._earlier(record.tenant, request_id, digest, earlier)

    async def _earlier(self, tenant: str, request_id: str, digest: str, entry: Entry) -> Submission:
        request = decode(entry.value, RequestRecord)
        if request.digest != digest:
            raise AlreadyExistsError(
                f"request id {request_id!r} was used for another request body; choose a new id",
                reason="REQUEST_ID_REUSED",
                metadata={"task": request.task},
            )
        task = await self.get_task(tenant, request.task)
        if task is None:
            raise NotFoundError(f"the task of request {request_id!r} is gone", metadata={"task": request.task})
        return Submission(task, False)

    async def get_task(self, tenant: str, task: str) -> Versioned[TaskRecord] | None:
        """The task now (linearizable)."""
        entry = await self._kv.get(keys.task(tenant, task))
        return None if entry is None else version(entry)

    async def get_spec(self, tenant: str, task: str) -> bytes | None:
        """The inline spec, or None."""
        entry = await self._kv.get(keys.spec(tenant, task))
        return None if entry is None else entry.value

    async def cancel(self, task: Versioned[TaskRecord], after: TaskRecord) -> Versioned[TaskRecord]:
        """Queued or delayed: CANCELED, − queue / − delayed, − writer if own. Running: `cancel_requested`.

        Also the way to end a queued task otherwise (queue timeout, workspace gone). Guards: task unchanged.
        """
        before = task.record
        writes: list[Write] = []
        if before.state is TaskState.QUEUED and after.state.ended:
            writes.append(Delete(waiting_key(before)))
            if owns_writer(before):
                writes.append(Delete(writer_key(before)))
        elif not before.state is after.state is TaskState.RUNNING:
            raise ValueError(f"{before.state} does not become {after.state} by a cancel")
        return await self._change(task, after, (), writes)

    async def due(self, leadership: Guard, task: Versioned[TaskRecord], after: TaskRecord) -> Versioned[TaskRecord]:
        """Move a delayed task (`due` > 0) to the queue (`after.due` 0). Guards: leadership; task unchanged; delayed
        key exists."""
        delayed = waiting_key(task.record)
        return await self._change(
            task,
            after,
            [Exists(delayed)],
            [Delete(delayed), waiting_put(after, task.create_revision)],
            leadership=leadership,
        )
