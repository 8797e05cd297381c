"""Transactions on workspaces, for the workspace service and its users."""

from __future__ import annotations

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
    Write,
)
from cloudclaw.coordination.records import (
    SnapshotPointer,
    SnapshotRecord,
    WorkspaceRecord,
    WriterRecord,
    decode,
    encode,
)
from cloudclaw.coordination.transactions.snapshots import DELETES_PER_TRANSACTION, SnapshotTransactions
from cloudclaw.coordination.transactions.store import Found, found, tenant_deleted, writer_value
from cloudclaw.coordination.transactions.types import Versioned
from cloudclaw.errors import (
    AbortedError,
    AlreadyExistsError,
    FencedError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)


class WorkspaceTransactions(SnapshotTransactions):
    """Create, set retention, write by a user's operation, delete."""

    async def create_workspace(
        self,
        tenant: str,
        record: WorkspaceRecord,
        *,
        snapshot: SnapshotPointer | None = None,
        source: tuple[str, str] | None = None,
    ) -> Versioned[WorkspaceRecord]:
        """A new workspace, with a snapshot key for its head when forked. `AlreadyExistsError`. What the deletion of an
        earlier one of that name left in the list of snapshots is removed first.

        `source`: the workspace and id of the snapshot that it is forked from, which must still be listed then, so
        that no collection came between: `NotFoundError(reason="NO_SNAPSHOT")`.
        `PreconditionError(reason="TENANT_DELETED")`.
        """
        key, tombstone = keys.workspace(tenant, record.name), keys.tombstone(tenant)
        guards: list[Guard] = [Absent(key), Absent(tombstone)]
        writes: list[Write] = [Put(key, encode(record))]
        read = [key, tombstone]
        origin = keys.snapshot(tenant, *source) if source is not None else ""
        if origin:
            guards.append(Exists(origin))
            read.append(origin)
        if snapshot is not None:
            writes.append(_snapshot_put(tenant, record, snapshot))
        await self.delete_orphans(tenant, record.name)
        try:
            result = await self._kv.txn(guards, writes, read_on_failure=read)
        except UnavailableError:
            entry = await self._kv.get(key)
            if entry is None:
                raise
            there: Found = {key: entry}
        else:
            if result.succeeded:
                return Versioned(record, result.revision, result.revision)
            there = found(result)
        if key in there and decode(there[key].value, WorkspaceRecord).op_id == record.op_id:
            return _version(there[key])
        if key not in there and tombstone in there:
            raise tenant_deleted(tenant)
        if source is not None and key not in there and origin not in there:
            raise _no_snapshot(*source)
        raise AlreadyExistsError(f"workspace {record.name!r} exists", reason="WORKSPACE_EXISTS")

    async def get_workspace(self, tenant: str, name: str) -> Versioned[WorkspaceRecord] | None:
        """The workspace now."""
        entry = await self._kv.get(keys.workspace(tenant, name))
        return None if entry is None else _version(entry)

    async def update_workspace(
        self, tenant: str, workspace: Versioned[WorkspaceRecord], after: WorkspaceRecord
    ) -> Versioned[WorkspaceRecord]:
        """Write `after` (fresh `op_id`), which differs in its retention only. Guards: workspace unchanged
        (`AbortedError`)."""
        before = workspace.record
        if (after.name, after.head, after.generation) != (before.name, before.head, before.generation):
            raise ValueError("only a commit moves a workspace's head")
        key = keys.workspace(tenant, after.name)
        try:
            result = await self._kv.txn(
                [ModIs(key, workspace.mod_revision)], [Put(key, encode(after))], read_on_failure=[key]
            )
        except UnavailableError:
            entry = await self._kv.get(key)
            if entry is not None and entry.mod_revision == workspace.mod_revision:
                raise
        else:
            if result.succeeded:
                return Versioned(after, workspace.create_revision, result.revision)
            entry = found(result).get(key)
        if entry is not None and decode(entry.value, WorkspaceRecord).op_id == after.op_id:
            return _version(entry)
        raise _changed(after.name)

    async def acquire_writer(self, tenant: str, workspace: str, operation: str, lease: int) -> int:
        """Take the writer key for a user's operation (`user:<operation>`), on a lease so that a crash frees it.

        Answers the key's create revision (its fencing token). `AbortedError(reason="WRITER_BUSY")` naming the
        holder; `NotFoundError` when there is no such workspace; `FencedError` when `lease` is gone;
        `PreconditionError(reason="TENANT_DELETED")`.
        """
        writer, name = keys.writer(tenant, workspace), keys.workspace(tenant, workspace)
        tombstone = keys.tombstone(tenant)
        value = writer_value(f"user:{operation}")
        try:
            result = await self._kv.txn(
                [Absent(writer), Exists(name), Absent(tombstone)],
                [Put(writer, value, lease)],
                read_on_failure=[writer, name, tombstone],
            )
        except LeaseLostError as error:
            raise FencedError("the operation's lease is gone", reason="LEASE_LOST") from error
        except UnavailableError:
            held = await self._kv.get(writer)
            if held is None or held.value != value:
                raise
            return held.create_revision
        if result.succeeded:
            return result.revision
        there = found(result)
        if writer in there and there[writer].value == value and there[writer].lease == lease:
            return there[writer].create_revision
        if name not in there:
            raise NotFoundError(f"no workspace {workspace!r}", metadata={"workspace": workspace})
        if tombstone in there:
            raise tenant_deleted(tenant)
        raise _busy(workspace, there.get(writer))

    async def commit_workspace(
        self,
        tenant: str,
        workspace: Versioned[WorkspaceRecord],
        after: WorkspaceRecord,
        snapshot: SnapshotPointer,
        writer_token: int,
        *,
        source: str = "",
    ) -> Versioned[WorkspaceRecord]:
        """A user's write: new head, snapshot key, − writer. Guards: workspace unchanged (`AbortedError`: read it
        again, its retention may have been set); writer key with this create revision (`FencedError`).

        `source`: the snapshot of this workspace that is restored, which must still be listed
        (`NotFoundError(reason="NO_SNAPSHOT")`). `snapshot` has an id of its own: two would share one key, and the
        one's end would be the other's.
        """
        key, writer = keys.workspace(tenant, after.name), keys.writer(tenant, after.name)
        guards: list[Guard] = [ModIs(key, workspace.mod_revision), CreateIs(writer, writer_token)]
        read = [key, writer]
        origin = keys.snapshot(tenant, after.name, source)
        if source:
            if snapshot.id == source:
                raise ValueError(f"the restored snapshot {source} needs an id of its own")
            guards.append(Exists(origin))
            read.append(origin)
        try:
            result = await self._kv.txn(
                guards,
                [Put(key, encode(after)), _snapshot_put(tenant, after, snapshot), Delete(writer)],
                read_on_failure=read,
            )
        except UnavailableError:
            entries = [await self._kv.get(name) for name in read]
            if entries[0] is None or entries[0].mod_revision == workspace.mod_revision:
                raise
            there: Found = {entry.key: entry for entry in entries if entry is not None}
        else:
            if result.succeeded:
                return Versioned(after, workspace.create_revision, result.revision)
            there = found(result)
        if key in there and decode(there[key].value, WorkspaceRecord).op_id == after.op_id:
            return _version(there[key])
        if writer not in there or there[writer].create_revision != writer_token:
            raise FencedError(f"the operation no longer owns workspace {after.name!r}")
        if source and origin not in there:
            raise _no_snapshot(after.name, source)
        raise _changed(after.name)

    async def release_writer(self, tenant: str, workspace: str, writer_token: int) -> None:
        """Give the writer key back without a commit; one that is not ours any more is left alone."""
        writer = keys.writer(tenant, workspace)
        await self._kv.txn([CreateIs(writer, writer_token)], [Delete(writer)])

    async def delete_workspace(self, tenant: str, workspace: Versioned[WorkspaceRecord]) -> None:
        """Remove the workspace and its snapshot keys. Guards: workspace unchanged (`AbortedError`); writer absent
        (`PreconditionError(reason="WRITER_BUSY")`).

        The workspace goes first, with as many snapshots as fit into its transaction; then what is left of them, tasks'
        checkpoints that came just before it among them. What a crash leaves of these goes by `delete_orphans`.
        """
        name = workspace.record.name
        key, writer = keys.workspace(tenant, name), keys.writer(tenant, name)
        first = await self._kv.range(keys.snapshot(tenant, name, ""), limit=DELETES_PER_TRANSACTION - 1, keys_only=True)
        try:
            result = await self._kv.txn(
                [ModIs(key, workspace.mod_revision), Absent(writer)],
                [Delete(key), *(Delete(entry.key) for entry in first.entries)],
                read_on_failure=[key, writer],
            )
        except UnavailableError:
            if await self._kv.get(key) is not None:
                raise
        else:
            there = found(result)
            if not result.succeeded and key in there:
                if writer in there:
                    busy = _busy(name, there[writer])
                    raise PreconditionError(busy.message, subject=name, reason="WRITER_BUSY")
                raise _changed(name)
        await self.delete_orphans(tenant, name)


def _version(entry: Entry) -> Versioned[WorkspaceRecord]:
    return Versioned(decode(entry.value, WorkspaceRecord), entry.create_revision, entry.mod_revision)


def _snapshot_put(tenant: str, workspace: WorkspaceRecord, snapshot: SnapshotPointer) -> Put:
    record = SnapshotRecord(pointer=snapshot, created=workspace.updated, head=True)
    return Put(keys.snapshot(tenant, workspace.name, snapshot.id), encode(record))


def _changed(workspace: str) -> AbortedError:
    return AbortedError(f"workspace {workspace!r} changed meanwhile; read it again")


def _no_snapshot(workspace: str, snapshot: str) -> NotFoundError:
    return NotFoundError(
        f"workspace {workspace!r} has no snapshot {snapshot!r}",
        reason="NO_SNAPSHOT",
        metadata={"workspace": workspace, "snapshot": snapshot},
    )


def _busy(workspace: str, held: Entry | None) -> AbortedError:
    # `held` is None when the holder left between the refusal and now.
    holder = decode(held.value, WriterRecord).holder if held is not None else "somebody who just left"
    return AbortedError(
        f"workspace {workspace!r} is held by {holder}", reason="WRITER_BUSY", metadata={"holder": holder}
    )
