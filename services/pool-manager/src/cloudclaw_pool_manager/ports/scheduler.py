"""The way to the scheduler: its two streams, from one replica."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from cloudclaw.v1.scheduler_pb2 import ConnectRequest, ConnectResponse, StreamLogsRequest, StreamLogsResponse


class SchedulerChannel(Protocol):
    """A connection to one replica.

    Both streams raise `CloudClawError`: `PreconditionError(reason="NOT_LEADER")`, with the leader's address as
    `metadata["leader"]` when the replica knows it, from one that does not lead; `UnavailableError` when it cannot be
    reached or went away. They end without an error when the replica closes them. Leaving the iteration cancels
    the call.
    """

    def connect(self, requests: AsyncIterator[ConnectRequest]) -> AsyncIterator[ConnectResponse]:
        """`SchedulerService.Connect`."""
        ...

    def stream_logs(self, requests: AsyncIterator[StreamLogsRequest]) -> AsyncIterator[StreamLogsResponse]:
        """`SchedulerService.StreamLogs`."""
        ...

    async def close(self) -> None:
        """Break both streams and release the connection."""
        ...


class SchedulerGateway(Protocol):
    """Opens channels."""

    def open(self, endpoint: str) -> SchedulerChannel:
        """A channel to `host:port`; nothing is sent yet."""
        ...
