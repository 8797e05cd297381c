"""`CoordinationRegistry`: the registry over the shared coordination keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import msgspec
import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination import keys
from cloudclaw.coordination.lease import NodeLease
from cloudclaw.coordination.port import KeyValue
from cloudclaw.coordination.records import (
    SnapshotPointer,
    SnapshotRecord,
    WorkspaceRecord,
    WriterRecord,
    decode,
)
from cloudclaw.coordination.transactions import Transactions, Versioned
from cloudclaw.errors import AbortedError, FencedError, NotFoundError, UnavailableError
from cloudclaw.ids import new_id
from cloudclaw_workspace.domain.retention import DEFAULT, Retention

_log = structlog.get_logger()


_TRIES: Final = 5

T = TypeVar("T")


class CoordinationRegistry:
    """Reads keys as they are, and writes them only by `Transactions`."""

    def __init__(self, kv: KeyValue, clock: Clock, *, writer_ttl: int = 10) -> None:
        """`writer_ttl`: seconds after which a writer key of a process that died is free again."""
        self._kv = kv
        self._transactions = Transactions(kv)
        self._clock = clock
        self._ttl = writer_ttl

    async def create(
        self,
        tenant: str,
        name: str,
        head: SnapshotPointer | None,
        *,
        retention: Retention = DEFAULT,
        source: tuple[str, str] | None = None,
    ) -> WorkspaceRecord:
        now = self._clock.wall()
        record = WorkspaceRecord(
            name=name,
            created=now,
            updated=now,
            op_id=new_id("op"),
            generation=0 if head is None else 1,
            head=head,
            keep_last=retention.last,
            keep_daily=retention.daily,
        )
        return (await self._transactions.create_workspace(tenant, record, snapshot=head, source=source)).record

    async def set_retention(self, tenant: str, name: str, retention: Retention) -> WorkspaceRecord:
        async def once() -> WorkspaceRecord:
            workspace = await self.get(tenant, name)
            after = msgspec.structs.replace(
                workspace.record,
                updated=self._clock.wall(),
                op_id=new_id("op"),
                keep_last=retention.last,
                keep_daily=retention.daily,
            )
            return (await self._transactions.update_workspace(tenant, workspace, after)).record

        return await _against_changes(once)

    async def get(self, tenant: str, name: str) -> Versioned[WorkspaceRecord]:
        found = await self._transactions.get_workspace(tenant, name)
        if found is None:
            raise NotFoundError(f"no workspace {name!r}", reason="NO_WORKSPACE", metadata={"workspace": name})
        return found

    async def list(self, tenant: str, after: str, limit: int) -> tuple[Sequence[WorkspaceRecord], bool]:
        start = keys.workspace(tenant, after) if after else ""
        page = await self._kv.range(keys.workspace(tenant, ""), start_after=start, limit=limit)
        return [decode(entry.value, WorkspaceRecord) for entry in page.entries], page.more

    async def writer(self, tenant: str, name: str) -> str:
        entry = await self._kv.get(keys.writer(tenant, name))
        return "" if entry is None else decode(entry.value, WriterRecord).holder

    async def writers(self, tenant: str) -> Mapping[str, str]:
        prefix = keys.writer(tenant, "")
        found = await self._kv.range(prefix)
        return {entry.key[len(prefix) :]: decode(entry.value, WriterRecord).holder for entry in found.entries}

    async def delete(self, tenant: str, name: str) -> None:
        await self._transactions.delete_workspace(tenant, await self.get(tenant, name))

    async def snapshot(self, tenant: str, name: str, snapshot_id: str) -> SnapshotRecord:
        entry = await self._kv.get(keys.snapshot(tenant, name, snapshot_id))
        if entry is None:
            await self.get(tenant, name)
            raise NotFoundError(
                f"workspace {name!r} has no snapshot {snapshot_id!r}",
                reason="NO_SNAPSHOT",
                metadata={"workspace": name, "snapshot": snapshot_id},
            )
        return decode(entry.value, SnapshotRecord)

    async def snapshots(
        self, tenant: str, name: str, before: int, limit: int
    ) -> tuple[Sequence[tuple[int, SnapshotRecord]], bool]:
        await self.get(tenant, name)
        found = await self._kv.range(
            keys.snapshot(tenant, name, ""), newest_first=True, created_before=before, limit=limit
        )
        page = [(entry.create_revision, decode(entry.value, SnapshotRecord)) for entry in found.entries]
        return page, found.more

    @asynccontextmanager
    async def writing(self, tenant: str, name: str, operation: str) -> AsyncIterator[int]:
        lease = NodeLease(self._kv, self._clock, self._ttl)
        await lease.acquire()
        try:
            token = await self._transactions.acquire_writer(tenant, name, operation, lease.lease_id)
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(self._keep(lease, name))
                yield token
                keeper.cancel()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            await self._end(lease)

    async def commit(
        self,
        tenant: str,
        workspace: Versioned[WorkspaceRecord],
        head: SnapshotPointer,
        operation: str,
        token: int,
        *,
        source: str = "",
    ) -> WorkspaceRecord:
        current = workspace

        async def once() -> WorkspaceRecord:
            nonlocal current
            after = msgspec.structs.replace(
                current.record,
                updated=self._clock.wall(),
                op_id=operation,
                generation=current.record.generation + 1,
                head=head,
            )
            try:
                return (
                    await self._transactions.commit_workspace(tenant, current, after, head, token, source=source)
                ).record
            except AbortedError:
                # Its retention was set while the tree was written: the head stays with the writer key's owner.
                current = await self.get(tenant, workspace.record.name)
                if current.record.generation != workspace.record.generation:
                    current = workspace
                raise

        return await _against_changes(once)

    async def _keep(self, lease: NodeLease, name: str) -> None:
        await lease.run()
        raise FencedError(f"the lease of the write to workspace {name!r} was lost; nothing was written, try again")

    async def _end(self, lease: NodeLease) -> None:
        """End the lease, and with it the writer key unless a commit took that along."""
        try:
            await lease.release()
        except UnavailableError as error:
            _log.warning("a write's lease ends only by its TTL", lease=f"{lease.lease_id:x}", error=error.message)


async def _against_changes(once: Callable[[], Awaitable[T]]) -> T:
    """What `once`, which reads and then writes guarded by what it read, answers: tried again when that changed."""
    for _ in range(_TRIES - 1):
        try:
            return await once()
        except AbortedError:
            continue
    return await once()
