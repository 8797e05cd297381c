"""A user's message to a conversation: written beside its task, delivered by the leader when it sees it there."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from cloudclaw.clock import Clock
from cloudclaw.coordination import conversation
from cloudclaw.coordination.records import InputRecord, TaskRecord
from cloudclaw.coordination.transactions import Transactions
from cloudclaw.errors import AbortedError, AlreadyExistsError, UnavailableError
from cloudclaw.ids import new_id
from cloudclaw_scheduler.app.inbox import Inbox
from cloudclaw_scheduler.app.lookup import Lookup
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.state import TaskKey
from cloudclaw_scheduler.app.submit import Fullness

_TRIES: Final = 20


@dataclass(frozen=True, slots=True)
class Message:
    """What a user sends. `delay`: seconds, 0 for at once."""

    message_id: str
    text: str
    end: bool
    delay: float

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all of it."""
        said = f"{int(self.end)} {self.delay!r} ".encode() + self.text.encode()
        return hashlib.sha256(said).hexdigest()


@dataclass(frozen=True, slots=True)
class Accepted:
    """Whether this call brought the message, and its number: 0 for one that is not due yet, and for a mere end."""

    fresh: bool
    number: int


class Sender:
    """Accepts messages; any replica does it."""

    def __init__(
        self,
        mirror: Mirror,
        transactions: Transactions,
        lookup: Lookup,
        inbox: Inbox,
        fullness: Fullness,
        clock: Clock,
    ) -> None:
        self._mirror = mirror
        self._transactions = transactions
        self._lookup = lookup
        self._inbox = inbox
        self._fullness = fullness
        self._clock = clock
        self._turns: WeakValueDictionary[TaskKey, asyncio.Lock] = WeakValueDictionary()

    async def send(self, tenant: str, task: str, message: Message) -> Accepted:
        """Accept a message; one whose id is known is answered as it was accepted.

        Raises `NotFoundError`, `AlreadyExistsError(reason="MESSAGE_ID_REUSED")` for a known id with another message,
        what `conversation.sent` raises, `QuotaExceededError(reason="COORDINATION_FULL")`, `UnavailableError`.
        """
        turn = self._turns.setdefault((tenant, task), asyncio.Lock())
        async with turn:  # those of one task would only get into each other's way
            return await self._send(tenant, task, message)

    async def _send(self, tenant: str, task: str, message: Message) -> Accepted:
        op_id = new_id("op")
        placed: tuple[str, str] | None = None
        for _ in range(_TRIES):
            found = (await self._lookup.task(tenant, task)).task
            known = await self._transactions.get_input(tenant, task, message.message_id)
            if known is not None:
                return _repeated(message, known.record, op_id)
            self._fullness.check()
            now = self._clock.wall()
            due = round(now + message.delay, 3) if message.delay else 0.0
            after = conversation.sent(
                found.record,
                now,
                op_id=op_id,
                text=bool(message.text),
                size=len(message.text.encode()),
                end=message.end,
                due=due,
            )
            if placed is None:
                placed = await self._inbox.place(tenant, task, message.text)
            record = _record(message, found.record, after, now, due, placed)
            try:
                done = await self._transactions.send_input(found, after, message.message_id, record)
            except (AbortedError, AlreadyExistsError):
                continue  # it was claimed, parked or spoken to meanwhile: look again
            self._mirror.wrote(done.mod_revision)
            return Accepted(True, record.number)
        raise UnavailableError(f"{task} changes too fast; try again", retry_after=0.2)


def _record(
    message: Message, before: TaskRecord, after: TaskRecord, now: float, due: float, placed: tuple[str, str]
) -> InputRecord:
    return InputRecord(
        op_id=after.op_id,
        digest=message.digest,
        created=round(now, 3),
        number=after.inputs if after.inputs > before.inputs else 0,
        due=due if message.text else 0.0,
        text=placed[0],
        object=placed[1],
        end=message.end and not message.text,
    )


def _repeated(message: Message, known: InputRecord, op_id: str) -> Accepted:
    if known.digest != message.digest:
        raise AlreadyExistsError(
            f"message id {message.message_id!r} was used for another message; choose a new id",
            reason="MESSAGE_ID_REUSED",
        )
    # One of our own is there after an answer that was lost.
    return Accepted(known.op_id == op_id, known.number)
