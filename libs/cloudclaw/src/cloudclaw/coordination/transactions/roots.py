"""What garbage collection must keep of a tenant, read at one revision (rule 8)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import CompactedError, Entry
from cloudclaw.coordination.records import (
    AttemptRecord,
    Record,
    SnapshotPointer,
    SnapshotRecord,
    TaskState,
    WorkspaceRecord,
    WriterRecord,
    decode,
)
from cloudclaw.coordination.transactions.store import Store
from cloudclaw.errors import UnavailableError

PAGE: Final = 500
TRIES: Final = 5
"""How often the reading is begun anew because the store compacted its revision."""

_BY_TENANT: Final = (
    keys.TASKS,
    keys.SPECS,
    keys.REQUESTS,
    keys.WORKSPACES,
    keys.SNAPSHOTS,
    keys.WRITERS,
    keys.CONSUMERS,
    keys.DELIVERIES,
    keys.INPUTS,
    keys.EARLIER,
    keys.MODEL_KEYS,
)
"""Whatever else a tenant has (queue, attempts) belongs to a task of these."""


@dataclass(frozen=True, slots=True)
class Roots:
    """Of one tenant, all at `revision`.

    Attributes:
        pointers: every snapshot that somebody can still reach, each once: heads, the workspaces' snapshots, what
            unfinished tasks started from and their checkpoints, checkpoints that failed and canceled tasks left.
        live: uids of attempts that run or hold a lease, and ids of user operations that hold a writer key. What is
            stored under them may be about to be pointed at.
    """

    revision: int
    pointers: list[SnapshotPointer]
    live: set[str]


class TaskFacts(Record, frozen=True, kw_only=True):
    """As much of a task's record as is asked for here; there may be very many."""

    state: TaskState = TaskState.QUEUED
    uid: str = ""
    base: SnapshotPointer | None = None
    checkpoint: SnapshotPointer | None = None


class RootTransactions(Store):
    """Reads over everything a tenant has."""

    async def roots(self, tenant: str) -> Roots:
        """All that points at stored snapshots, and whoever may be storing one, at one revision.

        Begun anew when the store compacts that revision meanwhile; `UnavailableError` when it does so again and
        again.
        """
        for _ in range(TRIES):
            try:
                return await self._roots(tenant)
            except CompactedError:
                continue
        raise UnavailableError(f"the store is compacted faster than the roots of {tenant!r} can be read")

    async def tenants(self) -> list[str]:
        """Names of all tenants that have any key, sorted; one that is being deleted too."""
        names = {entry.key[len(keys.TOMBSTONES) :] for entry in (await self._kv.range(keys.TOMBSTONES)).entries}
        for prefix in _BY_TENANT:
            after = ""
            while True:
                page = await self._kv.range(prefix, start_after=after, limit=1, keys_only=True)
                if not page.entries:
                    break
                name = page.entries[0].key[len(prefix) :].split("/")[0]
                names.add(name)
                after = f"{prefix}{name}0"  # "0" follows "/": behind everything of this tenant
        return sorted(names)

    async def _roots(self, tenant: str) -> Roots:
        heads = await self._kv.range(keys.workspace(tenant, ""))
        revision = heads.revision
        pointers: dict[SnapshotPointer, None] = {}
        live: set[str] = set()

        def keep(*found: SnapshotPointer | None) -> None:
            pointers.update((pointer, None) for pointer in found if pointer is not None)

        for entry in heads.entries:
            keep(decode(entry.value, WorkspaceRecord).head)
        async with aclosing(self._pages(keys.snapshot(tenant, "", "")[:-1], revision)) as entries:
            async for entry in entries:
                keep(decode(entry.value, SnapshotRecord).pointer)
        async with aclosing(self._pages(keys.task(tenant, ""), revision)) as entries:
            async for entry in entries:
                task = decode(entry.value, TaskFacts)
                keep(task.checkpoint, None if task.state.ended else task.base)
                if task.state is TaskState.RUNNING:
                    live.add(task.uid)
        async with aclosing(self._pages(keys.writer(tenant, ""), revision)) as entries:
            async for entry in entries:
                holder = decode(entry.value, WriterRecord).holder
                if holder.startswith("user:"):
                    live.add(holder.removeprefix("user:"))
        async with aclosing(self._pages(keys.ATTEMPTS, revision)) as entries:
            async for entry in entries:
                if keys.parts(entry.key)[2] == tenant:
                    live.add(decode(entry.value, AttemptRecord).uid)
        return Roots(revision, list(pointers), live)

    async def _pages(self, prefix: str, revision: int) -> AsyncGenerator[Entry, None]:
        """All entries under `prefix` at `revision`, with one page of them in memory."""
        after = ""
        while True:
            page = await self._kv.range(prefix, start_after=after, limit=PAGE, revision=revision)
            for entry in page.entries:
                yield entry
            if not page.more:
                return
            after = page.entries[-1].key
