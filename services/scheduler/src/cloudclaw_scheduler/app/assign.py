"""Claims and assignments of one task on one node."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination import life
from cloudclaw.coordination.port import Entry
from cloudclaw.coordination.records import TaskRecord
from cloudclaw.coordination.transactions import Transactions, Versioned
from cloudclaw.errors import UnavailableError
from cloudclaw.ids import new_id
from cloudclaw.refs import ref_of
from cloudclaw.v1.scheduler_pb2 import Assignment, ConnectResponse
from cloudclaw.v1.task_pb2 import TaskSpec
from cloudclaw_scheduler.app.leading import Leading
from cloudclaw_scheduler.app.links import Links
from cloudclaw_scheduler.app.logs import LogHub
from cloudclaw_scheduler.app.metrics import Metrics
from cloudclaw_scheduler.app.specs import Specs, parse
from cloudclaw_scheduler.app.state import Attempt, Workspace
from cloudclaw_scheduler.domain.logs import room_left

_log = structlog.get_logger()

_RETRY: Final = 0.5


class Assigner:
    """Makes attempts and tells their nodes."""

    def __init__(
        self,
        leading: Leading,
        transactions: Transactions,
        specs: Specs,
        links: Links,
        hub: LogHub,
        clock: Clock,
        metrics: Metrics,
        log_limit: int = 0,
    ) -> None:
        """`log_limit`: bytes of log of one task, 0 for no limit."""
        self._log_limit = log_limit
        self._leading = leading
        self._transactions = transactions
        self._specs = specs
        self._links = links
        self._hub = hub
        self._clock = clock
        self._metrics = metrics

    async def held(self, attempt: Attempt) -> bool:
        """Whether the attempt still holds its lease, as the store says (linearizable)."""
        return await self._transactions.token_valid(attempt.token, attempt.uid)

    async def claim(
        self, task: Versioned[TaskRecord], node: Entry, name: str, workspace: Workspace | None, spec: bytes | None
    ) -> Versioned[TaskRecord]:
        """Claim `task` for the node `name`, whose key is `node`, and send the assignment.

        The spec is read while the transaction runs when it is not at hand; one that is an object is read before,
        since a lost object must fail the task without costing an attempt. Raises what `Transactions.claim` and
        `Specs.read` raise; the claim may have happened after `UnavailableError` only.
        """
        record = task.record
        now = self._clock.wall()
        head = workspace.record.head if workspace else None
        claimed = life.claimed(record, node=name, uid=new_id("att"), base=head, now=now, op_id=new_id("op"))
        known = parse(spec, record.task) if spec is not None else None
        if known is None and record.spec_object:
            known = await self._specs.read(record)
        started = self._clock.boottime()
        transaction = self._transactions.claim(
            self._leading.guard(), task, claimed, node, workspace=workspace.entry if workspace else None
        )
        if known is not None:
            done = await transaction
        else:
            reading = asyncio.ensure_future(self._patiently(record))
            try:
                done = await transaction
                known = await reading
            finally:
                reading.cancel()
        self._metrics.claim_seconds.observe(self._clock.boottime() - started)
        self._metrics.wait_seconds.observe(max(0.0, now - record.queued))
        self._hub.expect(record.tenant, record.task, claimed.uid, done.mod_revision)
        self._send(done.record, done.mod_revision, known)
        return done

    async def assign(self, task: Versioned[TaskRecord], attempt: Attempt) -> None:
        """Send the assignment of an attempt that its node does not have (rule 5; idempotent by token)."""
        self._send(task.record, attempt.revision, await self._patiently(task.record))

    async def _patiently(self, record: TaskRecord) -> TaskSpec:
        while True:
            try:
                return await self._specs.read(record)
            except UnavailableError as error:
                _log.warning("the spec cannot be read; waiting", task=record.task, error=error.message)
                await self._clock.sleep(_RETRY)

    def _send(self, record: TaskRecord, token: int, spec: TaskSpec) -> None:
        link = self._links.get(record.node)
        if link is None:
            return  # its next Hello brings the assignment
        start = record.checkpoint or record.base
        if start is not None:
            link.takes(record.tenant, start.id)
        link.send(
            ConnectResponse(
                assignment=Assignment(
                    tenant=record.tenant,
                    task_id=record.task,
                    attempt=record.attempt,
                    uid=record.uid,
                    token=token,
                    spec=spec,
                    base=ref_of(start) if start else None,
                    head=ref_of(record.base) if record.base else None,
                    resumes=record.checkpoint is not None,
                    cancel_requested=record.cancel_requested,
                    log_limit=room_left(self._log_limit, (end.log_end for end in record.attempts[:-1])),
                )
            )
        )
        _log.debug("assigned", tenant=record.tenant, task=record.task, attempt=record.attempt, node=record.node)
