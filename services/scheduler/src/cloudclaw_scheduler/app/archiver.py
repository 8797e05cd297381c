"""Moves ended tasks from etcd to the object store, in the leader's term.

A bundle is stored first, and then its tasks leave etcd by guarded transactions; so a task is always in one of the two.
Whatever happens between the two leaves a bundle that nobody needs: the tasks go into another one later, and readers
take a live task before an archived one and any bundle's copy of it (`cloudclaw.history.bundles`).

Nothing is kept here that the mirror would not show anew: what is due is read from its tasks in the order of their end.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Absent, Exists, KeyValue
from cloudclaw.coordination.records import TaskRecord
from cloudclaw.coordination.transactions import Transactions, Versioned
from cloudclaw.errors import CloudClawError, FencedError, UnavailableError
from cloudclaw.history.bundles import MAX_TASKS, ArchivedTask, encode_bundle, name_for
from cloudclaw.history.store import BundleStore
from cloudclaw.ids import new_id
from cloudclaw_scheduler.app.metrics import Metrics
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.state import TaskKey

_log = structlog.get_logger()

Task = Versioned[TaskRecord]
Held = Callable[[str], int | None]
"""Answers, for a tenant, the revision after whose ends results are still wanted by a consumer; None: none is."""

LOOK_EVERY: Final = 1.0
"""Seconds between two looks for what is due, when there was nothing."""
MAX_PAUSE: Final = 30.0
"""Seconds between two tries at most, while a store is out of reach."""
REFUSED_PAUSE: Final = 60.0
"""Seconds that a task is left alone whose transaction was refused."""
LEASE_EVERY: Final = 3600.0
"""One lease an hour for the request ids of archived tasks: few leases, each of them hours from its end when used."""
_READS: Final = 100


@dataclass(frozen=True, slots=True)
class Rules:
    """How long tasks stay in etcd; all in seconds.

    Attributes:
        retention: after its end, before a task is due.
        batch_window: beyond that, until due tasks go without a full bundle of them.
        request_retention: how long the request id of an archived task answers for it, from the transaction on.
    """

    retention: float = 3600.0
    batch_window: float = 600.0
    request_retention: float = 86_400.0


class Archiver:
    """One bundle at a time: it never competes with dispatch for more than one transaction."""

    def __init__(
        self,
        kv: KeyValue,
        mirror: Mirror,
        transactions: Transactions,
        store: BundleStore,
        clock: Clock,
        metrics: Metrics,
        rules: Rules,
        held: Held = lambda _: None,
    ) -> None:
        self._kv = kv
        self._mirror = mirror
        self._transactions = transactions
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._rules = rules
        self._held = held
        self._skipped: dict[TaskKey, float] = {}
        self._lease = 0
        self._granted = 0.0

    async def run(self) -> None:
        """Archive for ever. A store out of reach is waited for."""
        pause = 0.0
        while True:
            try:
                moved = await self.sweep()
                pause = 0.0
            except CloudClawError as error:
                pause = min(MAX_PAUSE, max(LOOK_EVERY, 2 * pause))
                _log.warning("ended tasks stay in etcd for now", error=error.message, reason=error.reason, again=pause)
                moved = 0
            if not moved:
                await self._clock.sleep(pause or LOOK_EVERY)

    async def sweep(self) -> int:
        """One bundle for each tenant that has one due. Answers how many tasks left etcd. Raises what the stores do."""
        moved = 0
        now = self._clock.boottime()
        state = self._mirror.state
        self._skipped = {key: until for key, until in self._skipped.items() if until > now and state.task(*key)}
        failure: CloudClawError | None = None
        for tenant in tuple(state.tenants):
            batch = self._due(tenant)
            try:
                moved += await self._archive(tenant, batch) if batch else 0
            except UnavailableError:
                raise  # nobody's tasks would fare better
            except CloudClawError as error:
                failure = failure or error
        if failure is not None and not moved:
            raise failure
        return moved

    def _due(self, tenant: str) -> list[Task]:
        """A full bundle of tasks, or fewer when the oldest has waited long enough; none while they shall wait."""
        state = self._mirror.state
        tasks = state.tenants.get(tenant)
        if tasks is None or tenant in state.buried:
            return []
        expired = self._clock.wall() - self._rules.retention
        ended = (tasks.records[task] for _, task in state.ended_after(tenant, 0) if (tenant, task) not in self._skipped)
        batch = list(
            itertools.islice(itertools.takewhile(lambda task: task.record.updated <= expired, ended), MAX_TASKS)
        )
        overdue = expired - self._rules.batch_window
        if not batch or (len(batch) < MAX_TASKS and batch[0].record.updated > overdue):
            return []
        held = self._held(tenant)
        if held is not None:
            batch = [task for task in batch if task.mod_revision <= held]
            if len(batch) < MAX_TASKS and batch and batch[0].record.updated > overdue:
                return []
        return batch

    async def _archive(self, tenant: str, batch: Sequence[Task]) -> int:
        specs = await self._specs(batch)
        state = self._mirror.state
        wholes = [Versioned(state.whole(t.record), t.create_revision, t.mod_revision) for t in batch]
        tasks = [ArchivedTask(task, specs.get(task.record.task, b"")) for task in wholes]
        data = await asyncio.to_thread(encode_bundle, tasks)
        name = name_for(tasks, new_id("bundle"))
        await self._store.put(name, data)
        if await self._transactions.buried(tenant):
            # Its objects may have been deleted before this one came. Nothing of it is in etcd for much longer.
            await self._store.delete(name)
            return 0
        try:
            gone = await self._transactions.archive(batch, await self._request_lease(batch))
        except FencedError:
            self._lease = 0
            raise
        now = self._clock.boottime()
        left = {task.record.task for task in batch} - {task.record.task for task in gone}
        for task in batch:
            # What is gone must not be taken again before the mirror shows that it is.
            self._skipped[tenant, task.record.task] = now + (REFUSED_PAUSE if task.record.task in left else MAX_PAUSE)
        self._metrics.archived.inc(len(gone))
        self._metrics.bundle_bytes.inc(len(data))
        _log.info("archived", tenant=tenant, tasks=len(gone), left=len(left), bundle=str(name), bytes=len(data))
        return len(gone)

    async def _specs(self, batch: Sequence[Task]) -> dict[str, bytes]:
        """The inline specs of the tasks, by id: many in one read, which a refused transaction is."""
        inline = [task.record for task in batch if not task.record.spec_object]
        found: dict[str, bytes] = {}
        for some in (inline[at : at + _READS] for at in range(0, len(inline), _READS)):
            wanted = {keys.spec(record.tenant, record.task): record.task for record in some}
            never = next(iter(wanted))
            result = await self._kv.txn([Exists(never), Absent(never)], [], read_on_failure=list(wanted))
            found.update((wanted[entry.key], entry.value) for entry in result.read)
        return found

    async def _request_lease(self, batch: Sequence[Task]) -> int:
        """The hour's lease for request ids; 0 when no task of the batch has one."""
        if not any(task.record.request for task in batch):
            return 0
        now = self._clock.boottime()
        if not self._lease or now - self._granted >= LEASE_EVERY:
            self._lease = await self._kv.grant(round(self._rules.request_retention + LEASE_EVERY))
            self._granted = now
        return self._lease
