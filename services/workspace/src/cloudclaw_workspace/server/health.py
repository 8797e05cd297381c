"""Health as gRPC clients see it: serving while what the service stands on answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination import keys
from cloudclaw.coordination.port import KeyValue
from cloudclaw.errors import CloudClawError
from cloudclaw.objects.port import ObjectStore
from cloudclaw.rpc.server import RpcServer

_log = structlog.get_logger()

TIMEOUT: Final = 5.0
"""Seconds that a check may take."""


class HealthWatch:
    """Tells `server` whether `service` serves, by asking etcd and the object store every `interval` seconds."""

    def __init__(
        self,
        server: RpcServer,
        service: str,
        kv: KeyValue,
        objects: ObjectStore,
        clock: Clock,
        *,
        interval: float = 2.0,
    ) -> None:
        self._server = server
        self._service = service
        self._kv = kv
        self._objects = objects
        self._clock = clock
        self._interval = interval
        self._serving: bool | None = None

    async def run(self) -> None:
        """Check for ever."""
        while True:
            await self.check()
            await self._clock.sleep(self._interval)

    async def check(self) -> None:
        """Check once."""
        missing = [
            name
            for name, answers in (("etcd", await self._etcd()), ("the object store", await self._store()))
            if not answers
        ]
        serving = not missing
        if serving != self._serving:
            _log.info("health changed", serving=serving, missing=missing)
            self._serving = serving
        self._server.set_serving(self._service, serving)

    async def _etcd(self) -> bool:
        return await self._answers(self._kv.get(keys.ROOT), "etcd")

    async def _store(self) -> bool:
        return await self._answers(self._objects.check(), "the object store")

    async def _answers(self, question: Awaitable[object], name: str) -> bool:
        try:
            async with asyncio.timeout(TIMEOUT):
                await question
        except (CloudClawError, TimeoutError) as error:
            _log.warning("does not answer", component=name, error=str(error))
            return False
        return True
