"""Transactions on attempts: claim, unclaim, finish, expire, early requeue, adoption."""

from __future__ import annotations

from msgspec.structs import replace

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import (
    Absent,
    CreateIs,
    Delete,
    Entry,
    Exists,
    Guard,
    LeaseLostError,
    ModIs,
    Put,
    ValueIs,
    Write,
)
from cloudclaw.coordination.records import (
    AttemptEnd,
    AttemptRecord,
    SnapshotPointer,
    TaskRecord,
    TaskState,
    WorkspaceRecord,
    WriterRecord,
    decode,
    encode,
)
from cloudclaw.coordination.transactions.store import (
    Found,
    Store,
    owns_writer,
    snapshot_key,
    writer_key,
    writer_lost,
    writer_value,
)
from cloudclaw.coordination.transactions.types import Token, Versioned
from cloudclaw.errors import AbortedError, CloudClawError, PreconditionError


class AttemptTransactions(Store):
    """What starts and ends attempts."""

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
        taking it, the workspace unchanged since `workspace` was read; for another mode of a named workspace, that
        the snapshot it starts from is still there, unless the task has kept it since an earlier claim. Writes: task;
        attempt key on `node.lease`; writer; − queue. The token is the answer's `mod_revision`.

        Besides the usual: `AbortedError` with reason `WRITER_BUSY` (metadata `holder`), `NODE_GONE` or
        `WORKSPACE_CHANGED`; `PreconditionError(reason="WORKSPACE_GONE")` when `workspace` is None and needed.
        """
        before = task.record
        queued = keys.queue(before.plan.pool, before.tenant, before.task)
        attempt = keys.attempt(claimed.node, claimed.tenant, claimed.task)
        guards: list[Guard] = [Exists(queued), Absent(attempt), CreateIs(node.key, node.create_revision)]
        writes: list[Write] = [
            Delete(queued),
            Put(attempt, encode(AttemptRecord(number=claimed.attempt, uid=claimed.uid)), node.lease),
        ]
        explain_by = [node.key, queued, attempt]
        if before.plan.writes:
            writer, own = writer_key(before), writer_value(before.task)
            explain_by.append(writer)
            if owns_writer(before):
                guards.append(ValueIs(writer, own))
            elif workspace is None:
                raise PreconditionError(
                    f"workspace {before.plan.workspace!r} is gone",
                    subject=before.plan.workspace,
                    reason="WORKSPACE_GONE",
                )
            else:
                guards += [Absent(writer), ModIs(workspace.key, workspace.mod_revision)]
                writes.append(Put(writer, own))
                explain_by.append(workspace.key)
        base = ""
        borrows = bool(before.plan.workspace) and not before.plan.writes
        if borrows and claimed.base is not None and _id(before.base) != claimed.base.id:
            # From here on the task's record keeps the snapshot's bytes; until now only its key did.
            base = snapshot_key(before, claimed.base)
            guards.append(Exists(base))
            explain_by.append(base)

        def explain(there: Found) -> CloudClawError | None:
            if node.key not in there or there[node.key].create_revision != node.create_revision:
                return _node_gone(claimed.node)
            held = there.get(writer_key(before)) if before.plan.writes else None
            if held is not None and held.value != writer_value(before.task):
                return _busy(before, held)
            if workspace is not None and before.plan.writes and not owns_writer(before):
                now = there.get(workspace.key)
                if now is None or now.mod_revision != workspace.mod_revision:
                    return _workspace_changed(before)
            return _workspace_changed(before) if base and base not in there else None

        try:
            return await self._change(
                task, claimed, guards, writes, leadership=leadership, explain=explain, explain_by=explain_by
            )
        except LeaseLostError as error:
            raise _node_gone(claimed.node) from error

    async def unclaim(
        self, leadership: Guard, token: Token, task: Versioned[TaskRecord], queued: TaskRecord
    ) -> Versioned[TaskRecord]:
        """Give an attempt back that never started: queue again, attempt number − 1, − attempt key, − writer when it
        was the first claim. `queued` may be CANCELED instead, when that was requested meanwhile (− writer then)."""
        if queued.attempt != task.record.attempt - 1:
            raise ValueError(f"an unclaim gives one attempt back: {task.record.attempt} -> {queued.attempt}")
        writes = self._leave(task, queued, token)
        return await self._change(task, queued, (), writes, leadership=leadership, token=token)

    async def expire(self, leadership: Guard, task: Versioned[TaskRecord], after: TaskRecord) -> Versioned[TaskRecord]:
        """The attempt's key is gone. `after` is QUEUED with `due` set (→ delayed; writer kept) or ended (− writer).

        Guards: leadership; attempt key of `task.record.node` absent AND task unchanged. `FencedError` never;
        `AbortedError(reason="STILL_HELD")` when the attempt's key is there after all.
        """
        before = task.record
        attempt = keys.attempt(before.node, before.tenant, before.task)

        def explain(there: Found) -> CloudClawError | None:
            return (
                AbortedError(f"{before.node} still holds {before.task}", reason="STILL_HELD")
                if attempt in there
                else None
            )

        return await self._change(
            task,
            after,
            [Absent(attempt)],
            self._leave(task, after, None),
            leadership=leadership,
            explain=explain,
            explain_by=[attempt],
        )

    async def requeue_early(
        self,
        leadership: Guard,
        token: Token,
        task: Versioned[TaskRecord],
        after: TaskRecord,
        node: Entry | None,
    ) -> Versioned[TaskRecord]:
        """As `expire`, for a node seen silent: also − attempt key. Guards: leadership; token; task unchanged; the
        node's key unchanged since `node` was read (or still absent): `AbortedError(reason="NODE_ALIVE")`."""
        node_key = keys.node(token.node)
        seen = node.mod_revision if node is not None else 0

        def explain(there: Found) -> CloudClawError | None:
            now = there[node_key].mod_revision if node_key in there else 0
            return None if now == seen else AbortedError(f"{token.node} is alive after all", reason="NODE_ALIVE")

        return await self._change(
            task,
            after,
            [ModIs(node_key, seen)],
            self._leave(task, after, token),
            leadership=leadership,
            token=token,
            explain=explain,
            explain_by=[node_key],
        )

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
        `move_head` the workspace's new head and generation + 1; on success − the key of the last checkpoint, which
        nobody will start from. Success and head move together or not at all.
        Raises `FencedError` when the token or writer is gone, `AbortedError` when only the task changed (cancel
        requested meanwhile: read again), `PreconditionError(reason="HEAD_MOVED")`.
        """
        before = task.record
        if move_head and (snapshot is None or not before.plan.writes or after.state is not TaskState.SUCCEEDED):
            raise ValueError("only the success of an exclusive task moves a head, to its snapshot")
        guards: list[Guard] = []
        writes = self._leave(task, after, token)
        explain_by: list[str] = []
        if before.plan.writes:
            guards.append(ValueIs(writer_key(before), writer_value(before.task)))
            explain_by.append(writer_key(before))
        used = before.checkpoint if after.state is TaskState.SUCCEEDED else None
        unchanged, replaced = await self._replace_snapshot(before, after, snapshot, used, head=move_head)
        guards += unchanged
        writes += replaced
        if move_head:
            key = keys.workspace(before.tenant, before.plan.workspace)
            entry = await self._kv.get(key)
            workspace = decode(entry.value, WorkspaceRecord) if entry is not None else None
            if entry is None or workspace is None or _id(workspace.head) != _id(before.base):
                return await self._settle_now(task, after, token=token, refusal=_head_moved(before))
            moved = replace(
                workspace,
                head=snapshot,
                generation=workspace.generation + 1,
                updated=after.updated,
                op_id=after.op_id,
            )
            guards.append(ModIs(key, entry.mod_revision))
            writes.append(Put(key, encode(moved)))

        return await self._change(
            task,
            after,
            guards,
            writes,
            token=token,
            explain=lambda there: writer_lost(before, there),
            explain_by=explain_by,
        )

    async def attempts_of(self, node: str) -> list[tuple[Token, AttemptEnd]]:
        """What `attempts/{n}/` holds (number and uid filled in), for adoption and reconciliation."""
        held = await self._kv.range(keys.attempt(node, "", "")[:-1])
        answer = []
        for entry in held.entries:
            record = decode(entry.value, AttemptRecord)
            _, _, tenant, task = keys.parts(entry.key)
            token = Token(node, tenant, task, entry.create_revision)
            answer.append(
                (token, AttemptEnd(number=record.number, uid=record.uid, node=node, token=entry.create_revision))
            )
        return answer

    async def token_valid(self, token: Token, uid: str) -> bool:
        """Linearizable: the attempt's key is there, with this create revision and uid."""
        entry = await self._kv.get(token.key)
        return (
            entry is not None
            and entry.create_revision == token.revision
            and decode(entry.value, AttemptRecord).uid == uid
        )


def _id(snapshot: SnapshotPointer | None) -> str:
    return snapshot.id if snapshot is not None else ""


def _node_gone(node: str) -> AbortedError:
    return AbortedError(f"node {node!r} is gone, or came back as another", reason="NODE_GONE", metadata={"node": node})


def _workspace_changed(task: TaskRecord) -> AbortedError:
    return AbortedError(f"workspace {task.plan.workspace!r} changed", reason="WORKSPACE_CHANGED")


def _busy(task: TaskRecord, held: Entry) -> AbortedError:
    holder = decode(held.value, WriterRecord).holder
    return AbortedError(
        f"workspace {task.plan.workspace!r} is held by {holder}", reason="WRITER_BUSY", metadata={"holder": holder}
    )


def _head_moved(task: TaskRecord) -> PreconditionError:
    return PreconditionError(
        f"the head of workspace {task.plan.workspace!r} is not the one that {task.task} started from",
        subject=task.plan.workspace,
        reason="HEAD_MOVED",
    )
