"""A real server on loopback around a servicer that does what each test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from cloudclaw.clock import SystemClock
from cloudclaw.config import ClientTls, ServerSettings
from cloudclaw.rpc.auth import Authenticator, Minter
from cloudclaw.rpc.channel import open_channel
from cloudclaw.rpc.keys import write_development_key
from cloudclaw.rpc.server import RpcServer
from cloudclaw.v1 import scheduler_pb2_grpc, workspace_pb2_grpc
from tests.integration.rpc.servicers import SCHEDULER, WORKSPACE, Scheduler, Workspaces


class Loopback:
    """Server, servicers and channels of one test."""

    def __init__(self, key: Path):
        self.key = key
        self.scheduler = Scheduler()
        self.workspaces = Workspaces()
        self.address = ""
        self.server: RpcServer
        self._channels: list[grpc.aio.Channel] = []

    async def start(self, settings: ServerSettings) -> None:
        self.server = RpcServer(settings, Authenticator([self.key]), clock=SystemClock())
        self.server.add(SCHEDULER, scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server, self.scheduler)
        self.server.add(WORKSPACE, workspace_pb2_grpc.add_WorkspaceServiceServicer_to_server, self.workspaces)
        self.address = await self.server.start()

    def token(self, tenant: str = "acme", *roles: str) -> str:
        return Minter(self.key).mint(tenant, roles or ("user",), 60)

    def channel(self, token: str | None = None, tls: ClientTls | None = None, target: str = "") -> grpc.aio.Channel:
        opened = open_channel(target or self.address, tls, self.token() if token is None else token)
        self._channels.append(opened)
        return opened

    def raw(self) -> grpc.aio.Channel:
        """gRPC's own channel: no token, no translation."""
        opened = grpc.aio.insecure_channel(self.address)
        self._channels.append(opened)
        return opened

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        await self.server.stop(0)


Start = Callable[[ServerSettings], Awaitable[Loopback]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a loopback with the given settings."""
    key = tmp_path / "dev.key"
    write_development_key(key)
    started: list[Loopback] = []

    async def begin(settings: ServerSettings) -> Loopback:
        loopback = Loopback(key)
        await loopback.start(settings)
        started.append(loopback)
        return loopback

    yield begin
    for loopback in started:
        await loopback.close()


@pytest.fixture
async def loopback(start: Start) -> Loopback:
    """A plain one on a free port."""
    return await start(ServerSettings(listen="127.0.0.1:0"))
