"""A model gateway in memory, behind the pool-manager's port."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Collection
from dataclasses import replace

from cloudclaw.errors import FencedError, UnavailableError
from cloudclaw_pool_manager.ports.gateway import (
    Egress,
    GatewayConnected,
    GatewayEvent,
    GatewayLimit,
    GatewayLost,
    GatewayUse,
    LimitKind,
    ModelUse,
)


class FakeGateway:
    """Holds what is attached to it; a test says what is used, and when it dies.

    Attributes:
        attached: by uid.
        listeners: inode of the listener of each.
        uses: counted so far, by uid.
        calls: (operation, uid) in order; a sync's uids are joined by commas.
        away: nobody answers.
    """

    def __init__(self) -> None:
        self.attached: dict[str, Egress] = {}
        self.listeners: dict[str, int] = {}
        self.uses: dict[str, ModelUse] = {}
        self.calls: list[tuple[str, str]] = []
        self.away = False
        self._back = asyncio.Event()
        self._back.set()
        self._fenced = False
        self._closed = False
        self._events: asyncio.Queue[GatewayEvent | None] = asyncio.Queue()

    async def events(self) -> AsyncIterator[GatewayEvent]:
        await self._back.wait()
        yield GatewayConnected(frozenset(self.attached))
        while True:
            event = await self._events.get()
            if event is None:
                if self._fenced:
                    raise FencedError("the gateway obeys a newer pool-manager of this node")
                if self._closed:
                    return
                yield GatewayLost()
                await self._back.wait()
                yield GatewayConnected(frozenset(self.attached))
            else:
                yield event

    async def attach(self, egress: Egress, listener: int) -> None:
        self._answer("attach", egress.uid)
        before = self.uses.get(egress.uid, ModelUse())
        self.attached[egress.uid] = egress
        self.listeners[egress.uid] = os.fstat(listener).st_ino
        self.uses[egress.uid] = max(before, egress.used, key=lambda use: use.requests)

    async def detach(self, uid: str) -> ModelUse:
        self._answer("detach", uid)
        self.attached.pop(uid, None)
        self.listeners.pop(uid, None)
        return self.uses.pop(uid, ModelUse())

    async def use(self, uid: str) -> ModelUse:
        self._answer("use", uid)
        return self.uses.get(uid, ModelUse())

    async def sync(self, uids: Collection[str]) -> None:
        self._answer("sync", ",".join(sorted(uids)))
        for uid in set(self.attached) - set(uids):
            del self.attached[uid], self.listeners[uid], self.uses[uid]

    async def close(self) -> None:
        self._closed = True
        self._events.put_nowait(None)

    # What a test does.

    def spend(self, uid: str, **more: float) -> None:
        """Use more, and tell it: `spend(uid, requests=1, output_tokens=20)`."""
        use = self.uses[uid]
        self.uses[uid] = replace(use, **{name: getattr(use, name) + value for name, value in more.items()})
        self._events.put_nowait(GatewayUse(uid, self.uses[uid]))

    def reach(self, uid: str, kind: LimitKind, message: str = "limit reached") -> None:
        """Tell that a limit was reached."""
        self._events.put_nowait(GatewayLimit(uid, kind, message))

    def die(self) -> None:
        """As by SIGKILL: everything attached is forgotten."""
        self.away = True
        self._back.clear()
        self.attached.clear()
        self.listeners.clear()
        self.uses.clear()
        self._events.put_nowait(None)

    def come_back(self) -> None:
        """Another process answers."""
        self.away = False
        self._back.set()

    def fence(self) -> None:
        """A newer manager said hello."""
        self._fenced = True
        self._events.put_nowait(None)

    def _answer(self, op: str, uid: str) -> None:
        if self._fenced:
            raise FencedError("the gateway obeys a newer pool-manager of this node")
        if self.away or self._closed:
            raise UnavailableError("no gateway")
        self.calls.append((op, uid))
