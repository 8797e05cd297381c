"""What the gateway adds to the first byte of a model's answer, against asking the endpoint itself on loopback."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cloudclaw.clock import SystemClock
from cloudclaw_pool_manager.adapters.gateway import UnixModelGateway
from cloudclaw_pool_manager.ports.gateway import Egress, GatewayConnected, ModelLimits
from tests.bench.memory import resident
from tests.bench.report import Row, percentile
from tests.support.gateway import GatewayProcess

SAMPLES = 1500
STREAMS = 16
LIMITED = 1
"""The attempt that has a limit on tokens, so that its requests are held until they are read."""
BODY = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"' + b"hello " * 3000 + b'"}]}'


async def measure(directory: Path) -> list[Row]:
    """Rows for the overhead at rest and beside other streams, and for memory."""
    async with _endpoint() as port:
        upstreams = {"anthropic": {"kind": "anthropic", "url": f"http://127.0.0.1:{port}", "anonymous": True}}
        gateway = GatewayProcess(directory, upstreams, LOG__LEVEL="info")
        await gateway.start()
        manager = UnixModelGateway(gateway.socket, lambda: 1, SystemClock(), patience=30.0)
        events = manager.events()
        while not isinstance(await anext(events), GatewayConnected):
            pass
        idle = resident(gateway.pid)
        listeners = [socket.create_server(("127.0.0.1", 0), backlog=128) for _ in range(STREAMS)]
        try:
            for number, listener in enumerate(listeners):
                limits = ModelLimits(tokens=1 << 40) if number == LIMITED else ModelLimits()
                await manager.attach(Egress(f"u{number}", "bench", f"t{number}", 1, limits=limits), listener.fileno())
            ports = [listener.getsockname()[1] for listener in listeners]
            # In a thread: nothing of this process stands between a byte's arrival and the clock.
            alone = await asyncio.to_thread(_compare, port, ports[0])
            limited = await asyncio.to_thread(_compare, port, ports[LIMITED])
            async with _streams(ports):
                beside = await asyncio.to_thread(_compare, port, ports[0])
                busy = resident(gateway.pid)
        finally:
            for listener in listeners:
                listener.close()
            await manager.close()
            await gateway.stop()
    return [
        *_rows("alone", *alone),
        *_rows("under a limit on tokens", *limited),
        *_rows(f"beside {STREAMS} streams of 50 events/s", *beside),
        Row("idle gateway, resident", idle, "MiB", budget=80),
        Row(f"gateway with {STREAMS} attempts that stream, resident", busy, "MiB"),
    ]


def _rows(where: str, direct: list[float], through: list[float]) -> list[Row]:
    rows = []
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        ours, theirs = percentile(through, share), percentile(direct, share)
        note = f"{ours:.2f} through the gateway, {theirs:.2f} direct; {len(through)} requests of {len(BODY) >> 10} KiB"
        rows.append(Row(f"gateway: added to the first byte, {where}, {name}", ours - theirs, "ms", budget=3, note=note))
    return rows


def _compare(direct: int, through: int) -> tuple[list[float], list[float]]:
    """Milliseconds to the first byte, one request after the other, taking turns."""
    with (
        socket.create_connection(("127.0.0.1", direct)) as one,
        socket.create_connection(("127.0.0.1", through)) as two,
    ):
        for sock in (one, two):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(50):
                _first_byte(sock)
        taken: tuple[list[float], list[float]] = ([], [])
        for _ in range(SAMPLES):
            taken[0].append(_first_byte(one))
            taken[1].append(_first_byte(two))
        return taken


def _first_byte(sock: socket.socket) -> float:
    request = _request("/anthropic/v1/messages", BODY)
    start = time.perf_counter()
    sock.sendall(request)
    data = b""
    while b"data:" not in data:
        data += sock.recv(1 << 16)
    taken = (time.perf_counter() - start) * 1000
    while not data.endswith(b"0\r\n\r\n"):
        data += sock.recv(1 << 16)
    return taken


def _request(target: str, body: bytes) -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (target.encode(), len(body), body)


@asynccontextmanager
async def _streams(ports: list[int]) -> AsyncIterator[None]:
    """One long stream through each of `ports`, all the while."""
    writers = []
    tasks = []
    for port in ports:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_request("/anthropic/v1/messages?events=100000&pause=0.02", b"{}"))
        await reader.readuntil(b"message_start")
        writers.append(writer)
        tasks.append(asyncio.create_task(_drain(reader)))
    yield
    for task in tasks:
        task.cancel()
    for writer in writers:
        writer.close()


async def _drain(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass


@asynccontextmanager
async def _endpoint() -> AsyncIterator[int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.gateway_child", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield int(await process.stdout.readline())
    finally:
        process.kill()
        await process.wait()
