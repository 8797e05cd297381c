"""HTTP from one sandbox, over a listening socket that was made inside its network namespace."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from cloudclaw.errors import InvalidArgumentError
from cloudclaw_gateway.domain.refusal import Kind, Mark, Refusal
from cloudclaw_gateway.ports.doors import Handler
from cloudclaw_gateway.ports.upstreams import Body

_log = structlog.get_logger()

# What aiohttp says of broken requests comes from hostile tasks, as often as they like.
_quiet = logging.getLogger("cloudclaw_gateway.http")
_quiet.setLevel(logging.CRITICAL + 1)

_MAX_FIELD: Final = 8190
_MAX_FIELDS: Final = 100
_PAUSE: Final = 0.1
_FRESH: Final = 2.0
"""Seconds that a connection has for its first request when the gateway is stopped."""
_TRANSIENT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED})


class HttpDoors:
    """Opens doors that speak HTTP/1.1.

    Args:
        max_connections: of one sandbox; further ones wait in its listener's backlog.
        max_body: bytes of a request's body.
        body_timeout: seconds between two pieces of a body.
        idle_timeout: seconds that a connection may be without a whole request head: idle, or slow at it.
    """

    def __init__(self, *, max_connections: int, max_body: int, body_timeout: float, idle_timeout: float) -> None:
        self.max_connections = max_connections
        self.max_body = max_body
        self.body_timeout = body_timeout
        self.idle_timeout = idle_timeout

    def open(self, listener: int, handler: Handler) -> HttpDoor:
        try:
            sock = socket.socket(fileno=listener)
        except OSError as error:
            os.close(listener)
            raise InvalidArgumentError(f"the listener is no socket: {error}", field="listener") from error
        if (
            sock.family not in (socket.AF_INET, socket.AF_INET6)
            or sock.type != socket.SOCK_STREAM
            or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        ):
            sock.close()
            raise InvalidArgumentError("the listener is no listening TCP socket", field="listener")
        return HttpDoor(sock, handler, self)


class HttpDoor:
    """One sandbox's door."""

    def __init__(self, sock: socket.socket, handler: Handler, doors: HttpDoors) -> None:
        self.inode = os.fstat(sock.fileno()).st_ino
        sock.setblocking(False)
        self._sock = sock
        self._handler = handler
        self._doors = doors
        self._loop = asyncio.get_running_loop()
        self._server = _Server(
            self._serve,
            self._gone,
            keepalive_timeout=doors.idle_timeout,
            max_line_size=_MAX_FIELD,
            max_field_size=_MAX_FIELD,
            max_headers=_MAX_FIELDS,
            lingering_time=2.0,
            auto_decompress=False,
            access_log=None,
            logger=_quiet,
        )
        self._connections = 0
        self._connecting: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._draining = False
        self._listening = False
        self._listen()

    async def drain(self) -> None:
        self._draining = True
        self._stop_listening()
        self._server.close_idle()
        # Who has connected is about to ask, and is answered; but not waited for any longer.
        patience = self._loop.call_later(_FRESH, self._server.close_fresh)
        try:
            await self._empty.wait()
        finally:
            patience.cancel()

    async def close(self) -> None:
        self._draining = True
        self._stop_listening()
        while not self._empty.is_set():
            self._server.abort()
            # Connections that were being set up are there a moment later.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE):
                    await self._empty.wait()

    def _listen(self) -> None:
        if not self._listening and not self._draining and self._connections < self._doors.max_connections:
            self._listening = True
            self._loop.add_reader(self._sock, self._accept)

    def _pause(self) -> None:
        if self._listening:
            self._listening = False
            self._loop.remove_reader(self._sock)

    def _stop_listening(self) -> None:
        """The sandbox's supervisor has a descriptor of its own: the port stays open, and connections wait."""
        self._pause()
        self._sock.close()

    def _accept(self) -> None:
        # Not by an awaited `sock_accept`: cancelled at the wrong moment, it would lose a connection.
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            _log.error("cannot accept a sandbox's connection", error=str(error))
            self._pause()
            if error.errno in _TRANSIENT:
                self._loop.call_later(_PAUSE, self._listen)
            return
        self._connections += 1
        self._empty.clear()
        if self._connections >= self._doors.max_connections:
            self._pause()
        task = self._loop.create_task(self._connect(sock))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, sock: socket.socket) -> None:
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(self._server, sock)
        except OSError as error:
            _log.debug("a connection was gone before it was served", error=str(error))
            sock.close()
            self._gone()

    def _gone(self) -> None:
        self._connections -= 1
        if not self._connections:
            self._empty.set()
        self._listen()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        exchange = HttpExchange(request, self._doors)
        self._server.busy(request)
        try:
            await self._handler(exchange)
        finally:
            self._server.idle(request)
            if self._draining:
                # No further request on this connection.
                request.protocol.close()
        return exchange.response()


class _Server(web.Server):
    """aiohttp's, which knows what its connections do: fresh ones have not asked yet, the others ask or are idle."""

    def __init__(self, handler: Any, gone: Callable[[], None], **options: Any) -> None:
        super().__init__(handler, handler_cancellation=True, **options)
        self._gone = gone
        self._open: dict[RequestHandler, asyncio.Transport] = {}
        self._fresh: set[RequestHandler] = set()
        self._busy: set[RequestHandler] = set()

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        self._open[handler] = transport
        self._fresh.add(handler)
        super().connection_made(handler, transport)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        if self._open.pop(handler, None) is not None:
            self._gone()
        self._fresh.discard(handler)
        super().connection_lost(handler, exc)

    def busy(self, request: web.BaseRequest) -> None:
        self._fresh.discard(request.protocol)
        self._busy.add(request.protocol)

    def idle(self, request: web.BaseRequest) -> None:
        self._busy.discard(request.protocol)

    def close_idle(self) -> None:
        """Close connections that have asked, and ask nothing now."""
        for handler, transport in list(self._open.items()):
            if handler not in self._busy and handler not in self._fresh:
                transport.close()

    def close_fresh(self) -> None:
        """Close connections that never asked."""
        for handler in list(self._fresh):
            self._open[handler].close()

    def abort(self) -> None:
        """Break all connections, whatever is still to be sent."""
        for transport in list(self._open.values()):
            transport.abort()


class HttpExchange:
    """One request and its answer; an `Exchange`."""

    def __init__(self, request: web.BaseRequest, doors: HttpDoors) -> None:
        self.method = request.method
        self.target = request.raw_path
        self.headers: Sequence[tuple[str, str]] = list(request.headers.items())
        self._body = HttpBody(request, doors) if request.body_exists else None
        self.body: Body | None = self._body
        self.begun = False
        self._request = request
        self._response: web.StreamResponse | None = None

    async def begin(self, status: int, reason: str, headers: Sequence[tuple[str, str]], length: int | None) -> None:
        self.begun = True
        response = web.StreamResponse(status=status, reason=reason or None)
        # Not repeated: what it is made of is nobody's business inside.
        response.headers["Server"] = "cloudclaw-gateway"
        for name, value in headers:
            response.headers.add(name, value)
        response.content_length = length
        self._response = response
        await response.prepare(self._request)

    async def write(self, piece: bytes) -> None:
        assert self._response is not None
        await self._response.write(piece)

    async def end(self) -> None:
        assert self._response is not None
        await self._response.write_eof()

    async def refuse(self, refusal: Refusal, kind: Kind) -> None:
        self.begun = True
        response = web.Response(status=refusal.status, body=refusal.body(kind))
        response.headers["Server"] = "cloudclaw-gateway"
        for name, value in refusal.headers():
            response.headers[name] = value
        if self._body is not None and not self._body.whole:
            # Its body was not read to the end, so nothing that follows would be read as a request.
            response.force_close()
        self._response = response
        await response.prepare(self._request)
        await response.write_eof()

    def abort(self) -> None:
        transport = self._request.transport
        if isinstance(transport, asyncio.Transport):
            transport.abort()

    def response(self) -> web.StreamResponse:
        """What was sent."""
        if self._response is None:
            raise ConnectionResetError("the request was never answered")
        return self._response


class HttpBody:
    """A request's body; a `Body`. Raises `Refusal` when it is too large or too slow, or breaks off."""

    def __init__(self, request: web.BaseRequest, doors: HttpDoors) -> None:
        self.length = request.content_length if "Transfer-Encoding" not in request.headers else None
        self.whole = False
        self._request = request
        self._doors = doors

    async def __aiter__(self) -> AsyncIterator[bytes]:
        most = self._doors.max_body
        if self.length is not None and self.length > most:
            raise _too_large(most)
        if self._request.headers.get("Expect", "").lower() == "100-continue":
            transport = self._request.transport
            if transport is not None:
                transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        size = 0
        content = self._request.content
        while True:
            try:
                async with asyncio.timeout(self._doors.body_timeout):
                    piece = await content.readany()
            except TimeoutError:
                raise Refusal(408, Mark.TOO_SLOW, "the request's body does not arrive") from None
            if not piece:
                break
            size += len(piece)
            if size > most:
                raise _too_large(most)
            yield piece
        self.whole = True


def _too_large(most: int) -> Refusal:
    return Refusal(413, Mark.TOO_LARGE, f"the request's body is larger than {most} bytes")
