"""The manager's end of a supervisor's socket."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloudclaw_pool_manager.ports.backend import FencedIncarnationError, SlotFailedError
from cloudclaw_supervisor import protocol

_PEERCRED = struct.Struct("3i")


class SupervisorDeadError(SlotFailedError):
    """The supervisor ended for certain, so what it left may be killed without asking the lock."""


class RefusedError(Exception):
    """The supervisor is well and refuses for a reason that the caller knows.

    Attributes:
        kind: one of `protocol.REFUSALS`.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class Channel(asyncio.Protocol):
    """Requests and answers over one connection, and statuses as they are pushed.

    Args:
        on_status: called with every pushed status.
        on_lost: called once when the connection is gone; `failure` says why.
        timeout: seconds that an answer may take.
    """

    def __init__(self, on_status: Callable[[dict[str, Any]], None], on_lost: Callable[[], None], timeout: float):
        self._on_status = on_status
        self._on_lost = on_lost
        self._timeout = timeout
        self._lines = protocol.Lines()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._next = 0
        self._transport: asyncio.Transport | None = None
        self.failure: SlotFailedError | FencedIncarnationError | None = None
        """Why no more calls are possible."""
        self.peer = 0
        """Host process id of who listens, as the kernel says."""

    async def connect(self, control: Path, incarnation: int) -> dict[str, Any]:
        """Connect to the supervisor in `control` and say hello; returns its greeting.

        Raises:
            SupervisorDeadError: there is a socket and nobody behind it.
            SlotFailedError: nobody listens or answers.
            FencedIncarnationError: a newer manager is connected.
        """
        # The directory is reached by descriptor: a socket's path is limited to 107 bytes.
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            directory = os.open(control, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                sock.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(sock, f"/proc/self/fd/{directory}/{protocol.SOCKET}")
            finally:
                os.close(directory)
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
            self.peer, _, _ = _PEERCRED.unpack(credentials)
            await loop.create_unix_connection(lambda: self, sock=sock)
        except ConnectionRefusedError as error:
            sock.close()
            raise SupervisorDeadError(f"the supervisor in {control} is dead") from error
        except OSError as error:
            sock.close()
            raise SlotFailedError(f"no supervisor listens in {control}: {error}") from error
        greeting: dict[str, Any] = await self.call("hello", incarnation=incarnation)
        return greeting

    async def call(self, op: str, *, wait: float = 0.0, **fields: Any) -> Any:
        """Send a request and return what it was answered with.

        Args:
            wait: seconds that the operation itself may take, beyond the answer's.

        Raises:
            SlotFailedError, FencedIncarnationError: as the port says.
            RefusedError: only for operations that know refusals.
        """
        if self.failure is not None:
            raise self.failure
        assert self._transport is not None
        self._next += 1
        number = self._next
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._transport.write(protocol.encode({"id": number, "op": op, **fields}))
            async with asyncio.timeout(self._timeout + wait):
                return await answer
        except TimeoutError as error:
            raise SlotFailedError(f"the supervisor does not answer {op!r}") from error
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        """Disconnect; the supervisor goes on."""
        self.break_off(SlotFailedError("disconnected"))

    def break_off(self, failure: SlotFailedError) -> None:
        """Disconnect because of `failure`."""
        self._fail(failure)
        if self._transport is not None:
            self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            messages = self._lines.feed(data)
        except ValueError as error:
            self._fail(SlotFailedError(f"the supervisor sent nonsense: {error}"))
            assert self._transport is not None
            self._transport.abort()
            return
        for message in messages:
            self._receive(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(SlotFailedError(f"the supervisor is gone: {exc or 'connection closed'}"))

    def _receive(self, message: dict[str, Any]) -> None:
        if "status" in message:  # alone or beside an answer: in the order in which it was sent
            self._on_status(message["status"])
        if "fenced" in message:
            self._fail(FencedIncarnationError("a newer manager has taken over this slot"))
        elif (answer := self._waiting.get(message.get("id", 0))) is not None and not answer.done():
            if "error" not in message:
                answer.set_result(message.get("ok"))
            elif message["error"] == protocol.FENCED:
                answer.set_exception(FencedIncarnationError(message.get("message", "")))
            elif message["error"] in protocol.REFUSALS:
                answer.set_exception(RefusedError(message["error"], message.get("message", "")))
            else:
                answer.set_exception(SlotFailedError(message.get("message", "")))

    def _fail(self, failure: SlotFailedError | FencedIncarnationError) -> None:
        if self.failure is not None:
            return
        self.failure = failure
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(failure)
        self._on_lost()
