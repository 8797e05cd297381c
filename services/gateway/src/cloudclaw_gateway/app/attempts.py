"""The attempts that may call models, each with the door of its sandbox."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import structlog

from cloudclaw_gateway.app.account import Account
from cloudclaw_gateway.app.pushes import Pushes
from cloudclaw_gateway.app.relay import Relay
from cloudclaw_gateway.domain.use import LimitKind, Limits, Use
from cloudclaw_gateway.ports.doors import Door, Doors, Exchange

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who speaks through a door. Keys are sealed still."""

    uid: str
    tenant: str
    task: str
    attempt: int
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)


class Attempt:
    """One attempt; `serve` is what its door calls."""

    def __init__(self, credentials: Credentials, account: Account, relay: Relay) -> None:
        self.credentials = credentials
        self.account = account
        self.door: Door | None = None
        self._relay = relay

    async def serve(self, exchange: Exchange) -> None:
        """One request of its sandbox."""
        who = self.credentials
        with structlog.contextvars.bound_contextvars(tenant=who.tenant, task=who.task, attempt=who.attempt):
            await self._relay.serve(exchange, who.tenant, who.keys, self.account)


class Attempts:
    """All attempts of this node, by uid. Nothing of them is kept on disk: the pool-manager attaches them again."""

    def __init__(self, doors: Doors, relay: Relay, pushes: Pushes) -> None:
        self._doors = doors
        self._relay = relay
        self._pushes = pushes
        self._attempts: dict[str, Attempt] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def uids(self) -> list[str]:
        """Of all attempts."""
        return sorted(self._attempts)

    def attach(self, credentials: Credentials, limits: Limits, used: Use, listener: int) -> None:
        """Serve the sandbox behind `listener`, which becomes ours. Idempotent by uid: what is told anew replaces what
        was told, and the use counted so far stays.

        Raises `InvalidArgumentError` when `listener` is no listening TCP socket.
        """
        uid = credentials.uid
        known = self._attempts.get(uid)
        if known is not None and known.door is not None and known.door.inode == os.fstat(listener).st_ino:
            os.close(listener)
            known.credentials = credentials
            known.account.renew(limits, used)
            return

        def changed() -> None:
            self._pushes.use(uid)

        def reached(kind: LimitKind, message: str) -> None:
            _log.info("limit reached", uid=uid, kind=kind, tenant=credentials.tenant, task=credentials.task)
            self._pushes.limit(uid, kind, message)

        if known is not None:
            # Another sandbox of the same attempt: what the earlier one has under way counts on.
            account = known.account
        else:
            account = Account(limits, used, changed=changed, reached=reached)
        attempt = Attempt(credentials, account, self._relay)
        attempt.door = self._doors.open(listener, attempt.serve)
        if known is not None:
            account.renew(limits, used)
            self._close(known)
        self._attempts[uid] = attempt
        _log.info("attached", uid=uid, tenant=credentials.tenant, task=credentials.task, attempt=credentials.attempt)

    def detach(self, uid: str) -> Use:
        """Break its connections and forget it; answers what was used, what is broken off included."""
        attempt = self._attempts.pop(uid, None)
        if attempt is None:
            return Use()
        attempt.account.close()
        self._close(attempt)
        self._pushes.forget(uid)
        who = attempt.credentials
        _log.info("detached", uid=uid, tenant=who.tenant, task=who.task, attempt=who.attempt)
        return attempt.account.use

    def use(self, uid: str) -> Use:
        """What was used so far."""
        attempt = self._attempts.get(uid)
        return attempt.account.use if attempt is not None else Use()

    def keep_only(self, uids: Collection[str]) -> list[str]:
        """Detach all others; answers which they were."""
        others = [uid for uid in self.uids if uid not in uids]
        for uid in others:
            self.detach(uid)
        return others

    async def drain(self) -> None:
        """Accept nothing more anywhere, and return when every request is done. What connects meanwhile waits in the
        backlog of its listener, which the supervisor holds open too."""
        await asyncio.gather(*(attempt.door.drain() for attempt in self._attempts.values() if attempt.door is not None))

    def settle(self) -> None:
        """What is under way counts as it stands: nobody waits for its end."""
        for attempt in self._attempts.values():
            attempt.account.close()

    async def close(self) -> None:
        """Break what is left."""
        for uid in self.uids:
            self._close(self._attempts.pop(uid))
        while self._closing:
            await asyncio.wait(self._closing)

    def _close(self, attempt: Attempt) -> None:
        assert attempt.door is not None
        task = asyncio.create_task(attempt.door.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
