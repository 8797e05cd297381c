"""What a node remembers on its own disk from one pool-manager process to the next."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Drain(enum.StrEnum):
    """What an operator wants of a node's work."""

    NONE = "none"
    FINISH = "finish"
    """Take no new work; what runs ends here."""
    HAND_OVER = "hand_over"
    """Take no new work; what runs goes on elsewhere from a checkpoint."""


@dataclass(frozen=True, slots=True)
class Started:
    """An attempt that was about to be started, or was.

    Attributes:
        uid: the attempt's.
        assignment: as it arrived, serialized.
        pool: whose slot.
        slot: name of its slot.
        pid: of that slot's supervisor; the same supervisor, idle, means that the start never reached it.
        prepared: wall clock seconds when its preparation began.
        boottime: boot time of the start.
    """

    uid: str
    assignment: bytes
    pool: str
    slot: str
    pid: int
    prepared: float
    boottime: float


class NodeState(Protocol):
    """Small durable facts. Writes are whole or absent, whenever the process dies.

    `remember_lease` and `remember_term` survive a crash of the machine too. Attempts need not: after one,
    no sandbox is left to adopt.
    """

    async def lease(self) -> int | None:
        """The lease that an earlier process used."""
        ...

    async def remember_lease(self, lease: int, incarnation: int) -> None:
        """Before the lease is used for anything."""
        ...

    async def incarnation(self) -> int:
        """The incarnation remembered with the lease; 0 for none."""
        ...

    async def term(self) -> int:
        """The newest leader's term seen; 0 for none. A leader of an older term is not believed (rule 5)."""
        ...

    async def remember_term(self, term: int) -> None:
        """Before anything from that leader is believed."""
        ...

    async def drain(self) -> Drain:
        """What an operator said last."""
        ...

    async def remember_drain(self, drain: Drain) -> None:
        """Keep it over restarts."""
        ...

    async def remember_attempt(self, started: Started) -> None:
        """Before the attempt's sandbox is given to it."""
        ...

    async def forget_attempt(self, uid: str) -> None:
        """After its verdict; one that is not there is no error."""
        ...

    async def remember_forgotten(self, uid: str, offset: int) -> None:
        """Before a spool is told to forget its bytes below `offset`. Forgotten with the attempt."""
        ...

    async def forgotten(self, uid: str) -> int:
        """Where the rest of a spool begins; 0 when nothing of it was forgotten."""
        ...

    async def remember_transcript(self, uid: str, data: bytes) -> None:
        """What was understood of an attempt's log; before its spool forgets that. Forgotten with the attempt."""
        ...

    async def transcript(self, uid: str) -> bytes | None:
        """The same; None when nothing was remembered."""
        ...

    async def attempts(self) -> Sequence[Started]:
        """All that are remembered; a damaged one is dropped with a log line."""
        ...
