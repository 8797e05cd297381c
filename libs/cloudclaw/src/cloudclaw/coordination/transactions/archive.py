"""Taking ended tasks out of the store, once their history is safe in the object store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Delete, Entry, Guard, LeaseLostError, ModIs, Put, Write
from cloudclaw.coordination.records import PAGE, RequestRecord, TaskRecord, decode
from cloudclaw.coordination.transactions.store import Found, Store, found, lease_lost, task_key
from cloudclaw.coordination.transactions.types import Versioned
from cloudclaw.errors import UnavailableError

TASKS_PER_TRANSACTION: Final = 25
DELETES_PER_TRANSACTION: Final = 100
MAX_PAGES: Final = 96
"""Keys of earlier attempts of one task that are removed with it: three thousand attempts. Further ones, which nobody
has seen yet, go with their tenant."""


class ArchiveTransactions(Store):
    """Archive."""

    async def archive(self, tasks: Sequence[Versioned[TaskRecord]], request_lease: int) -> list[Versioned[TaskRecord]]:
        """Remove ended tasks, whose bundle and its pointer are written. Answers those that are gone, in order.

        Guards, for each: task unchanged. Writes: − its inputs, before anything else and in transactions of their own,
        since a conversation may have a thousand; then − task, − spec, − its earlier attempts; the request key, if there
        is one, once more on `request_lease` (24 h at least), so that the request id answers for its task that long. At
        most 25 tasks a transaction, and one with earlier attempts alone; when one is refused, its tasks are tried one
        by one, and a task that changed is left out.

        Safe to repeat with the same tasks, after `UnavailableError` too: one that is not there any more counts as
        gone. `FencedError(reason="LEASE_LOST")` when `request_lease` is gone.
        """
        for task in tasks:
            if not task.record.state.ended:
                raise ValueError(f"{task.record.task} is {task.record.state}: only ended tasks are archived")
        for task in tasks:
            if task.record.plan.interactive:
                await self._delete_inputs(task)
        gone: list[Versioned[TaskRecord]] = []
        for batch in _batches(tasks):
            if await self._archive(batch, request_lease):
                gone += batch
            else:
                gone += [task for task in batch if await self._archive([task], request_lease)]
        return gone

    async def _archive(self, tasks: Sequence[Versioned[TaskRecord]], request_lease: int) -> bool:
        """One transaction: whether all of `tasks` are gone."""
        guards: list[Guard] = []
        writes: list[Write] = []
        for task in tasks:
            record, key = task.record, task_key(task.record)
            guards.append(ModIs(key, task.mod_revision))
            writes += [Delete(key), Delete(keys.spec(record.tenant, record.task))]
            pages = range(min(record.earlier // PAGE, MAX_PAGES))
            writes += [Delete(keys.earlier(record.tenant, record.task, page)) for page in pages]
            request = await self._request_of(record)
            if request is not None:
                guards.append(ModIs(request.key, request.mod_revision))
                writes.append(Put(request.key, request.value, request_lease))
        try:
            result = await self._kv.txn(guards, writes, read_on_failure=[task_key(task.record) for task in tasks])
        except LeaseLostError as error:
            raise lease_lost("archived requests") from error
        except UnavailableError as error:
            return await self._archived(tasks, error)
        return result.succeeded or not _present(tasks, found(result))

    async def _delete_inputs(self, task: Versioned[TaskRecord]) -> None:
        """Its inputs go; none come, since it has ended. Guards: task unchanged; of one that did they stay."""
        record = task.record
        prefix, guard = keys.input_(record.tenant, record.task, ""), ModIs(task_key(record), task.mod_revision)
        while True:
            left = (await self._kv.range(prefix, limit=DELETES_PER_TRANSACTION, keys_only=True)).entries
            if not left:
                return
            try:
                if not (await self._kv.txn([guard], [Delete(entry.key) for entry in left])).succeeded:
                    return
            except UnavailableError:
                if await self._kv.get(left[0].key) is not None:
                    raise

    async def _request_of(self, record: TaskRecord) -> Entry | None:
        """The request key that still answers with this task, if its client gave a request id."""
        if not record.request:
            return None
        entry = await self._kv.get(keys.request(record.tenant, record.request))
        return entry if entry is not None and decode(entry.value, RequestRecord).task == record.task else None

    async def _archived(self, tasks: Sequence[Versioned[TaskRecord]], error: UnavailableError) -> bool:
        """What became of a transaction whose answer was lost. All unchanged: it may still arrive."""
        entries = [await self._kv.get(task_key(task.record)) for task in tasks]
        present = _present(tasks, {entry.key: entry for entry in entries if entry is not None})
        if any(entry.mod_revision == task.mod_revision for task, entry in present):
            raise error
        return not present


def _batches(tasks: Sequence[Versioned[TaskRecord]]) -> Iterator[list[Versioned[TaskRecord]]]:
    """In order, as many at a time as fit into a transaction: one that has earlier attempts is alone."""
    batch: list[Versioned[TaskRecord]] = []
    for task in tasks:
        if batch and (len(batch) == TASKS_PER_TRANSACTION or batch[-1].record.earlier or task.record.earlier):
            yield batch
            batch = []
        batch.append(task)
    if batch:
        yield batch


def _present(tasks: Sequence[Versioned[TaskRecord]], there: Found) -> list[tuple[Versioned[TaskRecord], Entry]]:
    """Those of `tasks` that are there, and as what."""
    return [(task, there[key]) for task in tasks if (key := task_key(task.record)) in there]
