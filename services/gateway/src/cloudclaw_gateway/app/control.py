"""Which pool-manager is obeyed, and what becomes of attempts when none is there."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import structlog

from cloudclaw.clock import Clock
from cloudclaw.errors import FencedError
from cloudclaw_gateway.app.attempts import Attempts, Credentials
from cloudclaw_gateway.app.pushes import Pushes
from cloudclaw_gateway.domain.use import Limits, Use
from cloudclaw_gateway.ports.manager import Manager

_log = structlog.get_logger()


class Control:
    """What a pool-manager may do, one at a time: the one with the highest incarnation, and of one incarnation the
    connection that said hello last.

    Attempts go on while no manager is connected: it is being upgraded. It says at its next hello which ones are its
    own (`sync`); when none comes for `unclaimed` seconds all are detached, as their supervisors have ended them long
    before.

    Every call but `hello` raises `FencedError` when `manager` is not obeyed.
    """

    def __init__(self, attempts: Attempts, pushes: Pushes, clock: Clock, *, unclaimed: float) -> None:
        self._attempts = attempts
        self._pushes = pushes
        self._clock = clock
        self._unclaimed = unclaimed
        self._incarnation = 0
        self._obeyed: Manager | None = None
        self._waiting: asyncio.Task[None] | None = None

    def hello(self, manager: Manager, incarnation: int) -> list[str]:
        """Obey `manager` from now on; answers the uids of all attempts.

        Raises `FencedError` when a higher incarnation was here.
        """
        if incarnation < self._incarnation:
            raise FencedError(
                f"incarnation {self._incarnation} of a pool-manager was here, and this is {incarnation}: it was"
                " replaced, or another node uses this gateway. Each node needs one of its own; if nothing runs in the"
                " place of this manager, restart the gateway"
            )
        before, self._obeyed, self._incarnation = self._obeyed, manager, incarnation
        if before is not None and before is not manager:
            before.fence()
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        self._pushes.connect(manager.push)
        _log.info("obeying", incarnation=incarnation, attempts=len(self._attempts.uids))
        return self._attempts.uids

    def gone(self, manager: Manager) -> None:
        """Its connection is closed."""
        if self._obeyed is not manager:
            return
        self._obeyed = None
        self._pushes.connect(None)
        _log.info("the pool-manager is gone", attempts=len(self._attempts.uids))
        self._waiting = asyncio.create_task(self._forget())

    def attach(self, manager: Manager, credentials: Credentials, limits: Limits, used: Use, listener: int) -> None:
        """See `Attempts.attach`; raises as that does."""
        self._check(manager)
        self._attempts.attach(credentials, limits, used, listener)

    def detach(self, manager: Manager, uid: str) -> Use:
        """See `Attempts.detach`."""
        self._check(manager)
        return self._attempts.detach(uid)

    def use(self, manager: Manager, uid: str) -> Use:
        """See `Attempts.use`."""
        self._check(manager)
        return self._attempts.use(uid)

    def sync(self, manager: Manager, uids: Collection[str]) -> list[str]:
        """Detach all but `uids`; answers which were detached."""
        self._check(manager)
        return self._attempts.keep_only(uids)

    def close(self) -> None:
        """Wait for no manager any more."""
        if self._waiting is not None:
            self._waiting.cancel()

    def _check(self, manager: Manager) -> None:
        if manager is not self._obeyed:
            raise FencedError("this connection is not obeyed: it said no hello, or a newer manager did")

    async def _forget(self) -> None:
        await self._clock.sleep(self._unclaimed)
        if lost := self._attempts.keep_only(()):
            _log.warning("no pool-manager claimed these attempts", uids=lost, seconds=self._unclaimed)
