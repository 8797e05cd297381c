"""Assignments are state, not messages (rule 5): what a node says it has is compared with the leases it holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import structlog

from cloudclaw.coordination.transactions import Versioned
from cloudclaw.errors import DataLossError
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw_scheduler.app.assign import Assigner
from cloudclaw_scheduler.app.finish import Finisher
from cloudclaw_scheduler.app.links import Links, NodeLink
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.spawner import Spawner
from cloudclaw_scheduler.app.state import Attempt, Change, Kind

_log = structlog.get_logger()

PATIENCE: Final = 2
"""Heartbeats without an attempt that its node was told of, before it is told again: one may have crossed."""
_REPORTING: Final = pb.ATTEMPT_PHASE_REPORTING


class Reconciler:
    """Sends again what a node lacks, kills what it should not have, and delivers cancels."""

    def __init__(self, mirror: Mirror, links: Links, assigner: Assigner, finisher: Finisher, spawner: Spawner) -> None:
        self._mirror = mirror
        self._links = links
        self._assigner = assigner
        self._finisher = finisher
        self._spawner = spawner

    def reloaded(self) -> None:
        """Nothing is kept here that a heartbeat would not bring anew."""

    def changed(self, changes: Sequence[Change]) -> None:
        for change in changes:
            task = change.value
            if change.kind is Kind.TASK and isinstance(task, Versioned) and task.record.cancel_requested:
                record = task.record
                attempt = self._mirror.state.attempt(record.node, record.tenant, record.task) if record.uid else None
                link = self._links.get(record.node)
                if attempt is not None and link is not None:
                    self._cancel(link, attempt)

    def compare(self, link: NodeLink, reported: Iterable[pb.RunningAttempt], *, greeting: bool) -> None:
        """Bring the node into line. A `greeting` (Hello) is complete: what it lacks is sent at once."""
        state = self._mirror.state
        held = state.attempts.get(link.node, {})
        there: set[int] = set()
        for running in reported:
            there.add(running.token)
            attempt = held.get((running.tenant, running.task_id))
            if attempt is not None and attempt.revision == running.token:
                task = state.task(*attempt.key)
                # SAVING too: it may be waiting for the object store.
                if task is not None and task.record.cancel_requested and running.phase != _REPORTING:
                    self._cancel(link, attempt)
            elif running.token <= state.revision and running.phase != _REPORTING:
                # One that reports hears FENCED as its verdict; a newer token the mirror does not show yet.
                self._kill(link, running)
        missing: dict[int, int] = {}
        for attempt in held.values():
            if attempt.revision in there:
                continue
            count = link.missing.get(attempt.revision, 0) + 1
            missing[attempt.revision] = count
            if greeting or count > PATIENCE:
                missing[attempt.revision] = 0
                self._spawner.spawn(self._assign(attempt))
        link.missing = missing

    async def _assign(self, attempt: Attempt) -> None:
        task = self._mirror.state.task(*attempt.key)
        if task is None or task.record.uid != attempt.uid:
            return
        if not await self._assigner.held(attempt):
            return  # the mirror lags: it has ended, and must not be run again
        _log.info("assigned again", tenant=attempt.tenant, task=attempt.task, node=attempt.node)
        try:
            await self._assigner.assign(task, attempt)
        except DataLossError as error:
            await self._finisher.fail(attempt, error.message)

    def _cancel(self, link: NodeLink, attempt: Attempt) -> None:
        link.send(
            pb.ConnectResponse(
                cancel=pb.CancelAttempt(tenant=attempt.tenant, task_id=attempt.task, token=attempt.revision)
            )
        )

    def _kill(self, link: NodeLink, running: pb.RunningAttempt) -> None:
        _log.warning("attempt killed: its lease is gone", tenant=running.tenant, task=running.task_id, node=link.node)
        link.send(
            pb.ConnectResponse(
                kill=pb.KillAttempt(
                    tenant=running.tenant,
                    task_id=running.task_id,
                    token=running.token,
                    message="its lease on the task is gone",
                )
            )
        )
