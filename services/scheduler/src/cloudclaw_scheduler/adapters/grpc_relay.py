"""The relay over gRPC, with one channel to the leader."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

import grpc

from cloudclaw.config import ClientTls
from cloudclaw.rpc.channel import open_channel
from cloudclaw.v1 import scheduler_pb2_grpc
from cloudclaw.v1.scheduler_pb2 import (
    GetClusterStatusRequest,
    GetClusterStatusResponse,
    TailLogsRequest,
    TailLogsResponse,
)
from cloudclaw_scheduler.ports.relay import RELAYED

_STATUS_TIMEOUT: Final = 2.0


class GrpcRelay:
    """`LeaderRelay` over gRPC."""

    def __init__(self, tls: ClientTls | None) -> None:
        self._tls = tls
        self._address = ""
        self._channel: grpc.aio.Channel | None = None

    async def tail(
        self, leader: str, request: TailLogsRequest, authorization: str
    ) -> AsyncGenerator[TailLogsResponse, None]:
        stub = await self._stub(leader)
        call = stub.TailLogs(request, metadata=_metadata(authorization))
        try:
            async for response in call:
                yield response
        finally:
            call.cancel()

    async def cluster_status(self, leader: str, authorization: str) -> GetClusterStatusResponse:
        stub = await self._stub(leader)
        return await stub.GetClusterStatus(
            GetClusterStatusRequest(), metadata=_metadata(authorization), timeout=_STATUS_TIMEOUT
        )

    async def close(self) -> None:
        """End the channel."""
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()

    async def _stub(self, leader: str) -> scheduler_pb2_grpc.SchedulerServiceAsyncStub:
        if self._channel is None or leader != self._address:
            old = self._channel
            self._channel, self._address = open_channel(leader, self._tls), leader
            if old is not None:
                await old.close()
        return scheduler_pb2_grpc.SchedulerServiceStub(self._channel)


def _metadata(authorization: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", authorization), (RELAYED, "1"))
