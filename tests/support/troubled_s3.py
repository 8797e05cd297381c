"""An S3 server with troubles: an HTTP proxy before a real one that refuses, delays, answers errors and cuts off."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PIECE = 65536


@dataclass(frozen=True)
class Request:
    """One request as far as its head says. `number` counts all requests from 1."""

    method: str
    path: str
    length: int
    number: int

    @property
    def stores(self) -> bool:
        """It brings bytes, or completes bringing them."""
        return self.method in ("PUT", "POST")


@dataclass(frozen=True)
class Trouble:
    """What happens to a request.

    Attributes:
        delay: seconds before anything else.
        status: answered with this status and `code` in place of being forwarded.
        cut: the connection ends after so many bytes of the request's body went through; 0: at once.
    """

    delay: float = 0.0
    status: int = 0
    code: str = ""
    cut: int | None = None


Plan = Callable[[Request], Trouble | None]

AWAY = Trouble(cut=0)
FULL = Trouble(status=507, code="XMinioStorageFull")


def away(_: Request) -> Trouble | None:
    """The server cannot be reached."""
    return AWAY


def full(request: Request) -> Trouble | None:
    """The server has no room for more."""
    return FULL if request.stores else None


def slow(seconds: float) -> Plan:
    """Every request waits."""
    return lambda _: Trouble(delay=seconds)


def every_failing(count: int) -> Plan:
    """Every `count`-th request fails, by turns with a dropped connection and with an answer."""
    numbers = itertools.count(1)

    def plan(_: Request) -> Trouble | None:
        number = next(numbers)
        if number % count:
            return None
        return AWAY if number // count % 2 else Trouble(status=503, code="SlowDown")

    return plan


class TroubledS3:
    """Forwards requests to `target` (host:port), each on a connection of its own.

    Attributes:
        plan: asked about each request; None means no trouble.
        address: where to connect.
        troubled: how many requests had trouble.
    """

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self.plan: Plan | None = None
        self.troubled = 0
        self.address = ""

    async def __aenter__(self) -> TroubledS3:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=1 << 20)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        found = _LENGTH.search(head)
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
        request = Request(method, path, int(found[1]) if found else 0, next(self._numbers))
        trouble = self.plan(request) if self.plan else None
        if trouble is None:
            trouble = Trouble()
        else:
            self.troubled += 1
        await asyncio.sleep(trouble.delay)
        if trouble.cut == 0:
            return
        if trouble.status:
            await _skip(reader, request.length)
            body = f"<Error><Code>{trouble.code}</Code><Message>trouble</Message></Error>".encode()
            writer.write(
                b"HTTP/1.1 %d Trouble\r\ncontent-type: application/xml\r\n" % trouble.status
                + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            )
            writer.write(b"" if method == "HEAD" else body)
            await writer.drain()
            return
        upstream_reader, upstream = await asyncio.open_connection(self._host, self._port)
        try:
            upstream.write(head.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
            left = request.length if trouble.cut is None else min(trouble.cut, request.length)
            while left:
                piece = await reader.read(min(_PIECE, left))
                if not piece:
                    return
                left -= len(piece)
                upstream.write(piece)
                await upstream.drain()
            if trouble.cut is not None:
                return
            while piece := await upstream_reader.read(_PIECE):
                writer.write(piece)
                await writer.drain()
        finally:
            upstream.close()


async def _skip(reader: asyncio.StreamReader, length: int) -> None:
    while length:
        piece = await reader.read(min(_PIECE, length))
        if not piece:
            return
        length -= len(piece)
