"""`ModelGateway` over the gateway's control socket."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.errors import CloudClawError, FencedError, InvalidArgumentError, UnavailableError
from cloudclaw.linesocket import LineSocket, LineSocketError
from cloudclaw_pool_manager.ports.gateway import (
    Egress,
    GatewayConnected,
    GatewayEvent,
    GatewayLimit,
    GatewayLost,
    GatewayUse,
    LimitKind,
    ModelUse,
)

_log = structlog.get_logger()

VERSION: Final = 1
RETRY_PAUSE: Final = 0.2
"""Seconds between two attempts to connect: a gateway that is being upgraded is away for about a second."""
_CREDENTIALS: Final = struct.Struct("3i")


class UnixModelGateway:
    """The gateway behind the Unix socket `path`.

    Args:
        incarnation: says that of this manager, at each connection; a gateway obeys the highest.
        uid: whose the gateway may be, beside root and this process's own user.
        patience: seconds that a call waits for a connection and its answer.
    """

    def __init__(
        self,
        path: Path,
        incarnation: Callable[[], int],
        clock: Clock,
        *,
        uid: int | None = None,
        patience: float = 5.0,
    ) -> None:
        self._path = path
        self._incarnation = incarnation
        self._clock = clock
        self._uids = {0, os.geteuid()} | ({uid} if uid is not None else set())
        self._patience = patience
        self._connection: _Connection | None = None
        self._connected = asyncio.Event()
        self._fenced = False
        self._closed = False

    async def events(self) -> AsyncIterator[GatewayEvent]:
        told = False
        while not self._closed:
            try:
                connection = await _Connection.open(self._path, self._incarnation(), self._uids, self._patience)
            except FencedError:
                self._fence()
                raise
            except UnavailableError as error:
                if not told:
                    _log.warning("no gateway; trying again", socket=str(self._path), error=error.message)
                    told = True
                await self._clock.sleep(RETRY_PAUSE)
                continue
            told = False
            try:
                self._connection = connection
                self._connected.set()
                yield GatewayConnected(connection.attempts)
                while (event := await connection.pushed.get()) is not None:
                    yield event
            finally:
                self._connection = None
                self._connected.clear()
                await connection.close()
            if connection.fenced:
                self._fence()
                raise FencedError("the gateway obeys a newer pool-manager of this node")
            if not self._closed:
                yield GatewayLost()

    async def attach(self, egress: Egress, listener: int) -> None:
        await self._call(
            "attach",
            (listener,),
            uid=egress.uid,
            tenant=egress.tenant,
            task=egress.task,
            attempt=egress.attempt,
            keys=dict(egress.keys),
            limits=asdict(egress.limits),
            used=asdict(egress.used),
        )

    async def detach(self, uid: str) -> ModelUse:
        return _use(await self._call("detach", uid=uid))

    async def use(self, uid: str) -> ModelUse:
        return _use(await self._call("use", uid=uid))

    async def sync(self, uids: Collection[str]) -> None:
        await self._call("sync", uids=sorted(uids))

    async def close(self) -> None:
        self._closed = True
        self._connected.set()
        if self._connection is not None:
            await self._connection.close()

    def _fence(self) -> None:
        self._fenced = True
        self._connected.set()

    async def _call(self, op: str, descriptors: Sequence[int] = (), **fields: Any) -> Mapping[str, Any]:
        # A descriptor that waits here for a connection must not become another file's meanwhile.
        owned = [os.dup(descriptor) for descriptor in descriptors]
        try:
            async with asyncio.timeout(self._patience):
                await self._connected.wait()
                if self._fenced:
                    raise FencedError("the gateway obeys a newer pool-manager of this node")
                if self._connection is None:
                    raise UnavailableError("the connection to the gateway is closed")
                return await self._connection.call(op, owned, **fields)
        except TimeoutError:
            raise UnavailableError(f"the gateway at {self._path} does not answer") from None
        finally:
            for descriptor in owned:
                os.close(descriptor)


class _Connection:
    """One connection, after its hello."""

    def __init__(self, lines: LineSocket) -> None:
        self._lines = lines
        self._waiting: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._number = 0
        self._reader = asyncio.create_task(self._read(), name="gateway")
        self.attempts: frozenset[str] = frozenset()
        self.pushed: asyncio.Queue[GatewayEvent | None] = asyncio.Queue()
        """What the gateway tells, None at the end."""
        self.fenced = False

    @classmethod
    async def open(cls, path: Path, incarnation: int, uids: Collection[int], patience: float) -> _Connection:
        """Connect and say hello. Raises `UnavailableError` and `FencedError`."""
        connection = None
        try:
            async with asyncio.timeout(patience):
                connection = cls(LineSocket(await _connect(path, uids)))
                greeting = await connection.call("hello", incarnation=incarnation)
            if greeting.get("version") != VERSION:
                raise UnavailableError(f"the gateway speaks version {greeting.get('version')} of its protocol")
            connection.attempts = frozenset(greeting["attempts"])
            return connection
        except (OSError, KeyError, TypeError, TimeoutError) as error:
            await _close(connection)
            raise UnavailableError(f"no gateway at {path}: {error!r}", reason="NO_GATEWAY") from error
        except BaseException:
            await _close(connection)
            raise

    async def call(self, op: str, descriptors: Sequence[int] = (), **fields: Any) -> Mapping[str, Any]:
        """Send a request and await its answer."""
        if self._reader.done():
            raise self._gone()
        self._number += 1
        number = self._number
        answer: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            await self._lines.send({"id": number, "op": op, **fields}, descriptors)
            return await answer
        except OSError as error:
            # Why it hung up may still be on its way.
            await asyncio.wait([self._reader])
            raise self._gone() from error
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        """Disconnect, and end `pushed`."""
        self._lines.close()
        await asyncio.wait([self._reader])

    async def _read(self) -> None:
        try:
            while (message := await self._lines.receive()) is not None:
                message.close()
                self._receive(message.fields)
        except (OSError, LineSocketError, KeyError, TypeError, ValueError) as error:
            _log.warning("connection to the gateway broke", error=repr(error))
        finally:
            self._lines.close()
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(self._gone())
            self.pushed.put_nowait(None)

    def _receive(self, message: Mapping[str, Any]) -> None:
        if "use" in message:
            self.pushed.put_nowait(GatewayUse(message["use"]["uid"], _use(message["use"])))
        elif "limit" in message:
            limit = message["limit"]
            self.pushed.put_nowait(GatewayLimit(limit["uid"], LimitKind(limit["kind"]), limit["message"]))
        elif "fenced" in message:
            self.fenced = True
        elif (answer := self._waiting.get(message.get("id", 0))) is not None and not answer.done():
            if "error" in message:
                self.fenced = self.fenced or message["error"] == "fenced"
                answer.set_exception(_error(message["error"], str(message.get("message", ""))))
            else:
                answer.set_result(message["ok"])

    def _gone(self) -> CloudClawError:
        if self.fenced:
            return FencedError("the gateway obeys a newer pool-manager of this node")
        return UnavailableError("the connection to the gateway broke")


async def _close(connection: _Connection | None) -> None:
    if connection is not None:
        await connection.close()


async def _connect(path: Path, uids: Collection[int]) -> socket.socket:
    """Connect, and see that it is the socket of one of `uids`: keys go through it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # The directory is reached by descriptor: a socket's path is limited to 107 bytes.
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            await asyncio.get_running_loop().sock_connect(sock, f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
        _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid not in uids:
            raise PermissionError(f"it is served by uid {uid}; `gateway_uid` lets that be")
    except BaseException:
        sock.close()
        raise
    return sock


def _use(fields: Mapping[str, Any]) -> ModelUse:
    return ModelUse(**{name: fields[name] for name in ModelUse.__slots__})


def _error(kind: str, message: str) -> CloudClawError:
    if kind == "fenced":
        return FencedError(message)
    if kind == "invalid":
        return InvalidArgumentError(message, field="egress")
    return UnavailableError(f"the gateway failed: {message}")
