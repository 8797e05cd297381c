"""gRPC's health protocol, for each service of a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_Response = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Whether each service serves; the empty name stands for all of them together."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._draining = False
        self._changed = asyncio.Event()

    def set(self, service: str, *, serving: bool) -> None:
        """Say whether `service` serves. Once draining, nothing serves again."""
        self._serving[service] = serving and not self._draining
        self._announce()

    def drain(self) -> None:
        """Turn everything to NOT_SERVING, for good."""
        self._draining = True
        self._serving = dict.fromkeys(self._serving, False)
        self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _status(self, service: str) -> int | None:
        if not service:
            serving = not self._draining and all(self._serving.values())
        elif service in self._serving:
            serving = self._serving[service]
        else:
            return None
        return int(_Response.SERVING if serving else _Response.NOT_SERVING)

    async def Check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """One service's state. NOT_FOUND for a service that is not here."""
        status = self._status(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service here")
        return _Response(status=status)

    async def Watch(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        """One service's state now and at every change."""
        last = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status is None:
                status = int(_Response.SERVICE_UNKNOWN)
            if status != last:
                yield _Response(status=status)
                last = status
            await changed.wait()
