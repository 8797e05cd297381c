"""Submit and cancel: what users may write."""

from __future__ import annotations

import hashlib
from typing import Final

import structlog
from msgspec.structs import replace

from cloudclaw.clock import Clock
from cloudclaw.coordination import keys, life
from cloudclaw.coordination.port import KeyValue
from cloudclaw.coordination.records import MAX_INLINE_SPEC, Plan, RequestRecord, TaskRecord, TaskState, decode
from cloudclaw.coordination.transactions import Submission, Transactions, Versioned
from cloudclaw.errors import (
    AbortedError,
    AlreadyExistsError,
    CloudClawError,
    NotFoundError,
    PreconditionError,
    QuotaExceededError,
    UnavailableError,
)
from cloudclaw.ids import check_opaque_id, new_id
from cloudclaw_scheduler.app.history import History
from cloudclaw_scheduler.app.metrics import Metrics
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.specs import Specs

_log = structlog.get_logger()

FULL: Final = 0.6
"""Share of etcd's limit above which new tasks are refused, so that those that run can end (rule 12)."""
LOOK_EVERY: Final = 5.0
DEFAULT_LIMIT: Final = 2 * 1024**3
"""etcd's own default limit, when it does not tell."""
_TRIES: Final = 10


class Fullness:
    """How full etcd is, looked at every few seconds."""

    def __init__(self, kv: KeyValue, clock: Clock, metrics: Metrics) -> None:
        self._kv = kv
        self._clock = clock
        self._metrics = metrics
        self.used = 0
        self.limit = 0

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                self.used, self.limit = await self._kv.database_size()
                self._metrics.etcd_bytes.set(self.used)
            except UnavailableError as error:
                _log.debug("etcd's size is not known", error=error.message)
            await self._clock.sleep(LOOK_EVERY)

    def check(self) -> None:
        """`QuotaExceededError(reason="COORDINATION_FULL")` when new tasks have to wait."""
        limit = self.limit or DEFAULT_LIMIT
        if self.used > FULL * limit:
            raise QuotaExceededError(
                f"etcd holds {self.used} of {limit} bytes; tasks are accepted again below {FULL:.0%}."
                f" Try again in {LOOK_EVERY:.0f} s, or make room (archive, compact, defragment)",
                subject="etcd",
                reason="COORDINATION_FULL",
            )


class Submitter:
    """Accepts and cancels tasks; any replica does it."""

    def __init__(
        self,
        kv: KeyValue,
        mirror: Mirror,
        transactions: Transactions,
        specs: Specs,
        fullness: Fullness,
        clock: Clock,
        metrics: Metrics,
        pools: dict[str, frozenset[str]],
        history: History,
    ) -> None:
        self._kv = kv
        self._mirror = mirror
        self._transactions = transactions
        self._specs = specs
        self._fullness = fullness
        self._clock = clock
        self._metrics = metrics
        self._pools = pools
        self._history = history
        self._stopped = False

    async def stop(self) -> None:
        """Accept no more tasks: this replica is about to stop."""
        self._stopped = True

    async def submit(self, tenant: str, plan: Plan, spec: bytes, request_id: str) -> Submission:
        """Accept a task whose plan was made of `spec` (serialized deterministically).

        Raises as `SubmitTask` documents; nothing of a refused task is stored but, at worst, an object nobody
        refers to.
        """
        if request_id:
            check_opaque_id(request_id, "request_id")
        if self._stopped:
            raise UnavailableError("this replica is stopping; try again", retry_after=0.5, reason="STOPPING")
        digest = hashlib.sha256(spec).hexdigest() if request_id else ""
        try:
            await self._check(tenant, plan)
        except CloudClawError:
            # Whatever is full or gone by now, a task that was accepted is answered.
            if request_id and (earlier := await self._earlier(tenant, request_id, digest)):
                return earlier
            raise
        # The transaction looks for an earlier task too; a spec that becomes an object is not stored twice.
        large = len(spec) > MAX_INLINE_SPEC
        if large and request_id and (earlier := await self._earlier(tenant, request_id, digest)):
            return earlier
        task = new_id("task")
        record = life.queued(
            tenant=tenant, task=task, plan=plan, now=self._clock.wall(), op_id=new_id("op"), request=request_id
        )
        placed = await self._specs.place(tenant, task, spec)
        try:
            submission = await self._transactions.submit(
                replace(record, spec_object=placed), b"" if placed else spec, request_id=request_id, digest=digest
            )
        except NotFoundError:
            # Another call with this request id was quicker, and its task is archived by now.
            if request_id and (earlier := await self._earlier(tenant, request_id, digest)):
                return earlier
            raise
        self._mirror.wrote(submission.task.mod_revision)
        if submission.created:
            self._metrics.submitted.labels(tenant).inc()
        return submission

    async def _earlier(self, tenant: str, request_id: str, digest: str) -> Submission | None:
        """The task that was accepted for this request, None for a new one. `AlreadyExistsError`, `NotFoundError`."""
        entry = await self._kv.get(keys.request(tenant, request_id))
        if entry is None:
            return None
        request = decode(entry.value, RequestRecord)
        if request.digest != digest:
            raise AlreadyExistsError(
                f"request id {request_id!r} was used for another request body; choose a new id",
                reason="REQUEST_ID_REUSED",
                metadata={"task": request.task},
            )
        task = await self._transactions.get_task(tenant, request.task)
        if task is None and (archived := await self._history.find(tenant, request.task)):
            task = archived.task
        if task is None:
            raise NotFoundError(f"the task of request {request_id!r} is gone", metadata={"task": request.task})
        return Submission(task, False)

    async def cancel(self, tenant: str, task: str) -> Versioned[TaskRecord]:
        """Cancel a queued task at once, ask a running one to end; one that has ended is answered as it is."""
        for _ in range(_TRIES):
            found = await self._transactions.get_task(tenant, task)
            if found is None and (archived := await self._history.find(tenant, task)):
                return archived.task
            if found is None:
                raise task_not_found(task)
            record = found.record
            if record.state.ended or record.cancel_requested:
                return found
            change = life.canceled if record.state is TaskState.QUEUED else life.cancel_requested
            after = change(record, self._clock.wall(), op_id=new_id("op"))
            try:
                done = await self._transactions.cancel(found, after)
            except AbortedError:
                continue  # it was claimed, finished or requeued meanwhile: look again
            self._mirror.wrote(done.mod_revision)
            if after.state.ended:
                self._metrics.ended.labels(after.state.value).inc()
            return done
        raise AbortedError(f"{task} changes too fast; try again")

    async def _check(self, tenant: str, plan: Plan) -> None:
        """Refuse what cannot be accepted now."""
        if tenant in self._mirror.state.buried:
            raise PreconditionError(f"tenant {tenant!r} is being deleted", subject=tenant, reason="TENANT_DELETED")
        self._fullness.check()
        self._check_pool(plan)
        await self._check_workspace(tenant, plan)

    def _check_pool(self, plan: Plan) -> None:
        offered = self._pools.get(plan.pool, frozenset()) | self._mirror.state.pools.get(plan.pool, set())
        if not offered:
            known = sorted({*self._pools, *self._mirror.state.pools})
            raise PreconditionError(
                f"there is no pool {plan.pool!r}; there are: {', '.join(known) or 'none'}",
                subject=plan.pool,
                reason="NO_SUCH_POOL",
            )
        if plan.runtime not in offered:
            raise PreconditionError(
                f"the pool {plan.pool!r} does not offer the runtime {plan.runtime!r}; it offers:"
                f" {', '.join(sorted(offered))}",
                subject=plan.runtime,
                reason="NO_SUCH_RUNTIME",
            )

    async def _check_workspace(self, tenant: str, plan: Plan) -> None:
        if not plan.workspace or (tenant, plan.workspace) in self._mirror.state.workspaces:
            return
        if await self._transactions.get_workspace(tenant, plan.workspace) is None:
            raise NotFoundError(
                f"there is no workspace {plan.workspace!r}; create it with `claw ws create {plan.workspace}`",
                reason="WORKSPACE_NOT_FOUND",
            )


def task_not_found(task: str) -> NotFoundError:
    """The same words for a task that never was and for another tenant's."""
    return NotFoundError(f"there is no task {task[:80]!r}", reason="TASK_NOT_FOUND")
