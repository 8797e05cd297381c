"""The end of a tenant: a tombstone, then everything it has."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Absent, CreateIs, Delete, Entry, ModIs, Put
from cloudclaw.coordination.records import TaskState, TombstoneRecord, decode, encode
from cloudclaw.coordination.transactions.roots import PAGE, TaskFacts
from cloudclaw.coordination.transactions.store import Store, found
from cloudclaw.coordination.transactions.types import Versioned
from cloudclaw.errors import AbortedError, PreconditionError, UnavailableError

DELETES_PER_TRANSACTION: Final = 100

_OWN: Final = (
    keys.CONSUMERS,
    keys.DELIVERIES,
    keys.INPUTS,
    keys.EARLIER,
    keys.TASKS,
    keys.SPECS,
    keys.REQUESTS,
    keys.WORKSPACES,
    keys.SNAPSHOTS,
    keys.MODEL_KEYS,
)
"""In the order of their removal: what others hang on goes before what hangs on it, so that readers meet nothing
that has lost its parts."""


class TenantTransactions(Store):
    """Bury, seal, exhume, delete.

    A tombstone is first put on trial: under it nothing new of the tenant begins, and whoever wants the deletion looks
    who works. When nobody does, he seals it, and then it stays until the last key of the tenant is gone: so bytes may
    be removed for as long as it is there. When somebody does, it is taken back; and since that fails once it was
    sealed, and sealing fails once it was taken back, one deletion's refusal never lets a tenant work beside another's.
    """

    async def bury(self, tenant: str, now: float = 0.0) -> Versioned[TombstoneRecord]:
        """Put the tombstone: from here on nothing new of the tenant begins (submit, workspaces, user writes,
        consumers). One that is there stays, and is answered. `now`: wall clock, for people."""
        key, record = keys.tombstone(tenant), TombstoneRecord(created=now)
        result = await self._kv.txn([Absent(key)], [Put(key, encode(record))], read_on_failure=[key])
        if result.succeeded:
            return Versioned(record, result.revision, result.revision)
        if not result.read:
            raise _exhumed(tenant)
        return _version(result.read[0])

    async def buried(self, tenant: str) -> bool:
        """The tombstone is there."""
        return await self._kv.get(keys.tombstone(tenant)) is not None

    async def seal(self, tenant: str, tombstone: Versioned[TombstoneRecord]) -> None:
        """Nothing of the tenant was at work behind this tombstone: from here on it is not taken back. One that is
        sealed stays so. `AbortedError(reason="TENANT_EXHUMED")` when it is gone: bury and look again."""
        if tombstone.record.sealed:
            return
        key, sealed = keys.tombstone(tenant), replace(tombstone.record, sealed=True)
        try:
            result = await self._kv.txn(
                [ModIs(key, tombstone.mod_revision)], [Put(key, encode(sealed))], read_on_failure=[key]
            )
        except UnavailableError:
            there = await self._kv.get(key)
            if there is not None and there.mod_revision == tombstone.mod_revision:
                raise
        else:
            if result.succeeded:
                return
            there = found(result).get(key)
        # By another deletion, whose look was as good.
        if there is None or there.create_revision != tombstone.create_revision:
            raise _exhumed(tenant)

    async def sealed(self, tenant: str, tombstone: Versioned[TombstoneRecord]) -> bool:
        """This very tombstone is there, and sealed."""
        entry = await self._kv.get(keys.tombstone(tenant))
        return (
            entry is not None
            and entry.create_revision == tombstone.create_revision
            and decode(entry.value, TombstoneRecord).sealed
        )

    async def exhume(self, tenant: str) -> bool:
        """Take a tombstone back that is not sealed, whoever put it; a look that is under way begins anew then. False,
        and nothing happens, when it is sealed: the tenant's deletion began."""
        key = keys.tombstone(tenant)
        while (entry := await self._kv.get(key)) is not None:
            if decode(entry.value, TombstoneRecord).sealed:
                return False
            if (await self._kv.txn([ModIs(key, entry.mod_revision)], [Delete(key)])).succeeded:
                return True
        return True

    async def delete_tenant_keys(self, tenant: str, tombstone: Versioned[TombstoneRecord] | None = None) -> int:
        """Remove everything of the tenant, and the tombstone last. Answers how many keys went. `tombstone`: the one
        that must be there; without, it is put when there is none.

        `PreconditionError(reason="TENANT_BUSY")` while a task has not ended or a writer key is held; nothing is
        removed then. Every transaction is guarded by this very tombstone, sealed, so that a deletion that was held up
        touches nothing of a tenant that was made anew: `AbortedError`. Safe to call again after a crash or
        `UnavailableError`: it goes on with what is left.
        """
        tombstone = tombstone or await self.bury(tenant)
        # Behind the tombstone: what is not there now does not come any more.
        await self._require_idle(tenant)
        await self.seal(tenant, tombstone)
        key = keys.tombstone(tenant)
        guard = CreateIs(key, tombstone.create_revision)
        removed = 0
        for prefix in _OWN:
            # With the "/": "acme" has nothing to do with "acme-2".
            own = f"{prefix}{tenant}/"
            while batch := (await self._kv.range(own, limit=DELETES_PER_TRANSACTION, keys_only=True)).entries:
                result = await self._kv.txn([guard], [Delete(entry.key) for entry in batch])
                if not result.succeeded:
                    raise _exhumed(tenant)
                removed += len(batch)
        if not (await self._kv.txn([guard], [Delete(key)])).succeeded:
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


def _version(entry: Entry) -> Versioned[TombstoneRecord]:
    return Versioned(decode(entry.value, TombstoneRecord), entry.create_revision, entry.mod_revision)


def _busy(tenant: str, why: str) -> PreconditionError:
    return PreconditionError(
        f"tenant {tenant!r} still works: {why}; cancel its tasks and wait", subject=tenant, reason="TENANT_BUSY"
    )


def _exhumed(tenant: str) -> AbortedError:
    return AbortedError(f"the tombstone of tenant {tenant!r} is gone, or is another", reason="TENANT_EXHUMED")
