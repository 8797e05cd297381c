"""What opens tenants' keys."""

from __future__ import annotations

from typing import Protocol


class KeyOpener(Protocol):
    """Opens sealed keys."""

    def open(self, tenant: str, upstream: str, sealed: str) -> str:
        """The key. Raises `CloudClawError` whose message tells nothing secret."""
        ...
