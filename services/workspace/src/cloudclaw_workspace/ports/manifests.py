"""The `PackLists` port: which packs a snapshot needs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from cloudclaw.coordination.records import SnapshotPointer


class PackLists(Protocol):
    """Reads what manifests say about packs, and nothing else of them."""

    def name(self, tenant: str, pointer: SnapshotPointer) -> str:
        """The object that holds the snapshot's manifest."""
        ...

    async def packs(self, tenant: str, pointer: SnapshotPointer) -> Collection[str]:
        """Names of all packs that hold content of the snapshot. `DataLossError` naming a manifest that is missing or
        not what its digest says; `UnavailableError`."""
        ...
