"""The `StaleUploads` port: what crashed writers left half-written in the object store."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class StaleUploads(Protocol):
    """An object store that can hold unfinished writes, which no listing shows but which take space."""

    async def abort_stale_uploads(self, prefix: str, older_than: float) -> int:
        """Give up writes of objects below `prefix` that began more than `older_than` seconds ago; answers how many.
        Raises `UnavailableError`."""
        ...
