"""The supervisor's socket: one manager at a time, the one with the highest incarnation."""

from __future__ import annotations

import os
import selectors
import socket
import struct

from cloudclaw_supervisor import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cloudclaw_supervisor.loop import Loop

    Handler = Callable[["Connection", dict[str, Any]], None]

_PEERCRED = struct.Struct("3i")


class RequestError(Exception):
    """Answered to the manager as an error of `kind`."""

    def __init__(self, message: str, kind: str = protocol.FAILED):
        super().__init__(message)
        self.kind = kind


def trusted(sock: socket.socket) -> bool:
    """The peer is root's, or of the supervisor's own uid."""
    _, uid, _ = _PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return uid in (0, os.geteuid())


class Connection:
    """One connected manager. Writing never blocks the loop."""

    def __init__(self, loop: Loop, sock: socket.socket, handler: Handler, on_close: Callable[[Connection], None]):
        self._loop = loop
        self._sock = sock
        self._handler = handler
        self._on_close = on_close
        self._lines = protocol.Lines()
        self._out = bytearray()
        self.incarnation = -1
        """Of the manager behind it, once it said so."""
        self.closed = False
        sock.setblocking(False)
        loop.watch(sock.fileno(), selectors.EVENT_READ, self._read)

    def reply(self, request: dict[str, Any], result: Any = True, **more: Any) -> None:
        """Answer `request`, with `more` beside the result."""
        self.send({"id": request.get("id"), "ok": result, **more})

    def refuse(self, request: dict[str, Any], error: RequestError) -> None:
        """Answer `request` with an error."""
        self.send({"id": request.get("id"), "error": error.kind, "message": str(error)})

    def send(self, message: dict[str, Any]) -> None:
        """Queue one message; dropped when the manager is gone."""
        if not self.closed:
            self._out += protocol.encode(message)
            self._flush()

    def close(self) -> None:
        """Drop the manager."""
        if not self.closed:
            self.closed = True
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
            self._on_close(self)

    def _read(self) -> None:
        if self._out:
            self._flush()
        try:
            data = self._sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            messages = self._lines.feed(data)
        except ValueError:
            self.close()
            return
        for message in messages:
            if self.closed:
                return
            try:
                self._handler(self, message)
            except RequestError as error:
                self.refuse(message, error)

    def _flush(self) -> None:
        try:
            while self._out:
                del self._out[: self._sock.send(self._out)]
        except BlockingIOError:
            self._loop.watch(self._sock.fileno(), selectors.EVENT_READ | selectors.EVENT_WRITE, self._read)
            return
        except OSError:
            self.close()
            return
        self._loop.watch(self._sock.fileno(), selectors.EVENT_READ, self._read)


class Server:
    """Accepts managers on the socket in the present directory.

    Args:
        handler: called with every request but `hello`.
        greet: what an answer to `hello` holds.
    """

    def __init__(self, loop: Loop, listener: socket.socket, handler: Handler, greet: Callable[[], dict[str, Any]]):
        self._loop = loop
        self._listener = listener
        self._handler = handler
        self._greet = greet
        self._incarnation = -1
        self.manager: Connection | None = None
        """The manager that is obeyed."""
        listener.setblocking(False)
        loop.watch(listener.fileno(), selectors.EVENT_READ, self._accept)

    def obeys(self, incarnation: int) -> None:
        """Raise `RequestError` unless the manager that is obeyed has this incarnation."""
        if incarnation != self._incarnation:
            raise RequestError(f"incarnation {self._incarnation} is obeyed", protocol.FENCED)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        if not trusted(sock):
            sock.close()
            return
        Connection(self._loop, sock, self._handle, self._gone)

    def _handle(self, connection: Connection, request: dict[str, Any]) -> None:
        if request.get("op") == "hello":
            self._hello(connection, request)
        elif connection is not self.manager:
            raise RequestError("a manager says hello first, and a newer one is obeyed", protocol.FENCED)
        else:
            self._handler(connection, request)

    def _hello(self, connection: Connection, request: dict[str, Any]) -> None:
        incarnation = int(request["incarnation"])
        if incarnation < self._incarnation:
            raise RequestError(f"incarnation {self._incarnation} has taken over", protocol.FENCED)
        older, self.manager = self.manager, connection
        self._incarnation = connection.incarnation = incarnation
        if older is not None and older is not connection:
            older.send({"fenced": True})
            older.close()
        connection.send({"id": request.get("id"), **self._greet()})

    def _gone(self, connection: Connection) -> None:
        if connection is self.manager:
            self.manager = None
