"""JSON objects, one a line, with descriptors beside them, over a connected Unix stream socket.

Both ends of a gateway's control socket are made of this. A descriptor is sent with the first byte of its message, and
the kernel never joins a piece that carries descriptors with what follows it: so it belongs to the last message that
begins in the piece it came with, whatever came before.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

MAX_LINE: Final = 1 << 20
"""Bytes of one message at most."""
MAX_DESCRIPTORS: Final = 4
"""Descriptors of one message at most."""
_PIECE: Final = 64 << 10
_INT: Final = struct.calcsize("i")
_ANCILLARY: Final = socket.CMSG_SPACE(MAX_DESCRIPTORS * _INT)


class LineSocketError(Exception):
    """The other end sent what is no message; the connection is of no more use."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message, and the descriptors that came with it, which are the receiver's to close."""

    fields: Mapping[str, Any]
    descriptors: tuple[int, ...] = ()

    def close(self) -> None:
        """Close its descriptors."""
        for descriptor in self.descriptors:
            os.close(descriptor)


class LineSocket:
    """One end. `send` may be called by several tasks, `receive` by one at a time.

    Takes over `sock`, which becomes non-blocking.
    """

    def __init__(self, sock: socket.socket, *, limit: int = MAX_LINE) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._limit = limit
        self._sending = asyncio.Lock()
        self._whole: deque[Message] = deque()
        self._begun = b""
        self._begun_with: list[int] = []
        self._closed = False
        self._waiting: set[asyncio.Future[None]] = set()

    async def send(self, fields: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send one message; the descriptors stay the caller's. Raises `OSError` when the connection is gone.

        A send that is cancelled closes the connection.
        """
        data = memoryview(json.dumps(fields, separators=(",", ":")).encode() + b"\n")
        async with self._sending:
            try:
                await self._send(data, descriptors)
            except asyncio.CancelledError:
                # What follows half a message would be read as its end.
                self.close()
                raise

    async def receive(self) -> Message | None:
        """The next message, None when the other end closed. Raises `LineSocketError` and `OSError`."""
        while not self._whole:
            if self._closed:
                return None
            try:
                if not self._take():
                    return None
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await self._ready(loop.add_reader, loop.remove_reader)
        return self._whole.popleft()

    def close(self) -> None:
        """Close the connection, and descriptors that nobody received."""
        if self._closed:
            return
        self._closed = True
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._sock)
        loop.remove_writer(self._sock)
        self._sock.close()
        for waiting in self._waiting:
            _wake(waiting)
        for message in self._whole:
            message.close()
        self._whole.clear()
        for descriptor in self._begun_with:
            os.close(descriptor)
        self._begun_with.clear()

    async def _send(self, data: memoryview, descriptors: Sequence[int]) -> None:
        while data:
            if self._closed:
                raise BrokenPipeError("closed")
            try:
                sent = socket.send_fds(self._sock, [data], descriptors) if descriptors else self._sock.send(data)
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await self._ready(loop.add_writer, loop.remove_writer)
                continue
            data, descriptors = data[sent:], ()

    def _take(self) -> bool:
        """Read one piece; False at the end. Raises `BlockingIOError` when there is none yet."""
        # `socket.recv_fds` of some Python versions forgets its flags, and a child would inherit the descriptor.
        piece, ancillary, flags, _ = self._sock.recvmsg(_PIECE, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        *lines, begun = (self._begun + piece).split(b"\n")
        fresh = [
            descriptor
            for level, kind, data in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            for (descriptor,) in struct.iter_unpack("i", data[: len(data) - len(data) % _INT])
        ]
        if flags & socket.MSG_CTRUNC or len(begun) > self._limit or (fresh and not lines and self._begun):
            for descriptor in fresh:
                os.close(descriptor)
            raise LineSocketError("too long a message, or too many descriptors")
        for number, line in enumerate(lines):
            owned = self._begun_with if number == 0 else []
            if number == 0:
                self._begun_with = []
            if fresh and not begun and number == len(lines) - 1:
                owned, fresh = [*owned, *fresh], []
            self._whole.append(Message(_parse(line, owned, fresh), tuple(owned)))
        self._begun = begun
        self._begun_with += fresh
        return bool(piece)

    async def _ready(self, add: Callable[..., object], remove: Callable[..., object]) -> None:
        """Wait until the socket is ready, or closed."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(ready)
        add(self._sock, _wake, ready)
        try:
            await ready
        finally:
            self._waiting.discard(ready)
            if not self._closed:
                remove(self._sock)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _parse(line: bytes, *descriptors: list[int]) -> Mapping[str, Any]:
    try:
        fields = json.loads(line)
        if isinstance(fields, dict):
            return fields
    except (ValueError, RecursionError):
        pass
    for descriptor in (d for some in descriptors for d in some):
        os.close(descriptor)
    raise LineSocketError("a message is a JSON object")
