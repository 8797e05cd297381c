"""The tenants' keys for models, sealed."""

from __future__ import annotations

from typing import Final

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Absent, Delete, Guard, ModIs, Put
from cloudclaw.coordination.records import ModelKeyRecord, decode, encode
from cloudclaw.coordination.transactions.store import Store, found, tenant_deleted
from cloudclaw.errors import AbortedError, NotFoundError, QuotaExceededError, UnavailableError

MAX_MODEL_KEYS: Final = 32
"""Of one tenant."""


class ModelKeyTransactions(Store):
    """Set, list and delete. Each write guards what it replaces, so that one which arrives late undoes no later one.
    After an unknown outcome it is read back, and all may be repeated after `UnavailableError`."""

    async def set_model_key(self, tenant: str, upstream: str, record: ModelKeyRecord) -> int:
        """Keep a key, in place of the one before. Answers the revision.

        Guards: no tombstone (`PreconditionError(reason="TENANT_DELETED")`); nobody else set the same one at the same
        time (`AbortedError`). `QuotaExceededError(reason="TOO_MANY_MODEL_KEYS")` for a 33rd (counted before, so many
        that are set at once may pass it by a few).
        """
        key, tombstone = keys.model_key(tenant, upstream), keys.tombstone(tenant)
        there = {entry.key: entry for entry in (await self._kv.range(keys.model_key(tenant, ""))).entries}
        if key not in there and len(there) >= MAX_MODEL_KEYS:
            raise QuotaExceededError(
                f"a tenant has at most {MAX_MODEL_KEYS} keys for models", subject=tenant, reason="TOO_MANY_MODEL_KEYS"
            )
        seen = there[key].mod_revision if key in there else 0
        guards: list[Guard] = [Absent(tombstone), ModIs(key, seen)]
        try:
            result = await self._kv.txn(guards, [Put(key, encode(record))], read_on_failure=[tombstone])
        except UnavailableError:
            now = await self._kv.get(key)
            if now is not None and now.value == encode(record):  # sealed anew each time: nobody else's is the same
                return now.mod_revision
            if (now.mod_revision if now is not None else 0) == seen:
                raise
            raise _at_once(upstream) from None
        if result.succeeded:
            return result.revision
        if tombstone in found(result):
            raise tenant_deleted(tenant)
        raise _at_once(upstream)

    async def model_keys(self, tenant: str) -> dict[str, ModelKeyRecord]:
        """The tenant's keys by upstream (linearizable)."""
        listed = await self._kv.range(keys.model_key(tenant, ""))
        return {keys.parts(entry.key)[-1]: decode(entry.value, ModelKeyRecord) for entry in listed.entries}

    async def delete_model_key(self, tenant: str, upstream: str) -> int:
        """Forget the key that is there now. Answers the revision, or, when the answer was lost, an earlier one.
        `NotFoundError(reason="MODEL_KEY_NOT_FOUND")`; `AbortedError` when another was set at the same time."""
        key = keys.model_key(tenant, upstream)
        there = await self._kv.get(key)
        if there is None:
            raise NotFoundError(f"there is no key for {upstream!r}", reason="MODEL_KEY_NOT_FOUND")
        try:
            result = await self._kv.txn([ModIs(key, there.mod_revision)], [Delete(key)])
        except UnavailableError:
            now = await self._kv.get(key)
            if now is None:
                return there.mod_revision
            if now.mod_revision == there.mod_revision:
                raise
            raise _at_once(upstream) from None
        if not result.succeeded:
            raise _at_once(upstream)
        return result.revision


def _at_once(upstream: str) -> AbortedError:
    return AbortedError(f"the key for {upstream!r} was changed at the same time by another call")
