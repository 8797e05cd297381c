"""One task by its id, live or archived."""

from __future__ import annotations

from dataclasses import dataclass

from cloudclaw.coordination.records import TaskRecord
from cloudclaw.coordination.transactions import Transactions, Versioned
from cloudclaw.errors import DataLossError
from cloudclaw.v1.task_pb2 import TaskSpec
from cloudclaw_scheduler.app.history import History
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.specs import Specs, parse
from cloudclaw_scheduler.app.submit import task_not_found


@dataclass(frozen=True, slots=True)
class Found:
    """A task; `spec` is its inline spec when it was archived, None while it is live."""

    task: Versioned[TaskRecord]
    spec: bytes | None = None


class Lookup:
    """Reads of single tasks."""

    def __init__(self, mirror: Mirror, transactions: Transactions, specs: Specs, history: History) -> None:
        self._mirror = mirror
        self._transactions = transactions
        self._specs = specs
        self._history = history

    async def task(self, tenant: str, task: str) -> Found:
        """The task as it is now (linearizable), or as it was archived.

        `NotFoundError`; for one that is not in etcd also `UnavailableError` while the object store is away, and
        `DataLossError` naming a bundle that is damaged and may hold it.
        """
        live = await self._transactions.get_task(tenant, task)
        if live is not None:
            return Found(live)
        # Its bundle was stored before it left etcd, so it is found now, whatever the order of the two.
        archived = await self._history.find(tenant, task)
        if archived is None:
            raise task_not_found(task)
        return Found(archived.task, archived.spec)

    async def whole(self, found: Found) -> TaskRecord:
        """Its record with all attempts, also those that a long conversation keeps apart. `UnavailableError`."""
        task = found.task
        if not task.record.earlier:
            return task.record
        await self._mirror.reach(task.mod_revision)
        return self._mirror.state.whole(task.record)

    async def spec(self, found: Found) -> TaskSpec:
        """The task's spec. `DataLossError` when it is missing or cannot be read; `UnavailableError`."""
        record = found.task.record
        if found.spec:
            return parse(found.spec, record.task)
        if found.spec is None:
            try:
                return await self._specs.read(record)
            except DataLossError:
                # Archived between the two reads, perhaps.
                archived = await self._history.find(record.tenant, record.task) if record.state.ended else None
                if archived is None or not archived.spec:
                    raise
                return parse(archived.spec, record.task)
        return await self._specs.read(record)
