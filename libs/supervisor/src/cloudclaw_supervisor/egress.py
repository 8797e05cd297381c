"""Hands out duplicates of the listener of the attempt's sandbox, over a socket of its own.

One request a connection: a line `{"uid": …, "incarnation": n}` is answered by `{}` with the descriptor
(SCM_RIGHTS), or by `{"error": kind, "message": text}` without one. Where sandboxes are not built ahead, an answer
waits for the listener to be made.
"""

from __future__ import annotations

import os
import selectors
import socket

from cloudclaw_supervisor import protocol, server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cloudclaw_supervisor.loop import Loop

_REQUEST = 4096
_AT_ONCE = 8


class Egress:
    """Serves the socket.

    Args:
        loop: serves the connections.
        listener: bound in the control directory.
        lookup: the descriptor that a request is answered with, -1 for one that is still to be made; or it raises
            `RequestError`.
    """

    def __init__(self, loop: Loop, listener: socket.socket, lookup: Callable[[dict[str, Any]], int]):
        self._loop = loop
        self._listener = listener
        self._lookup = lookup
        self._connections: list[socket.socket] = []
        self._waiting: dict[socket.socket, dict[str, Any]] = {}
        listener.setblocking(False)
        loop.watch(listener.fileno(), selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        if not server.trusted(sock):
            sock.close()
            return
        if len(self._connections) >= _AT_ONCE:
            self._close(self._connections[0])  # whoever asks does so at once
        sock.setblocking(False)
        self._connections.append(sock)
        lines = protocol.Lines(_REQUEST)
        self._loop.watch(sock.fileno(), selectors.EVENT_READ, lambda: self._read(sock, lines))

    def _read(self, sock: socket.socket, lines: protocol.Lines) -> None:
        try:
            data = sock.recv(_REQUEST)
            requests = lines.feed(data)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self._close(sock)
            return
        if not data:
            self._close(sock)
        elif requests:
            self._answer(sock, requests[0])

    def look_again(self) -> None:
        """Answer who waits: a listener was made, or its sandbox ended."""
        for sock, request in list(self._waiting.items()):
            self._answer(sock, request)

    def _answer(self, sock: socket.socket, request: dict[str, Any]) -> None:
        try:
            try:
                fd = self._lookup(request)
                if fd < 0:
                    self._waiting[sock] = request
                    return
                socket.send_fds(sock, [protocol.encode({})], [fd])
            except server.RequestError as error:
                sock.send(protocol.encode({"error": error.kind, "message": str(error)}))
        except OSError:
            pass  # whoever asked is gone
        self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        self._connections.remove(sock)
        self._waiting.pop(sock, None)
        self._loop.unwatch(sock.fileno())
        sock.close()


def bound() -> socket.socket:
    """A listener under its name in the present directory."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(protocol.EGRESS_SOCKET)
    listener.listen(8)
    os.chmod(protocol.EGRESS_SOCKET, 0o600)
    return listener
