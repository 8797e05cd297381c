"""Claims and assignments of one task on one node."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination import life
from cloudclaw.coordination.port import Entry
from cloudclaw.coordination.records import TaskRecord
from cloudclaw.coordination.transactions import Transactions, Versioned
from cloudclaw.errors import UnavailableError
from cloudclaw.ids import new_id
from cloudclaw.refs import ref_of
from cloudclaw.v1.scheduler_pb2 import Assignment, ConnectResponse, TaskInput
from cloudclaw.v1.task_pb2 import TaskSpec
from cloudclaw_scheduler.app.inbox import Inbox
from cloudclaw_scheduler.app.leading import Leading
from cloudclaw_scheduler.app.links import Links
from cloudclaw_scheduler.app.logs import LogHub
from cloudclaw_scheduler.app.metrics import Metrics
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.specs import Specs, parse
from cloudclaw_scheduler.app.state import Attempt, Workspace
from cloudclaw_scheduler.app.use import model_use_message
from cloudclaw_scheduler.domain.logs import room_left
from cloudclaw_scheduler.domain.spec import DEFAULT_RUNTIME

_log = structlog.get_logger()

T = TypeVar("T")

_RETRY: Final = 0.5


class Assigner:
    """Makes attempts and tells their nodes."""

    def __init__(
        self,
        mirror: Mirror,
        leading: Leading,
        transactions: Transactions,
        specs: Specs,
        inbox: Inbox,
        links: Links,
        hub: LogHub,
        clock: Clock,
        metrics: Metrics,
        log_limit: int = 0,
    ) -> None:
        """`log_limit`: bytes of log of one task, 0 for no limit."""
        self._log_limit = log_limit
        self._mirror = mirror
        self._inbox = inbox
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
        since a lost object must fail the task without costing an attempt; so are inputs. Raises what
        `Transactions.claim`, `Specs.read` and `Inbox.read` raise; the claim may have happened after `UnavailableError`
        only.
        """
        record = task.record
        now = self._clock.wall()
        head = workspace.record.head if workspace else None
        claimed = life.claimed(record, node=name, uid=new_id("att"), base=head, now=now, op_id=new_id("op"))
        known = parse(spec, record.task) if spec is not None else None
        if known is None and record.spec_object:
            known = await self._specs.read(record)
        inputs = await self._inbox.read(record, record.inputs_done)
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
        self._send(done.record, done.mod_revision, known, inputs)
        return done

    async def assign(self, task: Versioned[TaskRecord], attempt: Attempt) -> None:
        """Send the assignment of an attempt that its node does not have (rule 5; idempotent by token)."""
        spec = await self._patiently(task.record)
        inputs = await self._insistently(lambda: self._inbox.read(task.record, task.record.inputs_done), task.record)
        self._send(task.record, attempt.revision, spec, inputs)

    async def _patiently(self, record: TaskRecord) -> TaskSpec:
        return await self._insistently(lambda: self._specs.read(record), record)

    async def _insistently(self, read: Callable[[], Awaitable[T]], record: TaskRecord) -> T:
        while True:
            try:
                return await read()
            except UnavailableError as error:
                _log.warning("the spec or an input cannot be read; waiting", task=record.task, error=error.message)
                await self._clock.sleep(_RETRY)

    def _send(self, record: TaskRecord, token: int, spec: TaskSpec, inputs: Sequence[TaskInput]) -> None:
        link = self._links.get(record.node)
        if link is None:
            return  # its next Hello brings the assignment
        start = record.checkpoint or record.base
        if start is not None:
            link.takes(record.tenant, start.id)
        # The rest follows as soon as the node says that it has the attempt, if these are not all.
        last = inputs[-1].number if inputs else record.inputs_done
        agent = record.plan.runtime != DEFAULT_RUNTIME
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
                    session_id=record.session if record.checkpoint is not None else "",
                    inputs=inputs,
                    inputs_done=record.inputs_done,
                    answered=record.answered and record.checkpoint is not None,
                    closing=record.closes and last >= record.inputs,
                    model_keys=self._mirror.state.model_keys.get(record.tenant) if agent else None,
                    model_use=model_use_message(record.model_use),
                    log_limit=room_left(
                        self._log_limit, (record.earlier_log, *(end.log_end for end in record.attempts[:-1]))
                    ),
                )
            )
        )
        _log.debug("assigned", tenant=record.tenant, task=record.task, attempt=record.attempt, node=record.node)
