"""The snapshots of a workspace: which there are, and forgetting some, or those of one that is gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Absent, Delete, ModIs
from cloudclaw.coordination.records import SnapshotRecord, WorkspaceRecord, decode
from cloudclaw.coordination.transactions.store import Store
from cloudclaw.coordination.transactions.types import Versioned
from cloudclaw.errors import AbortedError, PreconditionError

DELETES_PER_TRANSACTION: Final = 100
PAGE: Final = 1000


class SnapshotTransactions(Store):
    """Snapshots of a workspace, for retention."""

    async def listed_workspaces(self, tenant: str) -> list[str]:
        """Names, sorted, under which snapshots are listed: workspaces that are there, and some that may be gone."""
        prefix, after, more = keys.snapshot(tenant, "", "")[:-1], "", True
        names: dict[str, None] = {}
        while more:
            page = await self._kv.range(prefix, start_after=after, limit=PAGE, keys_only=True)
            for entry in page.entries:
                names[keys.parts(entry.key)[2]] = None
                after = entry.key
            more = page.more
        return list(names)

    async def delete_orphans(self, tenant: str, workspace: str) -> int | None:
        """Take all snapshots off the list of a workspace that is gone, and answer how many; None when there is one of
        that name, whose snapshots stay.

        A deletion that died leaves such, with more snapshots than fit into one transaction. None are added meanwhile:
        whoever lists a snapshot guards that its workspace is there, or owns its writer key. Guards: no such workspace.
        May be repeated after `UnavailableError`.
        """
        guard, count = Absent(keys.workspace(tenant, workspace)), 0
        while True:
            left = await self._kv.range(
                keys.snapshot(tenant, workspace, ""), limit=DELETES_PER_TRANSACTION, keys_only=True
            )
            if not left.entries:
                return count
            if not (await self._kv.txn([guard], [Delete(entry.key) for entry in left.entries])).succeeded:
                return None
            count += len(left.entries)

    async def snapshots_of(self, tenant: str, workspace: str) -> list[Versioned[SnapshotRecord]]:
        """All snapshots of the workspace, oldest first."""
        listed = await self._kv.range(keys.snapshot(tenant, workspace, ""))
        versions = [
            Versioned(decode(entry.value, SnapshotRecord), entry.create_revision, entry.mod_revision)
            for entry in listed.entries
        ]
        return sorted(versions, key=lambda version: version.create_revision)

    async def delete_snapshots(self, tenant: str, workspace: Versioned[WorkspaceRecord], ids: Sequence[str]) -> None:
        """Take snapshots off the workspace's list; their bytes go when nothing else points at them.

        Guards: workspace unchanged (`AbortedError`). `PreconditionError(reason="SNAPSHOT_IS_HEAD")` for the head.
        One that is not listed is no error, so after `UnavailableError` or a crash it can simply be repeated. At most
        100 a transaction.
        """
        name, head = workspace.record.name, workspace.record.head
        if head is not None and head.id in ids:
            raise PreconditionError(
                f"{head.id} is the head of workspace {name!r}", subject=head.id, reason="SNAPSHOT_IS_HEAD"
            )
        unique = list(dict.fromkeys(ids))
        guard = ModIs(keys.workspace(tenant, name), workspace.mod_revision)
        for begin in range(0, len(unique), DELETES_PER_TRANSACTION):
            batch = unique[begin : begin + DELETES_PER_TRANSACTION]
            result = await self._kv.txn([guard], [Delete(keys.snapshot(tenant, name, one)) for one in batch])
            if not result.succeeded:
                raise AbortedError(f"workspace {name!r} changed meanwhile; read it again")
