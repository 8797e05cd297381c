"""A checkpoint that a user asks for: written as a wish into the task's record, answered when the record shows it."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from cloudclaw.clock import Clock
from cloudclaw.coordination import life
from cloudclaw.coordination.records import SnapshotPointer, TaskRecord, TaskState
from cloudclaw.coordination.transactions import Transactions, Versioned
from cloudclaw.errors import AbortedError, PreconditionError, UnavailableError
from cloudclaw.ids import new_id
from cloudclaw_scheduler.app.feed import Feed
from cloudclaw_scheduler.app.lookup import Lookup
from cloudclaw_scheduler.app.mirror import Mirror

_TRIES: Final = 10


@dataclass(frozen=True, slots=True)
class Taken:
    """A checkpoint, and how long the task's processes stood still for it (seconds)."""

    pointer: SnapshotPointer
    frozen: float


class OnDemand:
    """Asks for checkpoints and waits for them; any replica does it."""

    def __init__(self, mirror: Mirror, feed: Feed, transactions: Transactions, lookup: Lookup, clock: Clock) -> None:
        self._lookup = lookup
        self._mirror = mirror
        self._feed = feed
        self._transactions = transactions
        self._clock = clock

    async def take(self, tenant: str, task: str) -> Taken:
        """A checkpoint of the running attempt that was begun after this call.

        Raises `NotFoundError`; `PreconditionError` with reason TASK_NOT_RUNNING, or CHECKPOINT_REFUSED with what the
        node said; `AbortedError(reason="ATTEMPT_ENDED")` when the attempt ended first; `UnavailableError`.
        """
        asked = await self._want(tenant, task)
        number, uid = asked.record.checkpoint_wanted, asked.record.uid
        async with aclosing(self._feed.watch(tenant, task, asked.mod_revision)) as changes:
            # Every change comes by, so the first one that answers this request shows its own checkpoint.
            async for change in changes:
                record = change.record
                if record.uid != uid:
                    break
                if record.checkpoint_served < number:
                    continue
                if record.checkpoint_failure or record.checkpoint is None:
                    raise PreconditionError(
                        f"no checkpoint of {task} could be taken: {record.checkpoint_failure}",
                        subject=task,
                        reason="CHECKPOINT_REFUSED",
                    )
                return Taken(record.checkpoint, record.frozen)
        raise AbortedError(
            f"attempt {asked.record.attempt} of {task} ended before its checkpoint was taken",
            reason="ATTEMPT_ENDED",
            metadata={"task": task},
        )

    async def _want(self, tenant: str, task: str) -> Versioned[TaskRecord]:
        for _ in range(_TRIES):
            found = (await self._lookup.task(tenant, task)).task
            record = found.record
            if record.state is not TaskState.RUNNING or record.cancel_requested:
                now = "being canceled" if record.state is TaskState.RUNNING else record.state
                raise PreconditionError(f"{task} does not run; it is {now}", subject=task, reason="TASK_NOT_RUNNING")
            after = life.checkpoint_wanted(record, self._clock.wall(), op_id=new_id("op"))
            try:
                done = await self._transactions.want_checkpoint(found, after)
            except AbortedError:
                continue  # it changed meanwhile: look again
            self._mirror.wrote(done.mod_revision)
            return done
        raise UnavailableError(f"{task} changes too fast; try again", retry_after=0.2)
