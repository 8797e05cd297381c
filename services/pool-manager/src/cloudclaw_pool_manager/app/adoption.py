"""Taking over what an earlier process of this node left running: exactly what `attempts/{n}/` holds (rule 2)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from cloudclaw.coordination.records import AttemptEnd
from cloudclaw.coordination.transactions import Token
from cloudclaw.errors import InvalidArgumentError
from cloudclaw_pool_manager.app import messages
from cloudclaw_pool_manager.app.runner import Template
from cloudclaw_pool_manager.app.slots import SlotEntry, SlotPool
from cloudclaw_pool_manager.app.table import AttemptTable
from cloudclaw_pool_manager.domain.assignment import Assignment
from cloudclaw_pool_manager.domain.attempt import AttemptId, KillReason
from cloudclaw_pool_manager.ports.backend import SlotFailedError, SlotPhase, SlotStatus
from cloudclaw_pool_manager.ports.state import NodeState, Started

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Found:
    """A slot that was left running."""

    pool: SlotPool
    entry: SlotEntry
    status: SlotStatus

    async def speak(self) -> None:
        """Tell its supervisor that a manager is there, so that it waits."""
        if self.entry.slot is not None:
            try:
                await self.entry.slot.status()
            except SlotFailedError as error:
                _log.warning("an old slot does not answer any more", slot=self.entry.name, error=str(error))


async def find(templates: Mapping[str, Template]) -> list[Found]:
    """Connect to all slots that were left, raising their supervisors' incarnation."""
    return [
        Found(template.slots, entry, status)
        for template in templates.values()
        for entry, status in await template.slots.adopt()
    ]


async def adopt(
    found: Sequence[Found],
    live: Sequence[tuple[Token, AttemptEnd]],
    *,
    table: AttemptTable,
    state: NodeState,
) -> set[str]:
    """Resume the `live` attempts, kill and clean everything else; answers the uids that were resumed, whose trees
    alone are still wanted.

    An attempt whose slot is gone is reported as SLOT_FAILED. One that was remembered but never handed to its slot is
    forgotten: the leader assigns it again. Returns when nothing runs that should not.
    """
    remembered = {started.uid: started for started in await state.attempts()}
    wanted = {end.uid: token for token, end in live}
    resumed: set[str] = set()
    lost: set[str] = set()
    async with asyncio.TaskGroup() as group:
        for there in found:
            attempt = there.status.attempt
            started = remembered.get(attempt.uid) if attempt else None
            assignment = _assignment(started) if started else None
            if (
                attempt is not None
                and started is not None
                and assignment is not None
                and attempt.uid in wanted
                and wanted[attempt.uid].revision == attempt.token == assignment.attempt.token
            ):
                log_start = await state.forgotten(attempt.uid)
                runner = table.add(assignment)
                there.pool.occupy(there.entry, runner)
                runner.take_over(there.entry, there.status, started, log_start)
                table.start(runner, runner.resume())
                resumed.add(attempt.uid)
                _log.info("attempt adopted", task=attempt.task, attempt=attempt.uid, phase=there.status.phase.value)
            elif attempt is not None:
                group.create_task(_clean(there, attempt))
    for token, end in live:
        if end.uid in resumed:
            continue
        started = remembered.get(end.uid)
        if started is not None and _never_given(started, found):
            continue
        if started is None and not any(t.status.attempt and t.status.attempt.uid == end.uid for t in found):
            continue  # nothing of it was ever started here
        runner = table.add(
            (_assignment(started) if started else None)
            or Assignment(AttemptId(token.tenant, token.task, end.number, end.uid, token.revision))
        )
        table.start(runner, runner.report_lost("it was gone when the pool-manager came back"))
        lost.add(end.uid)
    for uid in remembered.keys() - resumed - lost:
        await state.forget_attempt(uid)
    return resumed


def _never_given(started: Started, found: Sequence[Found]) -> bool:
    """Its slot's supervisor is the one it was meant for, and has never heard of it."""
    return any(
        there.pool.name == started.pool
        and there.entry.name == started.slot
        and there.entry.slot is not None
        and there.entry.slot.pid == started.pid
        and there.status.attempt is None
        and there.status.phase is SlotPhase.IDLE
        for there in found
    )


def _assignment(started: Started) -> Assignment | None:
    try:
        return messages.parse_assignment(started.assignment)
    except InvalidArgumentError as error:
        _log.error("a remembered assignment cannot be read", attempt=started.uid, error=str(error))
        return None


async def _clean(there: Found, attempt: AttemptId) -> None:
    """Kill what is not ours (any more) and make its slot free."""
    _log.warning("killing an attempt that is not this node's any more", task=attempt.task, attempt=attempt.uid)
    slot = there.entry.occupied()
    try:
        await slot.stop(attempt.uid, KillReason.FENCED, 0)
        await slot.release(attempt.uid)
    except SlotFailedError as error:
        _log.warning("a slot could not be cleaned; replacing it", slot=there.entry.name, error=str(error))
        await there.pool.discard(there.entry)
    else:
        there.pool.give_back(there.entry)
