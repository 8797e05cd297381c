"""One slot: the connection to its supervisor, its groups and its tree."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import structlog

from cloudclaw.errors import PreconditionError, UnavailableError
from cloudclaw_pool_manager.backends import egress, messages
from cloudclaw_pool_manager.backends.attach import MountedTrees
from cloudclaw_pool_manager.backends.cgroups import SlotGroups
from cloudclaw_pool_manager.backends.channel import Channel, RefusedError
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
from cloudclaw_supervisor import protocol

_log = structlog.get_logger()

_START_WAIT = 20.0
_FREEZE_WITHIN = 4.0
"""Seconds that a pause may take to begin: one process in a long uninterruptible wait must not stop all others for as
long, and is no fault of the slot."""
_RESUMES = 2
"""Version of the protocol from which on a supervisor knows `resume`."""
_INPUTS = 3
"""The same for `input`, `egress` and `warm`, and what belongs to them in `start`."""


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
        self._pid = self._supervisor(greeting)
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
        messages.check_uid(attempt.uid)
        messages.check_launch(launch)
        if launch.keep_stdin or launch.note or launch.warm_key:
            self._needs(_INPUTS, "cannot be started so")
        async with self._starting:
            held = self._status.attempt
            if held is not None and held.uid == attempt.uid:
                return
            if held is not None:
                raise SlotFailedError(f"{self.name} holds attempt {held.uid}")
            await self._prepare(limits, launch.warm_key)
            try:
                await asyncio.to_thread(self._ready_for, limits, tree)
            except OSError as error:
                raise SlotFailedError(f"the tree {tree} cannot be attached to {self.name}: {error}") from error
            try:
                await self._channel.call(
                    "start",
                    wait=_START_WAIT,
                    attempt=asdict(attempt),
                    **messages.launch_fields(launch, limits),
                    keep_stdin=launch.keep_stdin,
                    note=messages.encode(launch.note),
                    warm_key=launch.warm_key,
                    tree=str(tree),
                    deadline=deadline,
                )
            except RefusedError as error:  # the warm program ended between the two calls
                await self._detach_unless_started(attempt.uid)
                raise self._not_warm(error) from error
            except SlotFailedError:
                # The task may have started all the same. Then the tree is in use and must stay.
                await self._detach_unless_started(attempt.uid)
                raise

    async def input(
        self, uid: str, message_id: str, *, note: bytes = b"", data: bytes = b"", close: bool = False
    ) -> bool:
        messages.check_input(message_id, note, data)
        self._needs(_INPUTS, "takes no input")
        try:
            answer = await self._channel.call(
                "input",
                uid=uid,
                message_id=message_id,
                note=messages.encode(note),
                data=messages.encode(data),
                close=close,
            )
        except RefusedError as error:
            if error.kind == protocol.INPUT_FULL:
                raise UnavailableError(f"{self.name}: {error}", reason="INPUT_FULL") from error
            raise PreconditionError(f"{self.name}: {error}", subject=uid, reason="INPUT_CLOSED") from error
        return bool(answer)

    async def egress(self, uid: str) -> int:
        self._needs(_INPUTS, "has no way out")
        incarnation, timeout = self._config.incarnation, self._config.call_timeout
        return await asyncio.to_thread(egress.fetch, self._files.control, uid, incarnation, timeout)

    async def warm(self, launch: Launch, limits: Limits, ready: str, *, within: float = 60.0) -> None:
        messages.check_launch(launch)
        messages.check_warm(launch.warm_key, ready)
        if self._trees is None:
            raise PreconditionError(
                f"{self.name} keeps no program warm: trees arrive later only where the manager is root",
                subject=self.name,
                reason="NO_WARM",
            )
        self._needs(_INPUTS, "keeps no program warm")
        async with self._starting:
            if (held := self._status.attempt) is not None:
                raise SlotFailedError(f"{self.name} holds attempt {held.uid}")
            now = self._status
            if now.warm_key == launch.warm_key and now.warm in (protocol.WARMING, protocol.READY):
                return
            await self._prepare(limits, "")
            try:
                await asyncio.to_thread(self._groups.apply, limits)
            except OSError as error:
                raise SlotFailedError(f"the groups of {self.name} take no limits: {error}") from error
            await self._channel.call(
                "warm",
                wait=_START_WAIT,
                warm_key=launch.warm_key,
                **messages.launch_fields(launch, limits),
                ready=ready,
                within=within,
            )

    async def set_deadline(self, uid: str, deadline: float) -> None:
        await self._channel.call("deadline", uid=uid, deadline=deadline)

    async def freeze(self, uid: str) -> None:
        self._needs(_RESUMES, "cannot be paused")
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
        return messages.parse_exit(ended)

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
        watched = await self._channel.call("usage", uid=uid) if uid else {"disk_bytes": 0}
        try:
            used = await asyncio.to_thread(self._groups.usage)
        except OSError as error:
            raise SlotFailedError(f"the groups of {self.name} cannot be read: {error}") from error
        return replace(used, disk_bytes=int(watched["disk_bytes"]))

    async def release(self, uid: str) -> None:
        async with self._starting:
            status = self._status
            if status.exit is None or status.attempt is None or status.attempt.uid != uid:
                status = await self.status()
            elif self._channel.failure is not None:
                raise self._channel.failure  # otherwise an end that was told does not change any more
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
        if not self._send(signal.SIGKILL):
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

    async def _prepare(self, limits: Limits, warm_key: str) -> None:
        """Wait until a sandbox, or the warm program of that key, is there for a task with these limits."""
        try:
            await self._channel.call(
                "prepare", wait=_START_WAIT, tmp_bytes=limits.tmp_bytes, limits=asdict(limits), warm_key=warm_key
            )
        except RefusedError as error:
            raise self._not_warm(error) from error

    def _not_warm(self, error: RefusedError) -> PreconditionError:
        return PreconditionError(f"{self.name}: {error}", subject=self.name, reason="NOT_WARM")

    def _needs(self, version: int, what: str) -> None:
        if self._version_spoken < version:
            raise PreconditionError(
                f"the supervisor of {self.name} is of an earlier release, which {what}; recycle the slot",
                subject=self.name,
                reason="OLD_SUPERVISOR",
            )

    def _send(self, number: int) -> bool:
        """Signal the supervisor; False when there is none to be signalled."""
        if self._pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return False
        return True

    def _supervisor(self, greeting: dict[str, Any]) -> int:
        """Host process id of the supervisor that greets so."""
        return int(greeting["pid"])

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
            self._status = messages.parse_status(data, self._status)
        except (KeyError, TypeError, ValueError) as error:
            _log.warning("slot.bad_status", slot=self.name, error=str(error))
            return
        self._wake()

    def _wake(self) -> None:
        self._version += 1
        self._changed.set()
