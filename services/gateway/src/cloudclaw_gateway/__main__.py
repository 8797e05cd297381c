"""`python -m cloudclaw_gateway`: the gateway as a process; the only place that composes it."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import resource
import ssl
import sys
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import REGISTRY

from cloudclaw.clock import Clock, SystemClock
from cloudclaw.config import load
from cloudclaw.errors import PreconditionError
from cloudclaw.lifecycle import Stack, run_service
from cloudclaw.logging import configure
from cloudclaw.rpc.metrics_server import serve_metrics
from cloudclaw.sealing import Sealer
from cloudclaw_gateway.adapters.http_upstreams import HttpUpstreams
from cloudclaw_gateway.app.attempts import Attempts
from cloudclaw_gateway.app.control import Control
from cloudclaw_gateway.app.metrics import GatewayMetrics
from cloudclaw_gateway.app.pushes import Pushes
from cloudclaw_gateway.app.relay import Patience, Relay
from cloudclaw_gateway.config import GatewaySettings
from cloudclaw_gateway.server.control import ControlServer
from cloudclaw_gateway.server.door import HttpDoors

_log = structlog.get_logger()

_POLL: Final = 0.05


async def serve(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; then accept nothing more, let streams end, and close the rest, in this order."""
    clock = SystemClock()
    async with Stack() as stack:
        # What opens the tenants' keys. A file that cannot be used is said before anything listens.
        sealer = Sealer(settings.sealing.keys)
        upstreams = settings.endpoints()
        if not settings.sealing.keys and not all(upstream.anonymous for upstream in upstreams.values()):
            _log.warning("no sealing keys: requests to upstreams that want a key will be refused")
        # One gateway behind a socket: a new one waits until the old one has ended its streams.
        lock = await _lock(settings.socket, clock, stop)
        if lock is None:
            return
        stack.push("lock", lambda: asyncio.to_thread(os.close, lock))
        # Each connection of a sandbox and each one to an upstream is a descriptor.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        # Warm connections to the endpoints.
        try:
            ways = HttpUpstreams(
                connect_timeout=settings.connect_timeout,
                idle_timeout=settings.idle_timeout,
                keep_warm=settings.keep_warm,
                ca=settings.ca,
            )
        except (OSError, ssl.SSLError) as error:
            raise PreconditionError(f"{settings.ca}: no certificates: {error}", reason="BAD_CA") from error
        stack.push("upstreams", ways.close)
        metrics = GatewayMetrics(REGISTRY)
        # What the pool-manager is told.
        pushes = Pushes(clock)
        doors = HttpDoors(
            max_connections=settings.max_connections,
            max_body=settings.max_body,
            body_timeout=settings.body_timeout,
            idle_timeout=settings.client_timeout,
        )
        patience = Patience(turn=settings.turn_timeout, unnamed_output=settings.unnamed_output)
        # Whose sandboxes are served.
        attempts = Attempts(doors, Relay(upstreams, ways, sealer, metrics, clock, patience), pushes)
        metrics.attempts.set_function(lambda: len(attempts.uids))
        stack.push("attempts", attempts.close)
        stop_metrics = await asyncio.to_thread(serve_metrics, settings.metrics)
        stack.push("metrics", lambda: asyncio.to_thread(stop_metrics))
        # Who says so.
        control = Control(attempts, pushes, clock, unclaimed=settings.unclaimed)
        server = ControlServer(settings.socket, control)
        server.start()
        stack.push("control", server.close)
        telling = asyncio.create_task(pushes.run(attempts.use))
        # What was loaded stays: it is not looked at again by the garbage collector, which would hold up streams.
        gc.collect()
        gc.freeze()
        _log.info("serving", socket=str(settings.socket), upstreams=list(upstreams))
        await stop.wait()
        try:
            async with asyncio.timeout(settings.stop_grace):
                await attempts.drain()
        except TimeoutError:
            _log.warning("streams did not end in time; breaking them", seconds=settings.stop_grace)
        telling.cancel()
        control.close()
        # The last counts, before the connection closes; also of what is broken off after it.
        attempts.settle()
        pushes.flush(attempts.use)


async def _lock(path: Path, clock: Clock, stop: asyncio.Event) -> int | None:
    """Wait for the socket to be this process's; None when it is told to stop meanwhile."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(
        path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
    )
    told = False
    while not stop.is_set():
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if not told:
                _log.info("waiting for another gateway on this socket to end", socket=str(path))
                told = True
            await clock.sleep(_POLL)
    os.close(descriptor)
    return None


def main() -> int:
    """The process's entry point; answers its exit code."""
    settings = load(GatewaySettings)
    configure(settings.log, "gateway")
    return asyncio.run(run_service(lambda stop: serve(settings, stop), stop_timeout=settings.stop_grace + 30.0))


if __name__ == "__main__":
    sys.exit(main())
