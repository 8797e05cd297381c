"""Transactions on conversations: a message is accepted, an attempt parks, a parked task wakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Absent, Delete, Exists, Guard, ModIs, Put, ValueIs, Write
from cloudclaw.coordination.records import (
    PAGE,
    InputRecord,
    SnapshotPointer,
    TaskRecord,
    TaskState,
    decode,
    encode,
    encode_page,
)
from cloudclaw.coordination.transactions.store import (
    Found,
    Store,
    waiting_key,
    waiting_put,
    writer_key,
    writer_lost,
    writer_value,
)
from cloudclaw.coordination.transactions.types import Token, Versioned
from cloudclaw.errors import AbortedError, AlreadyExistsError

INPUTS_PER_TRANSACTION: Final = 50
"""Inputs that become due by one transaction at most."""


class ConversationTransactions(Store):
    """Inputs of tasks, and tasks that wait for them."""

    async def get_input(self, tenant: str, task: str, message_id: str) -> Versioned[InputRecord] | None:
        """The message that was accepted under this id, or None (linearizable)."""
        entry = await self._kv.get(keys.input_(tenant, task, message_id))
        if entry is None:
            return None
        return Versioned(decode(entry.value, InputRecord), entry.create_revision, entry.mod_revision)

    async def send_input(
        self, task: Versioned[TaskRecord], after: TaskRecord, message_id: str, record: InputRecord
    ) -> Versioned[TaskRecord]:
        """Accept a message (`conversation.sent`), under an id that no message of the task has.

        Guards: task unchanged; the id's key absent. Writes: task; input; for a parked task that wakes, or is due at
        another time now, − delayed and its new waiting key. `AlreadyExistsError(reason="MESSAGE_ID_TAKEN")` when the id
        is known by now, by whatever was sent: read it.
        """
        before = task.record
        if before.state.ended or after.state is not before.state or record.op_id != after.op_id:
            raise ValueError("an input changes no task's state, and is written with its task")
        key = keys.input_(before.tenant, before.task, message_id)

        def explain(there: Found) -> AlreadyExistsError | None:
            return _taken(message_id) if key in there else None

        try:
            return await self._change(
                task,
                after,
                [Absent(key)],
                [Put(key, encode(record)), *_move(task, after)],
                explain=explain,
                explain_by=[key],
            )
        except AbortedError:
            # Changed since, perhaps by this very message, whose answer was lost before others came.
            if await self._kv.get(key) is not None:
                raise _taken(message_id) from None
            raise

    async def came_due(
        self,
        leadership: Guard,
        task: Versioned[TaskRecord],
        after: TaskRecord,
        inputs: Sequence[tuple[str, Versioned[InputRecord], InputRecord]],
    ) -> Versioned[TaskRecord]:
        """Delayed inputs get their numbers (`conversation.came_due`). `inputs`: message id, as read, as it is to be.

        Guards: leadership; task unchanged; the inputs unchanged; for a parked task delayed exists. Writes: task;
        inputs; for a parked task − delayed and queue. At most `INPUTS_PER_TRANSACTION`.
        """
        before = task.record
        numbers = [new.number for _, _, new in inputs]
        if numbers != list(range(before.inputs + 1, after.inputs + 1)) or len(numbers) > INPUTS_PER_TRANSACTION:
            raise ValueError(f"inputs {numbers} do not follow {before.inputs} up to {after.inputs}")
        guards: list[Guard] = [Exists(waiting_key(before))] if before.parked else []
        writes: list[Write] = _move(task, after)
        for message_id, old, new in inputs:
            key = keys.input_(before.tenant, before.task, message_id)
            guards.append(ModIs(key, old.mod_revision))
            writes.append(Put(key, encode(new)))
        return await self._change(task, after, guards, writes, leadership=leadership)

    async def idled(self, leadership: Guard, task: Versioned[TaskRecord], after: TaskRecord) -> Versioned[TaskRecord]:
        """A parked task enters the queue to be closed (`conversation.idled`). Guards: leadership; task unchanged;
        delayed exists. Writes: task; queue; − delayed."""
        if not task.record.parked or after.parked:
            raise ValueError("only a parked task idles, and then it is parked no more")
        guards = [Exists(waiting_key(task.record))]
        return await self._change(task, after, guards, _move(task, after), leadership=leadership)

    async def park(
        self, token: Token, task: Versioned[TaskRecord], after: TaskRecord, snapshot: SnapshotPointer
    ) -> Versioned[TaskRecord]:
        """End an attempt that waits for input by its holder's report (`conversation.parked`).

        Guards: token; task unchanged; with `task.record.plan.writes`: writer own. Writes: task; − attempt key; delayed
        or queue (writer kept), or when it ended − writer; `earlier` for attempts that `after` has no more; for a task
        with a workspace the snapshot's key, and − the key of the checkpoint before it. `FencedError` when the token or
        the writer is gone; `AbortedError` when only the task changed (an input came, a cancel): read again.
        """
        before = task.record
        if after.checkpoint != snapshot or after.state not in (TaskState.QUEUED, TaskState.FAILED):
            raise ValueError("a parked attempt leaves its snapshot as the checkpoint of a task that goes on")
        guards, writes = await self._replace_snapshot(before, after, snapshot, before.checkpoint)
        if after.earlier > before.earlier:
            page = keys.earlier(before.tenant, before.task, before.earlier // PAGE)
            writes.append(Put(page, encode_page(before.attempts[:PAGE])))
        explain_by: list[str] = []
        if before.plan.writes:
            guards.append(ValueIs(writer_key(before), writer_value(before.task)))
            explain_by.append(writer_key(before))
        return await self._change(
            task,
            after,
            guards,
            [*self._leave(task, after, token), *writes],
            token=token,
            explain=lambda there: writer_lost(before, there),
            explain_by=explain_by,
        )


def _move(task: Versioned[TaskRecord], after: TaskRecord) -> list[Write]:
    """What takes a parked task from where it waits to where it waits now; nothing when that is the same."""
    before = task.record
    if not before.parked or waiting_key(before) == waiting_key(after):
        return []
    return [Delete(waiting_key(before)), waiting_put(after, task.create_revision)]


def _taken(message_id: str) -> AlreadyExistsError:
    return AlreadyExistsError(f"a message {message_id!r} was sent before", reason="MESSAGE_ID_TAKEN")
