"""One slot: the connection to its supervisor, its groups and its tree."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import signal
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import structlog

from cloudclaw.errors import InvalidArgumentError, PreconditionError, UnavailableError
from cloudclaw_pool_manager.backends.attach import MountedTrees
from cloudclaw_pool_manager.backends.cgroups import SlotGroups
from cloudclaw_pool_manager.backends.channel import Channel
from cloudclaw_pool_manager.backends.config import BackendConfig
from cloudclaw_pool_manager.backends.layout import SlotFiles
from cloudclaw_pool_manager.backends.maps import shared_maps
from cloudclaw_pool_manager.backends.spool import SpoolReader
from cloudclaw_pool_manager.domain.attempt import AttemptId, Exit, KillReason, Launch, Limits, LogFrame, Usage
from cloudclaw_pool_manager.ports.backend import (
    Enforcement,
    FencedIncarnationError,
    SlotFailedError,
    SlotPhase,
    SlotStatus,
)

_log = structlog.get_logger()

_UID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_START_WAIT = 20.0
_FREEZE_WITHIN = 4.0
"""Seconds that a pause may take to begin: one process in a long uninterruptible wait must not stop all others for as
long, and is no fault of the slot."""
_RESUMES = 2
"""Version of the protocol from which on a supervisor knows `resume`."""


class BubblewrapSlot:
    """See `ports.backend.Slot`. Made by `BubblewrapPool` alone.

    Args:
        trees: mounts of this slot; None when the manager is not root and the supervisor binds the tree.
    """

    def __init__(
        self,
        config: BackendConfig,
        files: SlotFiles,
        groups: SlotGroups,
        trees: MountedTrees | None,
        uid: int,
    ):
        self._config = config
        self._files = files
        self._groups = groups
        self._trees = trees
        self._uid = uid
        self._channel = Channel(self._pushed, self._wake, config.call_timeout)
        self._status = SlotStatus(SlotPhase.IDLE)
        self._version = 0
        self._changed = asyncio.Event()
        self._starting = asyncio.Lock()
        self._reader: SpoolReader | None = None
        self._reading = asyncio.Lock()
        self._pid = 0
        self._version_spoken = 0
        self._pidfd = -1
        self._released = ""

    async def connect(self) -> None:
        """Say hello to the supervisor.

        Raises:
            SlotFailedError, FencedIncarnationError: as the port says.
        """
        greeting = await self._channel.connect(self._files.control, self._config.incarnation)
        self._pid = int(greeting["pid"])
        self._version_spoken = int(greeting["version"])
        try:
            self._pidfd = os.pidfd_open(self._pid)
        except OSError as error:
            raise SlotFailedError(f"the supervisor of {self.name} is gone: {error}") from error

    @property
    def name(self) -> str:
        return self._files.name

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def uid(self) -> int:
        return self._uid

    @property
    def uid_shared(self) -> bool:
        return self._trees is None

    @property
    def enforcement(self) -> Enforcement:
        return self._groups.enforcement

    async def start(self, attempt: AttemptId, launch: Launch, limits: Limits, tree: Path, deadline: float) -> None:
        if not _UID.fullmatch(attempt.uid):
            raise InvalidArgumentError("letters, digits, - and _ only", field="attempt.uid")
        _check_launch(launch)
        async with self._starting:
            held = self._status.attempt
            if held is not None and held.uid == attempt.uid:
                return
            if held is not None:
                raise SlotFailedError(f"{self.name} holds attempt {held.uid}")
            await self._channel.call("prepare", wait=_START_WAIT, tmp_bytes=limits.tmp_bytes)
            try:
                await asyncio.to_thread(self._ready_for, limits, tree)
            except OSError as error:
                raise SlotFailedError(f"the tree {tree} cannot be attached to {self.name}: {error}") from error
            try:
                await self._channel.call(
                    "start",
                    wait=_START_WAIT,
                    attempt=asdict(attempt),
                    argv=list(launch.argv),
                    env=dict(launch.env),
                    stdin=base64.b64encode(launch.stdin).decode(),
                    cwd=launch.cwd,
                    limits=asdict(limits),
                    tree=str(tree),
                    deadline=deadline,
                )
            except SlotFailedError:
                # The task may have started all the same. Then the tree is in use and must stay.
                await self._detach_unless_started(attempt.uid)
                raise

    async def set_deadline(self, uid: str, deadline: float) -> None:
        await self._channel.call("deadline", uid=uid, deadline=deadline)

    async def freeze(self, uid: str) -> None:
        if self._version_spoken < _RESUMES:
            raise PreconditionError(
                f"the supervisor of {self.name} is of an earlier release, which cannot be paused; recycle the slot",
                subject=self.name,
                reason="OLD_SUPERVISOR",
            )
        try:
            async with asyncio.timeout(_FREEZE_WITHIN):
                await self._channel.call("freeze", uid=uid)
        except TimeoutError as error:
            raise UnavailableError(
                f"the processes in {self.name} did not stand still within {_FREEZE_WITHIN:g} s", reason="NOT_FROZEN"
            ) from error

    async def mapped(self, uid: str) -> Collection[int]:
        try:
            return await asyncio.to_thread(lambda: shared_maps(self._pid, self._groups.inside()))
        except OSError as error:
            raise SlotFailedError(f"the processes in {self.name} cannot be looked at: {error}") from error

    async def resume(self, uid: str, deadline: float) -> bool:
        if self._version_spoken < _RESUMES:
            return True  # it was never paused
        return bool(await self._channel.call("resume", uid=uid, deadline=deadline))

    async def thaw(self, uid: str, deadline: float) -> None:
        await self._channel.call("thaw", uid=uid, deadline=deadline)

    async def stop(self, uid: str, reason: KillReason, grace: float) -> Exit:
        ended = await self._channel.call("stop", wait=max(grace, 0.0), uid=uid, reason=reason.value, grace=grace)
        return _exit(ended)

    async def status(self) -> SlotStatus:
        await self._channel.call("status")
        return self._status

    async def updates(self) -> AsyncIterator[SlotStatus]:
        await self.status()
        seen = self._version
        yield self._status
        while True:
            # What was pushed before the connection was lost is still told.
            if self._version != seen:
                seen = self._version
                yield self._status
                continue
            if self._channel.failure is not None:
                raise self._channel.failure
            self._changed.clear()
            await self._changed.wait()
            self._changed.set()  # other iterators wait for the same event

    async def read_log(self, uid: str, offset: int, max_bytes: int) -> Sequence[LogFrame]:
        attempt = self._status.attempt
        if attempt is None or attempt.uid != uid:
            attempt = (await self.status()).attempt
        if attempt is None or attempt.uid != uid:
            raise SlotFailedError(f"{self.name} does not hold attempt {uid}")
        if self._channel.failure is not None:
            raise self._channel.failure
        async with self._reading:
            if self._reader is None or self._reader.uid != uid:
                self._reader = SpoolReader(self._files.control, uid)
            return await asyncio.to_thread(self._reader.read, offset, max_bytes)

    async def forget_log(self, uid: str, upto: int) -> None:
        await self._channel.call("forget", uid=uid, upto=upto)

    async def usage(self, uid: str) -> Usage:
        watched = await self._channel.call("usage", uid=uid)
        try:
            used = await asyncio.to_thread(self._groups.usage)
        except OSError as error:
            raise SlotFailedError(f"the groups of {self.name} cannot be read: {error}") from error
        return replace(used, disk_bytes=int(watched["disk_bytes"]))

    async def release(self, uid: str) -> None:
        async with self._starting:
            status = await self.status()
            if status.attempt is None and self._released == uid:
                return
            if status.attempt is None or status.attempt.uid != uid or status.exit is None:
                raise SlotFailedError(f"{self.name} holds no ended attempt {uid}")
            try:
                await asyncio.to_thread(self._clear)
            except OSError as error:
                raise SlotFailedError(f"{self.name} cannot be cleared of {uid}: {error}") from error
            await self._channel.call("release", uid=uid)
            self._released = uid
            self._reader = None

    async def close(self) -> None:
        self._channel.close()
        if self._trees is not None:
            self._trees.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    async def kill(self) -> None:
        """Kill the supervisor, and with it what it runs; returns when it is gone."""
        if self._pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        loop.add_reader(self._pidfd, gone.set)
        try:
            async with asyncio.timeout(self._config.call_timeout):
                await gone.wait()
        except TimeoutError as error:
            raise SlotFailedError(f"the supervisor of {self.name} does not die") from error
        finally:
            loop.remove_reader(self._pidfd)

    def _ready_for(self, limits: Limits, tree: Path) -> None:
        self._groups.apply(limits)
        if self._trees is not None:
            self._trees.attach(tree)

    def _clear(self) -> None:
        if self._trees is not None:
            self._trees.detach()
        self._groups.reset()

    async def _detach_unless_started(self, uid: str) -> None:
        try:
            status = await self.status()
        except (SlotFailedError, FencedIncarnationError):
            return  # whoever destroys or adopts the slot sees to its mounts
        if self._trees is not None and (status.attempt is None or status.attempt.uid != uid):
            await asyncio.to_thread(self._trees.detach)

    def _pushed(self, data: dict[str, Any]) -> None:
        try:
            self._status = _parse_status(data)
        except (KeyError, TypeError, ValueError) as error:
            _log.warning("slot.bad_status", slot=self.name, error=str(error))
            return
        self._wake()

    def _wake(self) -> None:
        self._version += 1
        self._changed.set()


def _check_launch(launch: Launch) -> None:
    if not launch.argv:
        raise InvalidArgumentError("at least the program", field="argv")
    for name in launch.env:
        if not _NAME.fullmatch(name):
            raise InvalidArgumentError(f"{name!r} is no name of a variable", field="env")
    if any("\0" in text for text in (*launch.argv, *launch.env.values(), launch.cwd)):
        raise InvalidArgumentError("no NUL bytes in arguments, variables and the directory", field="argv")
    if not launch.cwd.startswith("/"):
        raise InvalidArgumentError("an absolute path", field="cwd")


def _exit(data: dict[str, Any]) -> Exit:
    return Exit(**{**data, "killed": KillReason(data["killed"])})


def _parse_status(data: dict[str, Any]) -> SlotStatus:
    attempt, ended = data.get("attempt"), data.get("exit")
    return SlotStatus(
        phase=SlotPhase(data["phase"]),
        attempt=AttemptId(**attempt) if attempt else None,
        log_end=int(data.get("log_end", 0)),
        last_output=float(data.get("last_output", 0.0)),
        exit=_exit(ended) if ended else None,
        sandbox_ready=bool(data.get("sandbox_ready", False)),
        paused=bool(data.get("paused", False)),
    )
