"""The node's lease, as `cloudclaw.coordination.lease.NodeLease` keeps it."""

from __future__ import annotations

import asyncio
from typing import Protocol


class Lease(Protocol):
    """The one etcd lease that all keys of the node hang on (design rule 2).

    Attributes:
        lease_id: its id, 0 before the first `acquire`.
        last_renewal_sent: boot time at which the last renewal that succeeded was sent.
        lost: set when etcd says that the lease is gone. Silence of etcd does not set it.
    """

    lease_id: int
    last_renewal_sent: float
    lost: asyncio.Event

    async def acquire(self, remembered: int | None) -> bool:
        """Keep `remembered` alive and answer True, or take a new one and answer False. `UnavailableError`."""
        ...

    async def run(self) -> None:
        """Renew; returns once the lease is lost."""
        ...

    async def release(self) -> None:
        """End the lease and its keys. `UnavailableError`."""
        ...
