"""A node's one lease: acquired or taken over again at start-up, then kept alive (rules 2 and 3)."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination.port import KeyValue, LeaseLostError
from cloudclaw.errors import UnavailableError

_log = structlog.get_logger(__name__)

RETRY: Final = 0.5
"""Seconds between two tries while the store does not answer."""

MAX_INTERVAL: Final = 2.0
"""Seconds between two renewals, at most; a fifth of a shorter TTL."""


class NodeLease:
    """The etcd lease that a node's keys hang on.

    Attributes:
        ttl: seconds asked for.
        lease_id: 0 before `acquire`.
        last_renewal_sent: boottime at which the last renewal that succeeded (or the grant) was **sent**. The lease
            lives at least until then + `ttl`, whatever the answer's way took; self-fencing counts from it.
        lost: set when the store says that the lease is gone, and only then. An outage does not set it: the lease may
            live on, and it is for the deadline of rule 3 to stop what runs.
    """

    def __init__(self, kv: KeyValue, clock: Clock, ttl: int = 10) -> None:
        self._kv = kv
        self._clock = clock
        self.ttl = ttl
        self.lease_id = 0
        self.last_renewal_sent = 0.0
        self.lost = asyncio.Event()

    async def acquire(self, remembered: int | None = None) -> bool:
        """Take over `remembered` when it still lives (True), else get a new lease (False).

        Also how a node goes on after `lost`: with None, a new lease id. Raises `UnavailableError`; then nothing has
        changed, and it may be called again.
        """
        if remembered:
            sent = self._clock.boottime()
            try:
                await self._kv.keep_alive(remembered)
            except LeaseLostError:
                _log.info("the remembered lease is gone", lease=f"{remembered:x}")
            else:
                self._start(remembered, sent)
                return True
        sent = self._clock.boottime()
        lease = await self._kv.grant(self.ttl)
        self._start(lease, sent)
        return False

    async def run(self) -> None:
        """Renew every `ttl` / 5 (2 s at most); returns once the lease is lost."""
        interval = min(self.ttl / 5, MAX_INTERVAL)
        pause = interval
        while not self.lost.is_set():
            await self._clock.sleep(pause)
            sent = self._clock.boottime()
            try:
                await self._kv.keep_alive(self.lease_id)
            except UnavailableError as error:
                _log.warning("a renewal of the lease failed", lease=f"{self.lease_id:x}", error=error.message)
                pause = min(RETRY, interval)
            except LeaseLostError:
                _log.warning("the lease is lost", lease=f"{self.lease_id:x}")
                self.lost.set()
            else:
                self.last_renewal_sent = sent
                pause = interval

    async def release(self) -> None:
        """End the lease, and with it every key on it. Raises `UnavailableError`; it then ends by itself."""
        await self._kv.revoke(self.lease_id)

    def _start(self, lease: int, sent: float) -> None:
        self.lease_id = lease
        self.last_renewal_sent = sent
        self.lost.clear()
