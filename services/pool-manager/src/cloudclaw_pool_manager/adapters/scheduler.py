"""`SchedulerGateway` over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from cloudclaw.config import ClientTls
from cloudclaw.rpc.channel import open_channel
from cloudclaw.v1.scheduler_pb2 import ConnectRequest, ConnectResponse, StreamLogsRequest, StreamLogsResponse
from cloudclaw.v1.scheduler_pb2_grpc import SchedulerServiceStub


class GrpcScheduler:
    """Channels to scheduler replicas, with this node's token."""

    def __init__(self, tls: ClientTls, token: Callable[[], str] | None):
        self._tls = tls
        self._token = token

    def open(self, endpoint: str) -> GrpcSchedulerChannel:
        """A channel of its own for every connection: a broken one leaves nothing behind."""
        return GrpcSchedulerChannel(endpoint, self._tls, self._token)


class GrpcSchedulerChannel:
    """One channel."""

    def __init__(self, endpoint: str, tls: ClientTls, token: Callable[[], str] | None):
        self._channel = open_channel(endpoint, tls, token)
        self._stub = SchedulerServiceStub(self._channel)

    def connect(self, requests: AsyncIterator[ConnectRequest]) -> AsyncIterator[ConnectResponse]:
        call: AsyncIterator[ConnectResponse] = aiter(self._stub.Connect(requests))
        return call

    def stream_logs(self, requests: AsyncIterator[StreamLogsRequest]) -> AsyncIterator[StreamLogsResponse]:
        call: AsyncIterator[StreamLogsResponse] = aiter(self._stub.StreamLogs(requests))
        return call

    async def close(self) -> None:
        await self._channel.close()
