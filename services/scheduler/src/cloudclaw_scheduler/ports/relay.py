"""The relay port: how a replica that does not lead passes calls on to the one that does."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final, Protocol

from cloudclaw.v1.scheduler_pb2 import GetClusterStatusResponse, TailLogsRequest, TailLogsResponse

RELAYED: Final = "x-claw-relayed"
"""Metadata that marks a relayed call: who does not lead refuses it, instead of passing it on in a circle."""


class LeaderRelay(Protocol):
    """Calls to the leader in the name of the caller, whose own token (`authorization`) goes along."""

    def tail(self, leader: str, request: TailLogsRequest, authorization: str) -> AsyncGenerator[TailLogsResponse, None]:
        """What the leader at the address `leader` answers. Raises `CloudClawError`; `UnavailableError` when it does
        not answer, `PreconditionError(reason="NOT_LEADER")` when it does not lead any more."""
        ...

    async def cluster_status(self, leader: str, authorization: str) -> GetClusterStatusResponse:
        """The leader's view of the cluster. Raises as `tail`."""
        ...
