"""Reports of ended attempts → one guarded transaction → a verdict for the node (rules 1, 6, 7 and 9)."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination import conversation, life
from cloudclaw.coordination.records import AttemptState, EndReason, Mode, TaskRecord, TaskState
from cloudclaw.coordination.transactions import Transactions, Versioned
from cloudclaw.errors import AbortedError, FencedError, PreconditionError, QuotaExceededError, UnavailableError
from cloudclaw.ids import new_id, opaque_or_none
from cloudclaw.refs import pointer_of
from cloudclaw.v1 import task_pb2
from cloudclaw.v1.scheduler_pb2 import AttemptOutcome, AttemptReport, ConnectResponse, ReportVerdict
from cloudclaw_scheduler.app.links import NodeLink
from cloudclaw_scheduler.app.logs import LogHub
from cloudclaw_scheduler.app.metrics import Metrics
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.results import Results, reported_part
from cloudclaw_scheduler.app.spawner import Spawner
from cloudclaw_scheduler.app.state import Attempt
from cloudclaw_scheduler.app.use import model_use_of, usage_of
from cloudclaw_scheduler.domain.outcome import Outcome, checked, commit_of, committed

_log = structlog.get_logger()

LOG_WAIT: Final = 2.0
"""Seconds that a finish waits for the log's last bytes before the node is told to report again."""
_TRIES: Final = 5
COMMITTED: Final = ReportVerdict.VERDICT_COMMITTED
FENCED: Final = ReportVerdict.VERDICT_FENCED
RETRY: Final = ReportVerdict.VERDICT_RETRY


class Finisher:
    """Takes reports in. A report that is being worked on is not begun twice; the node repeats it until it hears."""

    def __init__(
        self,
        mirror: Mirror,
        transactions: Transactions,
        hub: LogHub,
        results: Results,
        spawner: Spawner,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._mirror = mirror
        self._spawner = spawner
        self._transactions = transactions
        self._hub = hub
        self._results = results
        self._clock = clock
        self._metrics = metrics
        self._busy: set[str] = set()

    async def report(self, link: NodeLink, report: AttemptReport) -> None:
        """Finish the attempt and send the verdict down `link`."""
        if report.uid in self._busy:
            return
        self._busy.add(report.uid)
        began = self._clock.boottime()
        verdict = RETRY
        try:
            verdict = await self._judge(link, report)
        except (UnavailableError, QuotaExceededError) as error:
            _log.info("not finished yet", tenant=report.tenant, task=report.task_id, error=error.message)
        finally:
            self._busy.discard(report.uid)
            self._metrics.finish_seconds.observe(self._clock.boottime() - began)
            link.send(
                ConnectResponse(
                    verdict=ReportVerdict(tenant=report.tenant, task_id=report.task_id, uid=report.uid, verdict=verdict)
                )
            )

    async def fail(self, attempt: Attempt, message: str) -> None:
        """End an attempt that cannot be given to its node, for a fault of CloudClaw's own."""
        outcome = Outcome(AttemptState.FAILED, EndReason.INTERNAL, message, None, 0, None, 0.0, retryable=False)
        task = self._mirror.state.task(*attempt.key)
        if task is not None and task.record.uid == attempt.uid:
            await self._finish(task, attempt.revision, outcome, AttemptOutcome())

    async def _judge(self, link: NodeLink, report: AttemptReport) -> ReportVerdict.Verdict:
        task = await self._task(report)
        if task is None or task.record.uid != report.uid:
            return self._settled(task, report)
        outcome = outcome_of(report.outcome)
        if outcome.reason is EndReason.DRAINED:
            link.draining = True  # its next heartbeat says so too, but the task must not come back before that
        if not await self._hub.reached(report.tenant, report.uid, outcome.log_end, LOG_WAIT):
            _log.info("the log is not durable yet", tenant=report.tenant, task=report.task_id, end=outcome.log_end)
            return RETRY
        if outcome.reason is not EndReason.SLOT_FAILED:
            return await self._commit(link, report, task, outcome)
        try:
            # Its spool may be gone with the slot, so the node may know of less than was stored already.
            end = await self._hub.hold(report.tenant, report.uid)
            return await self._commit(link, report, task, replace(outcome, log_end=max(outcome.log_end, end)))
        finally:
            # What was not finished after all goes on taking its log in; once it has ended this does nothing.
            self._hub.release(report.uid)

    async def _commit(
        self, link: NodeLink, report: AttemptReport, task: Versioned[TaskRecord], outcome: Outcome
    ) -> ReportVerdict.Verdict:
        """Finish the attempt, whatever changes its task meanwhile."""
        for _ in range(_TRIES):
            try:
                done = await self._finish(task, report.token, outcome, report.outcome)
            except FencedError:
                return self._settled(await self._transactions.get_task(report.tenant, report.task_id), report)
            except PreconditionError as error:
                if error.reason != "HEAD_MOVED":
                    raise
                outcome = _refused(outcome, error)
                continue
            except AbortedError:
                now = await self._transactions.get_task(report.tenant, report.task_id)
                if now is None or now.record.uid != report.uid:
                    return self._settled(now, report)
                task = now
                continue
            keeps = done.state is TaskState.SUCCEEDED and done.plan.mode is not Mode.EPHEMERAL
            keeps = keeps or outcome.parks
            if keeps and outcome.snapshot is not None:
                link.caches(report.tenant, outcome.snapshot.id)
            return COMMITTED
        return RETRY

    async def _task(self, report: AttemptReport) -> Versioned[TaskRecord] | None:
        """The task as the mirror shows it, read from etcd when that cannot be right."""
        task = self._mirror.state.task(report.tenant, report.task_id)
        if task is None or task.record.uid != report.uid:
            task = await self._transactions.get_task(report.tenant, report.task_id)
        return task

    def _settled(self, task: Versioned[TaskRecord] | None, report: AttemptReport) -> ReportVerdict.Verdict:
        """The verdict on an attempt that is not the task's current one."""
        if task is not None and committed(task.record, report.uid):
            return COMMITTED
        self._metrics.fenced.inc()
        _log.warning("report refused: the token is no longer valid", tenant=report.tenant, task=report.task_id)
        return FENCED

    async def _finish(
        self, task: Versioned[TaskRecord], token: int, outcome: Outcome, reported: AttemptOutcome
    ) -> TaskRecord:
        record = task.record
        outcome = checked(record, outcome)
        if outcome.parks and not record.cancel_requested:
            return await self._park(task, token, outcome, reported)
        commit = commit_of(record, outcome)
        ended = functools.partial(
            life.reported,
            record,
            self._clock.wall(),
            outcome.state,
            outcome.reason,
            outcome.message,
            op_id=new_id("op"),
            exit_code=outcome.exit_code,
            log_end=outcome.log_end,
            retryable=outcome.retryable,
            token=token,
            started=outcome.started,
            session=outcome.session,
            usage=usage_of(reported),
            model_use=model_use_of(reported),
        )
        after = ended()
        if after.state.ended:  # an attempt that is tried again leaves no result, and no object for one
            part = reported_part(reported, commit, record.queued)
            if record.plan.interactive and not part.final_message:
                part.final_message = await self._results.last_words(record)
            inline, name = await self._results.place(record, record.uid, part)
            after = ended(result=inline, result_object=name)
        held = Attempt(record.node, record.tenant, record.task, record.attempt, record.uid, token)
        await self._transactions.finish(held.token, task, after, snapshot=commit.snapshot, move_head=commit.move_head)
        self._done(record, after)
        return after

    async def _park(
        self, task: Versioned[TaskRecord], token: int, outcome: Outcome, reported: AttemptOutcome
    ) -> TaskRecord:
        """The attempt gives its slot back; what it said last is kept, should nothing follow."""
        record = task.record
        assert outcome.snapshot is not None
        # An attempt that found nothing to do says nothing.
        said = reported.final_message or await self._results.last_words(record)
        inline, name = await self._results.keep_words(record, said, record.uid, outcome.session)
        after = conversation.parked(
            record,
            self._clock.wall(),
            outcome.snapshot,
            outcome.message,
            op_id=new_id("op"),
            token=token,
            log_end=outcome.log_end,
            started=outcome.started,
            session=outcome.session,
            inputs=outcome.inputs,
            usage=usage_of(reported),
            model_use=model_use_of(reported),
            result=inline,
            result_object=name,
        )
        held = Attempt(record.node, record.tenant, record.task, record.attempt, record.uid, token)
        await self._transactions.park(held.token, task, after, outcome.snapshot)
        self._done(record, after)
        return after

    def _done(self, before: TaskRecord, after: TaskRecord) -> None:
        self._hub.close(before.uid)
        self._count(after)
        if before.result_object and before.result_object != after.result_object:
            self._spawner.spawn(self._results.forget(before))

    def _count(self, after: TaskRecord) -> None:
        end = after.attempts[-1]
        self._metrics.attempts.labels(end.state.value, end.reason.value if end.reason else "").inc()
        if after.state.ended:
            self._metrics.ended.labels(after.state.value).inc()
        else:
            causes = {EndReason.DRAINED: "drain", EndReason.PARKED: "park"}
            self._metrics.requeued.labels(causes.get(end.reason or EndReason.INTERNAL, "retry")).inc()
        _log.debug("finished", tenant=after.tenant, task=after.task, attempt=after.attempt, state=after.state.value)


def outcome_of(message: AttemptOutcome) -> Outcome:
    """The deciding part of a report. Values that mean nothing count as a fault of the node: FAILED, INTERNAL."""
    state = task_pb2.AttemptState.Name(message.state) if message.state in task_pb2.AttemptState.values() else ""
    reason = task_pb2.EndReason.Name(message.reason) if message.reason in task_pb2.EndReason.values() else ""
    known = state.removeprefix("ATTEMPT_STATE_") in ("SUCCEEDED", "FAILED", "CANCELED")
    said = reason.removeprefix("END_REASON_")
    snapshot = message.snapshot if message.HasField("snapshot") and message.snapshot.snapshot_id else None
    return Outcome(
        state=AttemptState(state.removeprefix("ATTEMPT_STATE_")) if known else AttemptState.FAILED,
        reason=EndReason(said) if known and said in EndReason.__members__ else EndReason.INTERNAL,
        message=message.message,
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        log_end=message.log_end,
        snapshot=pointer_of(snapshot) if snapshot else None,
        started=message.started.ToMicroseconds() / 1_000_000 if message.HasField("started") else 0.0,
        retryable=message.retryable,
        inputs=message.inputs,
        session=opaque_or_none(message.session_id),  # whatever its program printed
    )


def _refused(outcome: Outcome, error: PreconditionError) -> Outcome:
    """The commit was refused (the head moved): the attempt's files cannot be published, so it failed."""
    return Outcome(
        AttemptState.FAILED,
        EndReason.SNAPSHOT_FAILED,
        f"the result could not be committed: {error.message}",
        outcome.exit_code,
        outcome.log_end,
        None,
        outcome.started,
        retryable=False,
    )
