"""The tenants' keys for models, sealed."""

from __future__ import annotations

from typing import Final

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Absent, Delete, Exists, Guard, ModIs, Put
from cloudclaw.coordination.records import ModelKeyRecord, decode, encode
from cloudclaw.coordination.transactions.store import Store, found, tenant_deleted
from cloudclaw.errors import AbortedError, NotFoundError, QuotaExceededError

MAX_MODEL_KEYS: Final = 32
"""Of one tenant."""


class ModelKeyTransactions(Store):
    """Set, list and delete. All of them may be repeated after `UnavailableError`."""

    async def set_model_key(self, tenant: str, upstream: str, record: ModelKeyRecord) -> int:
        """Keep a key, in place of the one before. Answers the revision.

        Guards: no tombstone (`PreconditionError(reason="TENANT_DELETED")`); nobody else set the same one at the same
        time (`AbortedError`). `QuotaExceededError(reason="TOO_MANY_MODEL_KEYS")` for a 33rd.
        """
        key, tombstone = keys.model_key(tenant, upstream), keys.tombstone(tenant)
        there = {entry.key: entry for entry in (await self._kv.range(keys.model_key(tenant, ""))).entries}
        if key not in there and len(there) >= MAX_MODEL_KEYS:
            raise QuotaExceededError(
                f"a tenant has at most {MAX_MODEL_KEYS} keys for models", subject=tenant, reason="TOO_MANY_MODEL_KEYS"
            )
        guards: list[Guard] = [Absent(tombstone), ModIs(key, there[key].mod_revision if key in there else 0)]
        result = await self._kv.txn(guards, [Put(key, encode(record))], read_on_failure=[tombstone])
        if result.succeeded:
            return result.revision
        if tombstone in found(result):
            raise tenant_deleted(tenant)
        raise AbortedError(f"the key for {upstream!r} was set at the same time by another call")

    async def model_keys(self, tenant: str) -> dict[str, ModelKeyRecord]:
        """The tenant's keys by upstream (linearizable)."""
        listed = await self._kv.range(keys.model_key(tenant, ""))
        return {keys.parts(entry.key)[-1]: decode(entry.value, ModelKeyRecord) for entry in listed.entries}

    async def delete_model_key(self, tenant: str, upstream: str) -> int:
        """Forget a key. Answers the revision. `NotFoundError(reason="MODEL_KEY_NOT_FOUND")`."""
        key = keys.model_key(tenant, upstream)
        result = await self._kv.txn([Exists(key)], [Delete(key)])
        if not result.succeeded:
            raise NotFoundError(f"there is no key for {upstream!r}", reason="MODEL_KEY_NOT_FOUND")
        return result.revision
