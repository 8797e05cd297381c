"""What the leader's parts need of its leadership."""

from __future__ import annotations

from typing import Protocol

from cloudclaw.coordination.port import Guard


class Leading(Protocol):
    """A term; `cloudclaw.coordination.election.Leadership` is one."""

    @property
    def term(self) -> int:
        """Create revision of the leader's election key; grows from term to term."""
        ...

    def guard(self) -> Guard:
        """The compare that every transaction of this leader carries."""
        ...
