"""The end of a tenant: a tombstone, then everything it has."""

from __future__ import annotations

from typing import Final

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Absent, CreateIs, Delete, Put
from cloudclaw.coordination.records import TaskState, TombstoneRecord, decode, encode
from cloudclaw.coordination.transactions.roots import PAGE, TaskFacts
from cloudclaw.coordination.transactions.store import Store
from cloudclaw.errors import AbortedError, PreconditionError

DELETES_PER_TRANSACTION: Final = 100

_OWN: Final = (
    keys.CONSUMERS,
    keys.DELIVERIES,
    keys.TASKS,
    keys.SPECS,
    keys.REQUESTS,
    keys.WORKSPACES,
    keys.SNAPSHOTS,
)
"""In the order of their removal: what others hang on goes before what hangs on it, so that readers meet nothing
that has lost its parts."""


class TenantTransactions(Store):
    """Bury, delete, exhume."""

    async def bury(self, tenant: str, now: float = 0.0) -> None:
        """Put the tombstone: from here on nothing new of the tenant begins (submit, workspaces, user writes,
        consumers). One that is there stays. `now`: wall clock, for people."""
        key = keys.tombstone(tenant)
        await self._kv.txn([Absent(key)], [Put(key, encode(TombstoneRecord(created=now)))])

    async def buried(self, tenant: str) -> bool:
        """The tombstone is there."""
        return await self._kv.get(keys.tombstone(tenant)) is not None

    async def exhume(self, tenant: str) -> None:
        """Remove the tombstone; a deletion that is under way stops at its next transaction."""
        await self._kv.txn([], [Delete(keys.tombstone(tenant))])

    async def delete_tenant_keys(self, tenant: str) -> int:
        """Remove everything of the tenant, and the tombstone (put here if it was not yet) last. Answers how many
        keys went.

        `PreconditionError(reason="TENANT_BUSY")` while a task has not ended or a writer key is held; nothing is
        removed then. Every transaction is guarded by this very tombstone, so that a deletion that was held up
        touches nothing of a tenant that was exhumed, or made anew: `AbortedError`. Safe to call again after a crash
        or `UnavailableError`: it goes on with what is left.
        """
        await self.bury(tenant)
        tombstone = await self._kv.get(keys.tombstone(tenant))
        if tombstone is None:
            raise _exhumed(tenant)
        guard = CreateIs(tombstone.key, tombstone.create_revision)
        # Behind the tombstone: what is not there now does not come any more.
        await self._require_idle(tenant)
        removed = 0
        for prefix in _OWN:
            # With the "/": "acme" has nothing to do with "acme-2".
            own = f"{prefix}{tenant}/"
            while batch := (await self._kv.range(own, limit=DELETES_PER_TRANSACTION, keys_only=True)).entries:
                result = await self._kv.txn([guard], [Delete(entry.key) for entry in batch])
                if not result.succeeded:
                    raise _exhumed(tenant)
                removed += len(batch)
        if not (await self._kv.txn([guard], [Delete(tombstone.key)])).succeeded:
            raise _exhumed(tenant)
        return removed + 1

    async def _require_idle(self, tenant: str) -> None:
        writers = await self._kv.range(keys.writer(tenant, ""), limit=1, keys_only=True)
        if writers.entries:
            workspace = keys.parts(writers.entries[0].key)[-1]
            raise _busy(tenant, f"workspace {workspace!r} is being written to")
        after, more = "", True
        while more:
            page = await self._kv.range(keys.task(tenant, ""), start_after=after, limit=PAGE)
            for entry in page.entries:
                state = decode(entry.value, TaskFacts).state
                if not state.ended:
                    raise _busy(tenant, f"{keys.parts(entry.key)[-1]} is {TaskState(state)}")
                after = entry.key
            more = page.more


def _busy(tenant: str, why: str) -> PreconditionError:
    return PreconditionError(
        f"tenant {tenant!r} still works: {why}; cancel its tasks and wait", subject=tenant, reason="TENANT_BUSY"
    )


def _exhumed(tenant: str) -> AbortedError:
    return AbortedError(f"the tombstone of tenant {tenant!r} is gone, or is another", reason="TENANT_EXHUMED")
