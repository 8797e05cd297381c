"""A network namespace of its own, without a process in it: what the tests make sockets in, as sandboxes do."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from tests.support.require import require_root

T = TypeVar("T")

PORT: Final = 8787
_CLONE_NEWNET: Final = 0x40000000
_SIOCSIFFLAGS: Final = 0x8914
_UP: Final = 0x41
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class NetworkNamespace:
    """One namespace, entered by one thread. Sockets made by it stay in it, whoever uses them."""

    def __init__(self) -> None:
        require_root()
        self._thread = ThreadPoolExecutor(1)
        self._do(_enter)

    def listener(self, backlog: int = 128) -> socket.socket:
        """A listening socket on the namespace's 127.0.0.1:8787."""
        sock = self.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", PORT))
        sock.listen(backlog)
        return sock

    def socket(self) -> socket.socket:
        """A TCP socket in the namespace."""
        return self._do(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to its 127.0.0.1:8787."""
        sock = self.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", PORT))
        return await asyncio.open_connection(sock=sock, limit=1 << 20)

    def close(self) -> None:
        """The namespace goes with its last socket."""
        self._thread.shutdown()

    def _do(self, work: Callable[[], T]) -> T:
        return self._thread.submit(work).result()


def _enter() -> None:
    if _LIBC.unshare(_CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _UP))
