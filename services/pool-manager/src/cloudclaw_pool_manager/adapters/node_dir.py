"""`NodeState` in the node's directory, which one process at a time may own."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from cloudclaw.errors import PreconditionError
from cloudclaw_pool_manager.ports.state import Drain, Started

_log = structlog.get_logger()


class _Lease(msgspec.Struct):
    lease: int
    incarnation: int


class NodeDirectory:
    """Files below one directory: `lock`, `lease.json`, `term`, `draining`, `attempts/UID`, `logs/UID`,
    `transcripts/UID`; and `spare/…`, empty ones that become notes of attempts again. Where many files come and go, a
    file system takes ever longer to make the next: ext4 without a journal passes over all that were removed lately.

    Beside them live `trees/` (workspaces) and `slots/` (backends), which are others' business.
    """

    def __init__(self, path: Path):
        """Create the directory where needed, and lock it for as long as this process lives.

        Raises `PreconditionError(reason="NODE_DIR_LOCKED")` when another pool-manager has it.
        """
        self.path = path
        self._attempts = path / "attempts"
        self._logs = path / "logs"
        self._attempts.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(exist_ok=True)
        self._transcripts = path / "transcripts"
        self._transcripts.mkdir(exist_ok=True)
        self._spare = path / "spare"
        self._spare.mkdir(exist_ok=True)
        self._spares: list[Path] = []
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._lock, 32).decode(errors="replace").strip()
            os.close(self._lock)
            raise PreconditionError(
                f"another pool-manager (process {holder or 'unknown'}) owns {path}; stop it, or give this one a"
                " directory of its own",
                subject=str(path),
                reason="NODE_DIR_LOCKED",
            ) from error
        for left in self._spare.iterdir():
            left.unlink()
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Let another process have the directory."""
        os.close(self._lock)

    async def lease(self) -> int | None:
        found = await asyncio.to_thread(self._read_lease)
        return found.lease if found else None

    async def incarnation(self) -> int:
        found = await asyncio.to_thread(self._read_lease)
        return found.incarnation if found else 0

    async def remember_lease(self, lease: int, incarnation: int) -> None:
        data = msgspec.json.encode(_Lease(lease, incarnation))
        await asyncio.to_thread(_replace, self.path / "lease.json", data)

    async def term(self) -> int:
        return _number(await asyncio.to_thread(_read, self.path / "term"))

    async def remember_term(self, term: int) -> None:
        await asyncio.to_thread(_replace, self.path / "term", b"%d\n" % term)

    async def drain(self) -> Drain:
        said = await asyncio.to_thread(_read, self.path / "draining")
        if said is None:
            return Drain.NONE
        return Drain.HAND_OVER if said.strip() == Drain.HAND_OVER.encode() else Drain.FINISH

    async def remember_drain(self, drain: Drain) -> None:
        if drain is Drain.NONE:
            await asyncio.to_thread((self.path / "draining").unlink, missing_ok=True)
        else:
            await asyncio.to_thread(_replace, self.path / "draining", f"{drain}\n".encode())

    async def remember_attempt(self, started: Started) -> None:
        await asyncio.to_thread(self._remember, started.uid, msgspec.msgpack.encode(started))

    async def forget_attempt(self, uid: str) -> None:
        await asyncio.to_thread(self._forget, uid)

    async def remember_forgotten(self, uid: str, offset: int) -> None:
        await asyncio.to_thread(_replace, self._logs / uid, b"%d\n" % offset, durable=False)

    async def forgotten(self, uid: str) -> int:
        return _number(await asyncio.to_thread(_read, self._logs / uid))

    async def remember_transcript(self, uid: str, data: bytes) -> None:
        await asyncio.to_thread(_replace, self._transcripts / uid, data, durable=False)

    async def transcript(self, uid: str) -> bytes | None:
        return await asyncio.to_thread(_read, self._transcripts / uid)

    async def attempts(self) -> Sequence[Started]:
        return await asyncio.to_thread(self._read_attempts)

    def _remember(self, uid: str, note: bytes) -> None:
        # Without fsync: it must outlive this process, and after a crash of the machine its sandbox is gone. One that
        # was cut short was never acted upon.
        try:
            spare = self._spares.pop()
        except IndexError:
            _write(self._attempts / uid, note)
            return
        _write(spare, note)
        spare.rename(self._attempts / uid)

    def _forget(self, uid: str) -> None:
        # What is left by a crash in between is found by its note and forgotten then.
        (self._logs / uid).unlink(missing_ok=True)
        (self._transcripts / uid).unlink(missing_ok=True)
        spare = self._spare / uid
        try:
            (self._attempts / uid).rename(spare)
        except FileNotFoundError:
            return
        os.truncate(spare, 0)
        self._spares.append(spare)

    def _read_lease(self) -> _Lease | None:
        data = _read(self.path / "lease.json")
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=_Lease)
        except msgspec.DecodeError as error:
            _log.error("the remembered lease cannot be read; taking a new one", error=str(error))
            return None

    def _read_attempts(self) -> list[Started]:
        found = []
        for path in sorted(self._attempts.iterdir()):
            try:
                found.append(msgspec.msgpack.decode(path.read_bytes(), type=Started))
            except msgspec.DecodeError as error:
                _log.error("a remembered attempt cannot be read; dropping it", attempt=path.name, error=str(error))
                path.unlink()
        return found


def _number(text: bytes | None) -> int:
    return int(text) if text and text.strip().isdigit() else 0


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _replace(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file whole or not at all; when `durable`, even when the machine crashes."""
    new = path.with_name(path.name + ".new")
    _write(new, data, durable=durable)
    new.rename(path)
    if not durable:
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write(path: Path, data: bytes, *, durable: bool = False) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
