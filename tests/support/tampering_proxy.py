"""A TCP proxy that does to the answers of an HTTP server what bad networks and bad disks do."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) /[^\r\n]* HTTP/1.1\r\n")


class TamperingProxy:
    """Forwards to `target` (host:port). `tamper` is asked about each answer's body, piece by piece.

    It gets (bytes of the body before this piece, the piece) and returns what to send instead, or None to
    close the connection there. `drop_answers` closes the connection in place of so many whole answers.
    While `flowing` is clear nothing passes: connections stay, and new ones hang.
    """

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.tamper: Callable[[int, bytes], bytes | None] | None = None
        self.drop_answers = 0
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.address = ""

    async def __aenter__(self) -> TamperingProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
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
            await self.flowing.wait()
        except asyncio.CancelledError:
            await _close(writer)
            raise
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            await _close(writer)
            return
        methods: list[bytes] = []
        requests = asyncio.create_task(_copy_requests(reader, upstream_writer, methods))
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._answer(upstream_reader, writer, methods):
                    pass
        finally:
            requests.cancel()
            await _close(writer)
            await _close(upstream_writer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, methods: list[bytes]) -> bool:
        """Forward one answer; False when the connection is to end."""
        head = await reader.readuntil(b"\r\n\r\n")
        await self.flowing.wait()
        if self.drop_answers:
            self.drop_answers -= 1
            return False
        writer.write(head)
        method = methods[-1]
        found = _LENGTH.search(head)
        length = int(found[1]) if found and method != b"HEAD" else 0
        # Listings and errors pass as they are: only objects say that they can be read in ranges.
        tamper = self.tamper if method == b"GET" and b"accept-ranges" in head.lower() else None
        done = 0
        while done < length:
            piece = await reader.read(min(65536, length - done))
            if not piece:
                return False
            sent = tamper(done, piece) if tamper else piece
            if sent is None:
                await writer.drain()
                return False
            writer.write(sent)
            await writer.drain()
            done += len(piece)
        return True


async def _copy_requests(source: asyncio.StreamReader, sink: asyncio.StreamWriter, methods: list[bytes]) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65536):
            if start := _REQUEST.match(data):
                methods.append(start[1])
            sink.write(data)
            await sink.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
