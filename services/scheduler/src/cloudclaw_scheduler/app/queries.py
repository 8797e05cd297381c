"""What users ask for, and why tasks wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cloudclaw.clock import Clock
from cloudclaw.coordination.records import AttemptEnd, TaskRecord, TaskState
from cloudclaw.coordination.states import EndReason
from cloudclaw.coordination.transactions import Versioned
from cloudclaw_scheduler.app.mirror import Mirror

DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1000
SCAN: Final = 10_000
"""Tasks looked at for one page at most, so that a filter that takes few holds up nobody; the page is short then."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which tasks of a tenant; empty means all. Creation times are in milliseconds: from `created_after` on, and before
    `created_before`. `Listing` sees to the times, `takes` to the rest."""

    states: frozenset[TaskState] = frozenset()
    labels: Mapping[str, str] | None = None
    workspace: str = ""
    created_after: int = 0
    created_before: int | None = None

    @property
    def ended(self) -> bool:
        """Ended tasks, and so archived ones, may be among them."""
        return not self.states or any(state.ended for state in self.states)

    @property
    def selective(self) -> bool:
        """Only the record tells whether a task is one of them."""
        return bool(self.labels or self.workspace)

    def takes_state(self, state: TaskState) -> bool:
        """Whether tasks in `state` may be among them."""
        return not self.states or state in self.states

    def takes(self, record: TaskRecord) -> bool:
        """Whether the task is one of them."""
        if not self.takes_state(record.state):
            return False
        if self.workspace and record.plan.workspace != self.workspace:
            return False
        return all(record.plan.labels.get(key) == value for key, value in (self.labels or {}).items())


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list, newest first. `revision`: what it shows."""

    tasks: list[Versioned[TaskRecord]]
    next_token: str
    revision: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a task waits. `kind` is a `WaitReason` without its prefix, "" when it does not wait."""

    kind: str = ""
    position: int = 0
    writer: str = ""


class Queries:
    """Reads from the mirror; the caller waits for `mirror.caught_up` where it matters."""

    def __init__(self, mirror: Mirror, clock: Clock) -> None:
        self._mirror = mirror
        self._clock = clock

    def waiting(self, record: TaskRecord) -> Waiting:
        """What a QUEUED task waits for, without its position."""
        if record.state is not TaskState.QUEUED:
            return Waiting()
        if record.parked:
            return Waiting("INPUT")
        if record.due:
            return Waiting("BACKOFF")
        if record.plan.writes:
            holder = self._mirror.state.writers.get((record.tenant, record.plan.workspace), "")
            if holder and holder != record.task:
                return Waiting("WRITER", writer=holder)
        return Waiting("SLOT")

    def position(self, record: TaskRecord) -> int:
        """How many tasks of the tenant in the same pool go before a queued one."""
        own = self._mirror.state.queue.get((record.tenant, record.task))
        if own is None:
            return 0
        rank = (-own.priority, own.order)
        return sum(
            1
            for other in self._mirror.state.queue.values()
            if other.tenant == own.tenant and other.pool == own.pool and (-other.priority, other.order) < rank
        )

    def reasons(self, record: TaskRecord, waiting: Waiting, position: int) -> list[str]:
        """One sentence for each thing in the way and each attempt's end."""
        said = [_end_reason(end) for end in record.attempts if end.ended]
        match waiting.kind:
            case "BACKOFF":
                left = max(0.0, record.due - self._clock.wall())
                said.append(f"Waits {left:.1f} s more before attempt {record.attempt + 1}.")
            case "INPUT":
                said.append(_parked_reason(record))
            case "WRITER":
                said.append(f"Waits for the workspace {record.plan.workspace}, which {waiting.writer} holds.")
            case "SLOT":
                said.append(self._slot_reason(record, position))
            case _:
                if record.state is TaskState.RUNNING:
                    said.append(f"Attempt {record.attempt} runs on {record.node}.")
                elif record.events and record.events[-1].message:
                    said.append(f"Ended {record.state}: {record.events[-1].message}.")
                else:
                    said.append(f"Ended {record.state}.")
        return said

    def _slot_reason(self, record: TaskRecord, position: int) -> str:
        plan = record.plan
        offering = [
            pool.slots
            for node in self._mirror.state.nodes.values()
            for pool in node.record.pools
            if pool.pool == plan.pool and plan.runtime in pool.runtimes
        ]
        if not offering:
            return f"No node offers the runtime {plan.runtime} in the pool {plan.pool} at the moment."
        ahead = f"{position} of the tenant's tasks go first" if position else "it is the tenant's next"
        return f"Waits for one of {sum(offering)} slots of the pool {plan.pool}; {ahead}."


def _end_reason(end: AttemptEnd) -> str:
    if end.reason is EndReason.PARKED:
        return f"Attempt {end.number} on {end.node} answered all, and gave its slot back."
    why = f" ({end.reason})" if end.reason else ""
    return f"Attempt {end.number} on {end.node} ended {end.state}{why}" + (f": {end.message}." if end.message else ".")


def _parked_reason(record: TaskRecord) -> str:
    parked = f"Parked since {_clock(record.parked_since)} and holds no slot; it waits for input"
    if record.later:
        return f"{parked}, of which {record.later} are accepted for later, the next for {_clock(record.later_due)}."
    return f"{parked} until {_clock(record.due)}, and ends then."


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
