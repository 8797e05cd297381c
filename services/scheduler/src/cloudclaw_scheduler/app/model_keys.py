"""The tenants' keys for models: sealed when they are set, and never given back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from cloudclaw.clock import Clock
from cloudclaw.coordination.records import ModelKeyRecord
from cloudclaw.coordination.transactions import Transactions
from cloudclaw.errors import AbortedError, PreconditionError, UnavailableError
from cloudclaw.ids import check_name
from cloudclaw_scheduler.app.mirror import Mirror

HINT: Final = 4
"""Last characters of a key that are shown."""
LONG_ENOUGH: Final = 16
"""Characters of a key of which these do not help anybody."""
_TRIES: Final = 5


class Seals(Protocol):
    """What seals keys (`cloudclaw.sealing.Sealer`)."""

    def seal(self, tenant: str, upstream: str, secret: str) -> str:
        """`secret`, so that only the gateways of this installation can open it, and only under these names."""
        ...


class ModelKeys:
    """Sets, lists and deletes; any replica does it. `sealer` is None when the operator set no sealing key up."""

    def __init__(self, mirror: Mirror, transactions: Transactions, sealer: Seals | None, clock: Clock) -> None:
        self._mirror = mirror
        self._transactions = transactions
        self._sealer = sealer
        self._clock = clock

    async def set(self, tenant: str, upstream: str, key: str) -> None:
        """Keep `key`. `InvalidArgumentError`; `PreconditionError`, reason NO_SEALING_KEY or TENANT_DELETED;
        `QuotaExceededError(reason="TOO_MANY_MODEL_KEYS")`."""
        check_name(upstream, "upstream")
        if self._sealer is None:
            raise PreconditionError(
                "no sealing key is set up, so that no key can be kept: the operator sets `sealing.keys`",
                subject=upstream,
                reason="NO_SEALING_KEY",
            )
        record = ModelKeyRecord(
            sealed=self._sealer.seal(tenant, upstream, key),
            hint=key[-HINT:] if len(key) >= LONG_ENOUGH else "",
            updated=round(self._clock.wall(), 3),
        )
        for _ in range(_TRIES):
            try:
                revision = await self._transactions.set_model_key(tenant, upstream, record)
            except AbortedError:
                continue  # another call set it: the later one wins
            self._mirror.wrote(revision)
            return
        raise _too_fast(upstream)

    async def list(self, tenant: str) -> Mapping[str, ModelKeyRecord]:
        """What there is, by upstream."""
        return await self._transactions.model_keys(tenant)

    async def delete(self, tenant: str, upstream: str) -> None:
        """Forget a key. `NotFoundError`."""
        check_name(upstream, "upstream")
        for _ in range(_TRIES):
            try:
                revision = await self._transactions.delete_model_key(tenant, upstream)
            except AbortedError:
                continue  # another call set it: this is after that
            self._mirror.wrote(revision)
            return
        raise _too_fast(upstream)


def _too_fast(upstream: str) -> UnavailableError:
    return UnavailableError(f"the key for {upstream!r} changes too fast; try again", retry_after=0.2)
