"""Checkpoints of running attempts: reports → one guarded transaction → a verdict; and requests for them (rule 5).

A request is state, not a message: while a RUNNING task's record wants more checkpoints than were served, its node is
asked, once for each of its streams and each new request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination import life
from cloudclaw.coordination.port import CreateIs, KeyValue
from cloudclaw.coordination.records import TaskRecord, TaskState
from cloudclaw.coordination.transactions import Token, Transactions, Versioned
from cloudclaw.errors import AbortedError, FencedError, QuotaExceededError, UnavailableError
from cloudclaw.ids import new_id, opaque_or_none
from cloudclaw.refs import pointer_of
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw_scheduler.app.leading import Leading
from cloudclaw_scheduler.app.links import Links, NodeLink
from cloudclaw_scheduler.app.metrics import Metrics
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.results import Results
from cloudclaw_scheduler.app.spawner import Spawner
from cloudclaw_scheduler.app.state import Change, Kind
from cloudclaw_scheduler.app.use import model_use_of, usage_of

_log = structlog.get_logger()

_TRIES: Final = 5
COMMITTED: Final = pb.ReportVerdict.VERDICT_COMMITTED
FENCED: Final = pb.ReportVerdict.VERDICT_FENCED
RETRY: Final = pb.ReportVerdict.VERDICT_RETRY


class Checkpoints:
    """Asks nodes for checkpoints and takes theirs in. Leader only."""

    def __init__(
        self,
        kv: KeyValue,
        mirror: Mirror,
        leading: Leading,
        transactions: Transactions,
        links: Links,
        results: Results,
        spawner: Spawner,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._kv = kv
        self._mirror = mirror
        self._leading = leading
        self._transactions = transactions
        self._links = links
        self._results = results
        self._spawner = spawner
        self._clock = clock
        self._metrics = metrics
        self._reports: dict[str, deque[pb.CheckpointReport]] = {}

    # -- requests --

    def reloaded(self) -> None:
        """Ask again for what the mirror shows to be wanted."""
        for link in self._links:
            self.heard(link)

    def changed(self, changes: Sequence[Change]) -> None:
        for change in changes:
            task = change.value
            if change.kind is Kind.TASK and isinstance(task, Versioned) and _waits(task.record):
                link = self._links.get(task.record.node)
                if link is not None:
                    self._ask(link, task.record)

    def heard(self, link: NodeLink) -> None:
        """The node said what it has: ask for the checkpoints that are wanted of it."""
        for running in link.running.values():
            task = self._mirror.state.task(running.tenant, running.task_id)
            if task is not None and _waits(task.record):
                self._ask(link, task.record)

    def _ask(self, link: NodeLink, record: TaskRecord) -> None:
        """Send the request, unless this stream carried it before or the node does not run the attempt yet."""
        attempt = self._mirror.state.attempt(link.node, record.tenant, record.task)
        if attempt is None or attempt.uid != record.uid:
            return
        running = link.running.get(attempt.revision)
        if running is None or running.phase != pb.ATTEMPT_PHASE_RUNNING:
            return  # a heartbeat will tell that it runs
        if link.asked.get(attempt.revision, 0) >= record.checkpoint_wanted:
            return
        link.asked[attempt.revision] = record.checkpoint_wanted
        link.send(
            pb.ConnectResponse(
                take_checkpoint=pb.TakeCheckpoint(
                    tenant=record.tenant,
                    task_id=record.task,
                    token=attempt.revision,
                    request=record.checkpoint_wanted,
                )
            )
        )

    # -- reports --

    def report(self, link: NodeLink, report: pb.CheckpointReport) -> None:
        """Take a report in; its verdict follows on the node's link.

        Reports of one attempt are judged one after the other as they came, so that a repeated one can never take
        the place of the checkpoint after it.
        """
        waiting = self._reports.get(report.uid)
        if waiting is None:
            self._reports[report.uid] = deque((report,))
            self._spawner.spawn(self._judge_all(link, report.uid))
        elif report not in waiting:
            waiting.append(report)

    async def _judge_all(self, link: NodeLink, uid: str) -> None:
        waiting = self._reports[uid]
        try:
            while waiting:
                report = waiting[0]
                verdict = RETRY
                try:
                    verdict = await self._judge(link.node, report)
                except (UnavailableError, QuotaExceededError) as error:
                    _log.info(
                        "checkpoint not recorded yet", tenant=report.tenant, task=report.task_id, error=error.message
                    )
                finally:
                    waiting.popleft()
                    # The node may have connected again meanwhile, and repeated the report on its new stream.
                    (self._links.get(link.node) or link).send(
                        pb.ConnectResponse(
                            checkpoint_verdict=pb.CheckpointVerdict(
                                uid=uid,
                                snapshot_id=report.snapshot.snapshot_id,
                                request=report.request,
                                verdict=verdict,
                            )
                        )
                    )
        finally:
            del self._reports[uid]

    async def _judge(self, node: str, report: pb.CheckpointReport) -> pb.ReportVerdict.Verdict:
        for _ in range(_TRIES):
            # Not from the mirror: only a record that is as new as the report tells a repeated checkpoint from the
            # next one. And only while this replica leads: another leader may have recorded this one and the next.
            task = await self._transactions.get_task(report.tenant, report.task_id)
            if not await self._leads():
                return RETRY
            if task is None or task.record.uid != report.uid or task.record.node != node:
                return self._fenced(report)
            try:
                await self._record(Token(node, report.tenant, report.task_id, report.token), task, report)
            except FencedError:
                return self._fenced(report)
            except AbortedError:
                continue  # a cancel or a request came between: once more with what is there now
            return COMMITTED
        return RETRY

    async def _leads(self) -> bool:
        """Whether the term still is (linearizable); then it was at every moment before."""
        guard = self._leading.guard()
        assert isinstance(guard, CreateIs)
        entry = await self._kv.get(guard.key)
        return entry is not None and entry.create_revision == guard.revision

    async def _record(self, token: Token, task: Versioned[TaskRecord], report: pb.CheckpointReport) -> None:
        record = task.record
        now = self._clock.wall()
        request = min(report.request, record.checkpoint_wanted)
        if not report.snapshot.snapshot_id:
            failure = report.failure or "its node did not say why"
            if request > record.checkpoint_served:
                after = life.checkpoint_refused(record, now, failure, op_id=new_id("op"), request=request)
                await self._transactions.serve_checkpoint(token, task, after)
            self._metrics.checkpoints.labels("failed").inc()
            _log.info(
                "checkpoint failed", tenant=record.tenant, task=record.task, attempt=record.attempt, error=failure
            )
            return
        pointer = pointer_of(report.snapshot)
        if request <= record.checkpoint_served and _recorded(record, report):
            return  # its verdict was lost
        frozen = report.frozen.ToMicroseconds() / 1_000_000
        op_id = new_id("op")
        inline = name = ""
        if report.final_message and record.plan.interactive:
            # An object of its own: that of the answer before is this record's until the transaction is through.
            inline, name = await self._results.keep_words(record, report.final_message, f"{record.uid}-{op_id}")
        after = life.checkpointed(
            record,
            now,
            pointer,
            op_id=op_id,
            request=request,
            frozen=frozen,
            session=opaque_or_none(report.session_id),
            answered=report.answered,
            inputs=report.inputs,
            usage=usage_of(report),
            model_use=model_use_of(report),
            result=inline,
            result_object=name,
        )
        await self._transactions.checkpoint(token, task, after, pointer)
        if record.result_object and record.result_object != after.result_object:
            self._spawner.spawn(self._results.forget(record))
        self._metrics.checkpoints.labels("committed").inc()
        self._metrics.freeze_seconds.observe(frozen)
        _log.debug(
            "checkpoint recorded", tenant=record.tenant, task=record.task, attempt=record.attempt, snapshot=pointer.id
        )

    def _fenced(self, report: pb.CheckpointReport) -> pb.ReportVerdict.Verdict:
        self._metrics.checkpoints.labels("fenced").inc()
        _log.warning("checkpoint refused: the token is no longer valid", tenant=report.tenant, task=report.task_id)
        return FENCED


def _recorded(record: TaskRecord, report: pb.CheckpointReport) -> bool:
    """Whether the record says all of it already. The same snapshot may be of another moment: a tree that did not change
    has its id, whatever was said meanwhile."""
    known = record.checkpoint is not None and record.checkpoint.id == report.snapshot.snapshot_id
    heard = min(report.inputs, record.inputs) <= record.inputs_done
    return known and heard and report.answered == record.answered


def _waits(record: TaskRecord) -> bool:
    """Whether a running attempt is asked for a checkpoint; one that is being canceled has no use for it."""
    wanted = record.checkpoint_wanted > record.checkpoint_served
    return wanted and record.state is TaskState.RUNNING and not record.cancel_requested
