"""The control socket: JSON lines with descriptors, from the node's pool-manager.

| request | answer |
|---|---|
| `{"op": "hello", "incarnation": N}` | `{"ok": {"version": 1, "attempts": [uid…]}}` |
| `{"op": "attach", "uid", "tenant", "task", "attempt", "keys", "limits", "used"}` and one descriptor | `{"ok": {}}` |
| `{"op": "detach", "uid"}`, `{"op": "use", "uid"}` | `{"ok": use}` |
| `{"op": "sync", "uids": [uid…]}` | `{"ok": {"detached": [uid…]}}` |

Answers come in the order of the requests, and repeat the request's `id` when it has one. A refused request is answered
by `{"error": "invalid" | "fenced" | "failed", "message": text}`. Pushed without being asked: `{"use": {"uid", …}}`,
`{"limit": {"uid", "kind", "message"}}`, and `{"fenced": true}` before the connection is closed for a newer one.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from cloudclaw.errors import CloudClawError, FencedError, InvalidArgumentError, PreconditionError, UnavailableError
from cloudclaw.linesocket import LineSocket, LineSocketError, Message
from cloudclaw_gateway.app.attempts import Credentials
from cloudclaw_gateway.app.control import Control
from cloudclaw_gateway.domain.use import Limits, Use

_log = structlog.get_logger()

VERSION: Final = 1
_CREDENTIALS: Final = struct.Struct("3i")
_UNSENT: Final = 10_000
"""Messages that wait for a manager that does not read, before its connection is dropped."""


class _Attach(msgspec.Struct):
    uid: str
    tenant: str
    task: str
    attempt: int
    keys: dict[str, str] = {}
    limits: Limits = Limits()
    used: Use = Use()


class ControlServer:
    """Listens on the Unix socket `path`, for root and this process's own user alone."""

    def __init__(self, path: Path, control: Control) -> None:
        self._path = path
        self._control = control
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._sessions: dict[_Session, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Listen. Raises `PreconditionError` for an unsafe directory and `UnavailableError` when it cannot."""
        self._listener = _listen(self._path)
        self._accepting = asyncio.create_task(self._accept(self._listener))

    async def close(self) -> None:
        """Stop listening and close all connections, after what they are still to be told."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
        if self._listener is not None:
            self._listener.close()
        for session in list(self._sessions):
            session.finish()
        if self._sessions:
            await asyncio.wait(self._sessions.values(), timeout=2.0)
        for task in self._sessions.values():
            task.cancel()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                _log.error("cannot accept a manager", error=str(error))
                await asyncio.sleep(0.1)
                continue
            _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            if uid not in (0, os.geteuid()):
                _log.warning("refused a control connection", uid=uid)
                sock.close()
                continue
            session = _Session(LineSocket(sock), self._control)
            task = asyncio.create_task(session.run())
            self._sessions[session] = task
            task.add_done_callback(lambda _, session=session: self._sessions.pop(session, None))  # type: ignore[misc]


class _Session:
    """One connection; a `Manager`."""

    def __init__(self, lines: LineSocket, control: Control) -> None:
        self._lines = lines
        self._control = control
        self._outgoing: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    def push(self, message: dict[str, Any]) -> None:
        if self._outgoing.qsize() > _UNSENT:
            _log.error("the pool-manager does not read; dropping its connection")
            self._lines.close()
            return
        self._outgoing.put_nowait(message)

    def fence(self) -> None:
        self.push({"fenced": True})
        self.finish()

    def finish(self) -> None:
        """Close it after what was pushed."""
        self._outgoing.put_nowait(None)

    async def run(self) -> None:
        """Until it is closed by either end."""
        writing = asyncio.create_task(self._write())
        try:
            while (message := await self._lines.receive()) is not None:
                self._answer(message)
        except (LineSocketError, OSError) as error:
            _log.warning("control connection broke", error=str(error))
        finally:
            self._control.gone(self)
            writing.cancel()
            self._lines.close()

    async def _write(self) -> None:
        try:
            while (message := await self._outgoing.get()) is not None:
                await self._lines.send(message)
        except OSError as error:
            _log.debug("the pool-manager hung up", error=str(error))
        self._lines.close()

    def _answer(self, message: Message) -> None:
        fields = message.fields
        echo = {"id": fields["id"]} if "id" in fields else {}
        descriptors = list(message.descriptors)
        try:
            self.push({**echo, "ok": self._do(fields, descriptors)})
        except FencedError as error:
            self.push({**echo, "error": "fenced", "message": error.message})
            if fields.get("op") == "hello":
                self.finish()
        except (InvalidArgumentError, msgspec.ValidationError, KeyError, TypeError) as error:
            self.push({**echo, "error": "invalid", "message": str(error)})
        except (CloudClawError, OSError) as error:
            _log.error("control request failed", op=fields.get("op"), error=str(error))
            self.push({**echo, "error": "failed", "message": str(error)})
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _do(self, fields: Mapping[str, Any], descriptors: list[int]) -> dict[str, Any]:
        match fields.get("op"):
            case "hello":
                attempts = self._control.hello(self, msgspec.convert(fields["incarnation"], int))
                return {"version": VERSION, "attempts": attempts}
            case "attach":
                asked = msgspec.convert(fields, _Attach)
                if len(descriptors) != 1:
                    raise InvalidArgumentError("an attach comes with exactly one descriptor", field="listener")
                who = Credentials(asked.uid, asked.tenant, asked.task, asked.attempt, asked.keys)
                # From here on it is the attempt's.
                self._control.attach(self, who, asked.limits, asked.used, descriptors.pop())
                return {}
            case "detach":
                return asdict(self._control.detach(self, str(fields["uid"])))
            case "use":
                return asdict(self._control.use(self, str(fields["uid"])))
            case "sync":
                uids = set(msgspec.convert(fields["uids"], list[str]))
                return {"detached": self._control.sync(self, uids)}
            case other:
                raise InvalidArgumentError(f"no such operation: {other!r}", field="op")


def _listen(path: Path) -> socket.socket:
    """A listening socket at `path`, mode 0600, in place of what an earlier process left there."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise PreconditionError(f"{path.parent}: {error.strerror}", reason="BAD_SOCKET_DIRECTORY") from error
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        facts = os.fstat(directory)
        if facts.st_uid not in (0, os.geteuid()) or stat.S_IMODE(facts.st_mode) & 0o022:
            raise PreconditionError(
                f"{path.parent}: others may write there; the control socket needs a directory of its own, mode 0700",
                reason="BAD_SOCKET_DIRECTORY",
            )
        # By descriptor: a socket's path is limited to 107 bytes. Under another name first, so that nobody connects
        # before the mode is right, and nobody finds nothing.
        fresh = f".{path.name}.{os.getpid()}"
        place = f"/proc/self/fd/{directory}"
        if os.path.lexists(f"{place}/{fresh}"):
            os.unlink(f"{place}/{fresh}")
        sock.bind(f"{place}/{fresh}")
        os.chmod(f"{place}/{fresh}", 0o600)
        sock.listen(16)
        sock.setblocking(False)
        os.rename(f"{place}/{fresh}", f"{place}/{path.name}")
    except OSError as error:
        sock.close()
        raise UnavailableError(f"cannot listen on {path}: {error.strerror}", reason="ADDRESS_IN_USE") from error
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(directory)
    return sock
