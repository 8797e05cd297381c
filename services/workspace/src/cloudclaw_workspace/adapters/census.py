"""`CoordinationCensus`: all that refers to objects, out of the shared coordination keys."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import Final

from cloudclaw.clock import Clock
from cloudclaw.coordination import keys
from cloudclaw.coordination.port import CompactedError, Entry, KeyValue
from cloudclaw.coordination.records import (
    Record,
    SnapshotPointer,
    SnapshotRecord,
    TaskRecord,
    TaskState,
    TombstoneRecord,
    WorkspaceRecord,
    WriterRecord,
    decode,
    decode_page,
)
from cloudclaw.coordination.transactions import Transactions, Versioned
from cloudclaw.errors import UnavailableError
from cloudclaw_workspace.domain.outputs import Outputs
from cloudclaw_workspace.ports.census import TaskSurvey

_PAGE: Final = 500
_TRIES: Final = 5


class _State(Record, frozen=True, kw_only=True):
    """As much of a task's record as most tasks are asked for."""

    state: TaskState = TaskState.QUEUED


class CoordinationCensus:
    """A `Census` and its `Tombs`. Reads keys as they are, and writes them only by `Transactions`."""

    def __init__(self, kv: KeyValue, clock: Clock) -> None:
        self._kv = kv
        self._transactions = Transactions(kv)
        self._clock = clock

    async def tenants(self) -> Sequence[str]:
        return await self._transactions.tenants()

    async def roots(self, tenant: str) -> tuple[Sequence[SnapshotPointer], Collection[str]]:
        found = await self._transactions.roots(tenant)
        return found.pointers, found.live

    async def survey(self, tenant: str, *, outputs: bool = False) -> TaskSurvey:
        for _ in range(_TRIES):
            try:
                return await self._survey(tenant, outputs)
            except CompactedError:
                continue  # its revision is gone: begin anew
        raise UnavailableError(f"etcd is compacted faster than the tasks of {tenant!r} can be read")

    async def _survey(self, tenant: str, wanted: bool) -> TaskSurvey:
        pinned: set[str] = set()
        uids: set[str] = set()
        outputs = Outputs()
        unfinished = ""
        async with aclosing(self._tasks(tenant)) as entries:
            async for entry in entries:
                ended = decode(entry.value, _State).state.ended
                if ended and not wanted:
                    continue
                task = decode(entry.value, TaskRecord)
                if not ended:
                    unfinished = task.task
                    pinned.update(pointer.id for pointer in (task.base, task.checkpoint) if pointer is not None)
                    pinned.update(attempt.base for attempt in task.attempts if attempt.base)
                    uids.update(attempt.uid for attempt in task.attempts)
                if wanted:
                    outputs.add(task)
                    if task.earlier:
                        # At whatever revision: what is there is never taken back while its task is.
                        pages = await self._kv.range(f"{keys.EARLIER}{tenant}/{task.task}/")
                        for page in pages.entries:
                            outputs.add_attempts(decode_page(page.value))
        return TaskSurvey(frozenset(pinned), frozenset(uids), outputs, unfinished)

    async def _tasks(self, tenant: str) -> AsyncGenerator[Entry, None]:
        """All tasks at one revision, with one page of them in memory."""
        after, revision = "", 0
        while True:
            page = await self._kv.range(keys.task(tenant, ""), start_after=after, limit=_PAGE, revision=revision)
            revision = revision or page.revision
            for entry in page.entries:
                yield entry
            if not page.more:
                return
            after = page.entries[-1].key

    async def workspaces(self, tenant: str) -> Sequence[Versioned[WorkspaceRecord]]:
        found = await self._kv.range(keys.workspace(tenant, ""))
        return [
            Versioned(decode(entry.value, WorkspaceRecord), entry.create_revision, entry.mod_revision)
            for entry in found.entries
        ]

    async def workspace(self, tenant: str, name: str) -> Versioned[WorkspaceRecord] | None:
        return await self._transactions.get_workspace(tenant, name)

    async def snapshots_of(self, tenant: str, workspace: str) -> Sequence[SnapshotRecord]:
        return [version.record for version in await self._transactions.snapshots_of(tenant, workspace)]

    async def delete_snapshots(self, tenant: str, workspace: Versioned[WorkspaceRecord], ids: Sequence[str]) -> None:
        await self._transactions.delete_snapshots(tenant, workspace, ids)

    async def listed_workspaces(self, tenant: str) -> Sequence[str]:
        return await self._transactions.listed_workspaces(tenant)

    async def delete_orphans(self, tenant: str, workspace: str) -> int | None:
        return await self._transactions.delete_orphans(tenant, workspace)

    async def task(self, tenant: str, task: str) -> TaskRecord | None:
        found = await self._transactions.get_task(tenant, task)
        return None if found is None else found.record

    async def writers(self, tenant: str) -> Mapping[str, str]:
        prefix = keys.writer(tenant, "")
        found = await self._kv.range(prefix)
        return {entry.key[len(prefix) :]: decode(entry.value, WriterRecord).holder for entry in found.entries}

    async def bury(self, tenant: str) -> Versioned[TombstoneRecord]:
        return await self._transactions.bury(tenant, self._clock.wall())

    async def buried(self, tenant: str) -> bool:
        return await self._transactions.buried(tenant)

    async def seal(self, tenant: str, tombstone: Versioned[TombstoneRecord]) -> None:
        await self._transactions.seal(tenant, tombstone)

    async def sealed(self, tenant: str, tombstone: Versioned[TombstoneRecord]) -> bool:
        return await self._transactions.sealed(tenant, tombstone)

    async def exhume(self, tenant: str) -> bool:
        return await self._transactions.exhume(tenant)

    async def delete_keys(self, tenant: str, tombstone: Versioned[TombstoneRecord]) -> int:
        return await self._transactions.delete_tenant_keys(tenant, tombstone)
