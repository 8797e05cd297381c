"""A gateway as a process, upstreams that a test plays, and the sandboxes' side of it."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from cloudclaw.clock import SystemClock
from cloudclaw.sealing import Sealer, write_sealing_key
from cloudclaw_pool_manager.adapters.gateway import UnixModelGateway
from cloudclaw_pool_manager.ports.gateway import (
    Egress,
    GatewayConnected,
    GatewayEvent,
    GatewayLimit,
    GatewayUse,
    ModelLimits,
    ModelUse,
)
from tests.support.namespaces import PORT, NetworkNamespace

DEADLINE = 30.0

Play = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Recorded:
    """A request as an upstream saw it."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> list[str]:
        """All values of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


class PlayedUpstream:
    """An HTTP server on loopback that answers as the test says, and records what it is asked.

    Attributes:
        play: answers a request; set it before one comes.
        requests: whole ones, in order.
    """

    def __init__(self) -> None:
        self.play: Play = self._nothing
        self.requests: list[Recorded] = []
        self.url = ""
        self._runner: web.ServerRunner | None = None

    def reset(self) -> None:
        """As it was at the start."""
        self.play = self._nothing
        self.requests.clear()

    async def start(self, ssl: Any = None) -> None:
        self._runner = web.ServerRunner(web.Server(self._serve, handler_cancellation=True))  # type: ignore[arg-type]
        await self._runner.setup()
        sock = socket.create_server(("127.0.0.1", 0))
        await web.SockSite(self._runner, sock, ssl_context=ssl).start()
        self.url = f"{'https' if ssl else 'http'}://127.0.0.1:{sock.getsockname()[1]}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        return await self.play(request)

    async def record(self, request: web.BaseRequest) -> Recorded:
        """Read the request to its end."""
        body = await request.content.read()
        recorded = Recorded(request.method, request.raw_path, list(request.headers.items()), body)
        self.requests.append(recorded)
        return recorded

    async def _nothing(self, request: web.Request) -> web.StreamResponse:
        await self.record(request)
        return web.json_response({"id": "x", "usage": {"input_tokens": 3, "output_tokens": 5}, "model": "m-1"})

    def answer(self, document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Answer everything with this document from now on."""

        async def play(request: web.Request) -> web.StreamResponse:
            await self.record(request)
            return web.json_response(document, status=status, headers=headers)

        self.play = play


@dataclass
class Sandbox:
    """One attempt's side: a namespace with the listener in it."""

    namespace: NetworkNamespace = field(default_factory=NetworkNamespace)

    def __post_init__(self) -> None:
        self.listener = self.namespace.listener()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[aiohttp.ClientSession]:
        """An HTTP client inside."""

        def make(info: Any) -> socket.socket:
            sock = self.namespace.socket()
            sock.setblocking(False)
            return sock

        connector = aiohttp.TCPConnector(socket_factory=make, limit=0)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{PORT}", connector=connector) as session:
            yield session

    async def raw(self, request: bytes) -> bytes:
        """Send bytes, and read until the gateway closes the connection."""
        reader, writer = await self.namespace.connect()
        try:
            writer.write(request)
            await writer.drain()
            async with asyncio.timeout(DEADLINE):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    def close(self) -> None:
        self.listener.close()
        self.namespace.close()


class GatewayProcess:
    """`python -m cloudclaw_gateway`, started and killed as often as a test likes."""

    def __init__(self, directory: Path, upstreams: Mapping[str, Mapping[str, Any]], **settings: str) -> None:
        self.socket = directory / "gateway" / "control.sock"
        key = directory / "sealing.key"
        if not key.exists():
            write_sealing_key(key)
        self.sealer = Sealer([key])
        self.log = directory / "gateway.log"
        self._environment = {
            "PATH": os.environ["PATH"],
            "CLAW_GATEWAY_SOCKET": str(self.socket),
            "CLAW_GATEWAY_SEALING__KEYS": str(key),
            "CLAW_GATEWAY_UPSTREAMS": json.dumps(upstreams),
            "CLAW_GATEWAY_LOG__LEVEL": "debug",
            **{f"CLAW_GATEWAY_{name}": value for name, value in settings.items()},
        }
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; it serves once a manager connects."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "cloudclaw_gateway",
                env=self._environment, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def another(self) -> GatewayProcess:
        """The next process of the same gateway, not started yet."""
        made = copy.copy(self)
        made.process = None
        return made

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def kill(self) -> None:
        """SIGKILL, and gone."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """SIGTERM, and gone; answers its exit code."""
        return await self._end(signal.SIGTERM)

    def terminate(self) -> None:
        """SIGTERM."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> int:
        if self.process is None:
            return 0
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(DEADLINE):
            return await self.process.wait()


class GatewayRig:
    """A gateway with its manager, upstreams and sandboxes.

    Attributes:
        upstream: behind `anthropic` and `openai`, which want keys, and `local`, which does not.
        manager: connected.
    """

    def __init__(self, directory: Path, **settings: str) -> None:
        self.upstream = PlayedUpstream()
        self._directory = directory
        self._settings = settings
        self._sandboxes: list[Sandbox] = []
        self._uids: set[str] = set()
        self._others: list[GatewayProcess] = []
        self.uses: dict[str, ModelUse] = {}
        self.limits: list[GatewayLimit] = []
        self._told = asyncio.Condition()
        self._reader: asyncio.Task[None] | None = None

    async def start(self, **upstream_settings: Any) -> None:
        await self.upstream.start()
        prices = {"m-*": {"input": 1.0, "output": 10.0, "cache_read": 0.1, "cache_write": 1.25}}
        common = {"url": self.upstream.url, "prices": prices, **upstream_settings}
        upstreams = {
            "anthropic": {"kind": "anthropic", **common},
            "openai": {"kind": "openai", **common},
            "gone": {"kind": "anthropic", "anonymous": True, "url": "http://127.0.0.1:1"},
            "gone-too": {"kind": "openai", "anonymous": True, "url": "http://127.0.0.1:1"},
            "local": {"kind": "openai", "anonymous": True, **common, "url": self.upstream.url + "/base/v1"},
        }
        self.gateway = GatewayProcess(self._directory, upstreams, **self._settings)
        await self.gateway.start()
        self.manager = UnixModelGateway(self.gateway.socket, lambda: 1, SystemClock(), patience=DEADLINE)
        await self.connect()

    async def connect(self) -> None:
        """Read the manager's events from now on, and wait until it is connected."""
        events = self.manager.events()
        async with asyncio.timeout(DEADLINE):
            while not isinstance(await anext(events), GatewayConnected):
                pass
        self._reader = asyncio.create_task(self._read(events))

    async def _read(self, events: AsyncIterator[GatewayEvent]) -> None:
        async for event in events:
            async with self._told:
                if isinstance(event, GatewayUse):
                    self.uses[event.uid] = event.use
                elif isinstance(event, GatewayLimit):
                    self.limits.append(event)
                self._told.notify_all()

    async def told(self, check: Callable[[], bool]) -> None:
        """Wait until what the manager was told fulfils `check`."""
        async with asyncio.timeout(DEADLINE), self._told:
            await self._told.wait_for(check)

    async def sandbox(
        self, uid: str = "u", limits: ModelLimits | None = None, *, tenant: str = "acme", used: ModelUse | None = None
    ) -> Sandbox:
        """An attached attempt. Its tenant's keys are `key-of-TENANT-UPSTREAM`."""
        made = Sandbox()
        self._sandboxes.append(made)
        await self.attach(made, uid, limits, tenant=tenant, used=used)
        return made

    async def attach(
        self,
        sandbox: Sandbox,
        uid: str = "u",
        limits: ModelLimits | None = None,
        *,
        tenant: str = "acme",
        used: ModelUse | None = None,
    ) -> None:
        """Attach it, or attach it again."""
        keys = {
            name: self.gateway.sealer.seal(tenant, name, f"key-of-{tenant}-{name}") for name in ("anthropic", "openai")
        }
        egress = Egress(uid, tenant, f"task-{uid}", 1, keys, limits or ModelLimits(), used or ModelUse())
        self._uids.add(uid)
        await self.manager.attach(egress, sandbox.listener.fileno())

    async def follower(self) -> GatewayProcess:
        """The next process of the same gateway, started; it waits for the one that runs."""
        made = self.gateway.another()
        self._others += [self.gateway, made]
        await made.start()
        return made

    async def reset(self) -> None:
        """As it was at the start, for the next test."""
        for uid in self._uids:
            await self.manager.detach(uid)
        for sandbox in self._sandboxes:
            sandbox.close()
        self._uids.clear()
        self._sandboxes.clear()
        self.uses.clear()
        self.limits.clear()
        self.upstream.reset()

    async def close(self) -> None:
        await self.manager.close()
        if self._reader is not None:
            await asyncio.wait([self._reader])
        for gateway in (self.gateway, *self._others):
            await gateway.stop()
        for sandbox in self._sandboxes:
            sandbox.close()
        await self.upstream.stop()
