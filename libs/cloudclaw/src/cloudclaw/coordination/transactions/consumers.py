"""Transactions on the consumers of a tenant's results: who has what out, and who has acknowledged what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from msgspec.structs import replace

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Absent, CreateIs, Delete, Entry, Guard, LeaseLostError, ModIs, Put
from cloudclaw.coordination.records import ConsumerRecord, DeliveryRecord, decode, encode
from cloudclaw.coordination.transactions.store import Store, found, lease_lost, tenant_deleted
from cloudclaw.coordination.transactions.types import Versioned
from cloudclaw.errors import AbortedError, AlreadyExistsError, NotFoundError, QuotaExceededError, UnavailableError
from cloudclaw.ids import new_id

MAX_CONSUMERS: Final = 100
"""Of one tenant."""
RECEIPTS_PER_TRANSACTION: Final = 100
TRIES: Final = 16
"""How often a write is tried again that another of the same consumer came before."""

Receipt = tuple[str, int]
"""One delivery: the task, and the create revision of the delivery's key."""
Settled = Callable[[ConsumerRecord, Sequence[int]], ConsumerRecord]
"""The consumer's record once the results that ended at these revisions (ascending) are acknowledged too."""


class ConsumerTransactions(Store):
    """Register, deliver, acknowledge, forget."""

    async def register_consumer(self, tenant: str, name: str, record: ConsumerRecord) -> Versioned[ConsumerRecord]:
        """The consumer `name`: the one that is there, otherwise made as `record`.

        `QuotaExceededError` for one more than 100 (counted before, so many that register at once may pass it by a
        few); `PreconditionError(reason="TENANT_DELETED")`.
        """
        key, tombstone = keys.consumer(tenant, name), keys.tombstone(tenant)
        there = await self._kv.get(key)
        if there is not None:
            return _version(there)
        known = await self._kv.range(keys.consumer(tenant, ""), keys_only=True, limit=MAX_CONSUMERS)
        if len(known.entries) >= MAX_CONSUMERS:
            raise QuotaExceededError(
                f"tenant {tenant!r} has {MAX_CONSUMERS} consumers; delete one first", subject="consumers"
            )
        try:
            result = await self._kv.txn(
                [Absent(key), Absent(tombstone)], [Put(key, encode(record))], read_on_failure=[key, tombstone]
            )
        except UnavailableError:
            there = await self._kv.get(key)
            if there is None:
                raise
            return _version(there)
        if result.succeeded:
            return Versioned(record, result.revision, result.revision)
        refused = found(result)
        if key in refused:
            return _version(refused[key])
        if tombstone in refused:
            raise tenant_deleted(tenant)
        raise AlreadyExistsError(f"consumer {name!r} was there for a moment", reason="CONSUMER_EXISTS")

    async def get_consumer(self, tenant: str, name: str) -> Versioned[ConsumerRecord] | None:
        """The consumer now."""
        entry = await self._kv.get(keys.consumer(tenant, name))
        return None if entry is None else _version(entry)

    async def list_consumers(self, tenant: str) -> dict[str, Versioned[ConsumerRecord]]:
        """The tenant's consumers by name, in the order of names."""
        prefix = keys.consumer(tenant, "")
        known = await self._kv.range(prefix)
        return {entry.key[len(prefix) :]: _version(entry) for entry in known.entries}

    async def deliver(self, tenant: str, consumer: str, task: str, revision: int, lease: int) -> int | None:
        """Mark the result of `task`, which ended at `revision`, as out until `lease` ends.

        Answers the create revision of the delivery's key, its receipt; None when it is out already, or was
        acknowledged. Guards: delivery absent; consumer unchanged since that was looked at. `NotFoundError` for an
        unknown consumer; `FencedError(reason="LEASE_LOST")`; `AbortedError` when the consumer changes all the time.
        """
        key, owner = keys.delivery(tenant, consumer, task), keys.consumer(tenant, consumer)
        value = encode(DeliveryRecord(revision=revision))
        for _ in range(TRIES):
            entry = await self._kv.get(owner)
            if entry is None:
                raise _unknown(consumer)
            if _acknowledged(decode(entry.value, ConsumerRecord), revision):
                return None
            try:
                result = await self._kv.txn(
                    [Absent(key), ModIs(owner, entry.mod_revision)], [Put(key, value, lease)], read_on_failure=[key]
                )
            except LeaseLostError as error:
                raise lease_lost("the delivery") from error
            except UnavailableError:
                there = await self._kv.get(key)
                if there is None:
                    raise
                return there.create_revision if there.lease == lease else None
            if result.succeeded:
                return result.revision
            if result.read:
                return None
        raise AbortedError(f"consumer {consumer!r} changes all the time; try again")

    async def delivered(self, tenant: str, consumer: str) -> dict[str, tuple[int, int]]:
        """What is out now, by task: the revision of its end, and the receipt's create revision."""
        prefix = keys.delivery(tenant, consumer, "")
        out = await self._kv.range(prefix)
        return {
            entry.key[len(prefix) :]: (decode(entry.value, DeliveryRecord).revision, entry.create_revision)
            for entry in out.entries
        }

    async def ack(self, tenant: str, consumer: str, receipts: Sequence[Receipt], settled: Settled) -> list[Receipt]:
        """Acknowledge deliveries; answers the receipts that came too late, which acknowledge nothing.

        Guards: consumer unchanged; each delivery's key with the create revision of its receipt. Writes: the consumer
        as `settled` makes it of the newly acknowledged revisions, under a new `op_id`; − those deliveries. At most
        100 receipts a transaction, each tried again when somebody else of the consumer came first (`settled` is then
        called anew). `NotFoundError` for an unknown consumer; `AbortedError` when it changes all the time.
        """
        expired: list[Receipt] = []
        unique = list(dict.fromkeys(receipts))
        for begin in range(0, len(unique), RECEIPTS_PER_TRANSACTION):
            expired += await self._ack(tenant, consumer, unique[begin : begin + RECEIPTS_PER_TRANSACTION], settled)
        return expired

    async def _ack(self, tenant: str, consumer: str, receipts: Sequence[Receipt], settled: Settled) -> list[Receipt]:
        owner = keys.consumer(tenant, consumer)
        revisions: dict[Receipt, int] = {}
        """Of the receipts that were found out, now or before another try."""
        for _ in range(TRIES):
            entry = await self._kv.get(owner)
            if entry is None:
                raise _unknown(consumer)
            before = _version(entry)
            out = await self.delivered(tenant, consumer)
            held = [receipt for receipt in receipts if out.get(receipt[0], (0, 0))[1] == receipt[1]]
            revisions.update((receipt, out[receipt[0]][0]) for receipt in held)
            # Gone, but acknowledged: by an earlier try of this very call, whose answer was lost.
            done = {receipt for receipt, revision in revisions.items() if _acknowledged(before.record, revision)}
            expired = [receipt for receipt in receipts if receipt not in held and receipt not in done]
            if not held:
                return expired
            if await self._settle_receipts(tenant, consumer, before, held, sorted(revisions[r] for r in held), settled):
                return expired
        raise AbortedError(f"consumer {consumer!r} changes all the time; try again")

    async def _settle_receipts(
        self,
        tenant: str,
        consumer: str,
        before: Versioned[ConsumerRecord],
        held: Sequence[Receipt],
        revisions: Sequence[int],
        settled: Settled,
    ) -> bool:
        """Send it once: whether it is done. False: something changed, look again."""
        owner = keys.consumer(tenant, consumer)
        after = replace(settled(before.record, revisions), op_id=new_id("op"))
        guards: list[Guard] = [ModIs(owner, before.mod_revision)]
        guards += [CreateIs(keys.delivery(tenant, consumer, task), created) for task, created in held]
        deletes = [Delete(keys.delivery(tenant, consumer, task)) for task, _ in held]
        try:
            result = await self._kv.txn(guards, [Put(owner, encode(after)), *deletes])
        except UnavailableError:
            entry = await self._kv.get(owner)
            if entry is not None and entry.mod_revision == before.mod_revision:
                raise
            return entry is not None and _version(entry).record.op_id == after.op_id
        return result.succeeded

    async def delete_consumer(self, tenant: str, name: str) -> None:
        """Forget a consumer and what it has out. `NotFoundError`.

        The consumer first, so that nothing more is delivered; what a crash leaves behind ends with its lease.
        """
        owner = keys.consumer(tenant, name)
        entry = await self._kv.get(owner)
        if entry is None:
            raise _unknown(name)
        try:
            await self._kv.txn([CreateIs(owner, entry.create_revision)], [Delete(owner)])
        except UnavailableError:
            there = await self._kv.get(owner)
            if there is not None and there.create_revision == entry.create_revision:
                raise
        out = [keys.delivery(tenant, name, task) for task in await self.delivered(tenant, name)]
        for begin in range(0, len(out), RECEIPTS_PER_TRANSACTION):
            # Guarded, so that a consumer made anew under this name keeps what it has out.
            batch = out[begin : begin + RECEIPTS_PER_TRANSACTION]
            await self._kv.txn([Absent(owner)], [Delete(key) for key in batch])


def _version(entry: Entry) -> Versioned[ConsumerRecord]:
    return Versioned(decode(entry.value, ConsumerRecord), entry.create_revision, entry.mod_revision)


def _acknowledged(record: ConsumerRecord, revision: int) -> bool:
    return revision <= record.cursor or revision in record.acked


def _unknown(consumer: str) -> NotFoundError:
    return NotFoundError(f"no consumer {consumer!r}", reason="NO_CONSUMER", metadata={"consumer": consumer})
