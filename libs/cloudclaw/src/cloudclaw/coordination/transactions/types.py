"""What the transactions take and answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import CreateIs
from cloudclaw.coordination.records import TaskRecord

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Versioned(Generic[T]):
    """A record and the revisions it was read at."""

    record: T
    create_revision: int
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Submission:
    """Outcome of a submit: the task as stored, and whether this call created it."""

    task: Versioned[TaskRecord]
    created: bool


@dataclass(frozen=True, slots=True)
class Token:
    """The fencing token of one attempt: the create revision of its lease key.

    `guard` is the compare that every protected transaction carries.
    """

    node: str
    tenant: str
    task: str
    revision: int

    @property
    def key(self) -> str:
        """The attempt's lease key."""
        return keys.attempt(self.node, self.tenant, self.task)

    def guard(self) -> CreateIs:
        """Holds while the attempt still has the lease key that this token is of."""
        return CreateIs(self.key, self.revision)
