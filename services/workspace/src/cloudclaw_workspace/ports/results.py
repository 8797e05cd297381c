"""The `ArtifactLists` port: what a stored result says of artifacts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cloudclaw.history.bundles import ArchivedTask


@dataclass(frozen=True, slots=True)
class KeptArtifact:
    """Bytes and hex SHA-256 of an artifact."""

    size: int
    digest: str


class ArtifactLists(Protocol):
    """Reads results as they are stored."""

    def find(self, result: bytes, path: str) -> KeptArtifact | None:
        """The artifact at `path` in a stored `cloudclaw.v1.Result`; None when it lists none there. `DataLossError` when
        the bytes are no result."""
        ...


class History(Protocol):
    """Tasks that have left the coordination store for the object store."""

    async def find(self, tenant: str, task: str) -> ArchivedTask | None:
        """One task, None when it was never archived. `DataLossError`, `UnavailableError`."""
        ...
