"""The pool-manager at the other end of a control connection."""

from __future__ import annotations

from typing import Any, Protocol


class Manager(Protocol):
    """One connection."""

    def push(self, message: dict[str, Any]) -> None:
        """Tell it something without being asked. Never waits; what a broken connection held is lost."""
        ...

    def fence(self) -> None:
        """Tell it that a newer one is obeyed, and close the connection."""
        ...
