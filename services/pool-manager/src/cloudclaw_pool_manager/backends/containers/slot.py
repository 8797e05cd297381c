"""One slot in a container."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from cloudclaw_pool_manager.backends.attach import MountedTrees
from cloudclaw_pool_manager.backends.cgroups import NoGroups
from cloudclaw_pool_manager.backends.containers import groups
from cloudclaw_pool_manager.backends.containers.config import DockerConfig
from cloudclaw_pool_manager.backends.layout import SlotFiles
from cloudclaw_pool_manager.backends.slot import BubblewrapSlot
from cloudclaw_pool_manager.ports.backend import SlotFailedError, SlotStatus


class ContainerSlot(BubblewrapSlot):
    """See `ports.backend.Slot`. Its supervisor is the first process of a container.

    Args:
        fate: tells what became of the container, in words; empty when that is not known.
        container: the engine's id of it; empty while that is not known, as when the slot was adopted without an engine.
    """

    def __init__(
        self,
        config: DockerConfig,
        files: SlotFiles,
        uid: int,
        fate: Callable[[], Awaitable[str]],
        container: str = "",
    ):
        trees = MountedTrees(files.box, config.files_uid, uid)
        super().__init__(config, files, NoGroups(), trees, uid)
        self.container = container
        self._docker = config
        self._fate = fate
        self._sickened = False

    async def connect(self) -> None:
        await super().connect()
        try:
            self._groups = await asyncio.to_thread(groups.groups_of, self._docker, self._pid)
        except OSError as error:
            raise SlotFailedError(f"the groups of {self.name} cannot be read: {error}") from error

    async def ready(self) -> None:
        """Return when its first sandbox is built. Raises `SlotFailedError` with bubblewrap's words when not."""
        await self._channel.call("prepare", wait=20.0, tmp_bytes=self._config.defaults.tmp_bytes)

    @property
    def lost(self) -> bool:
        """No more calls are possible."""
        return self._channel.failure is not None

    def sicken(self, message: str) -> None:
        """It is lost although its supervisor may not know."""
        self._sickened = True
        self._channel.break_off(SlotFailedError(message))

    async def updates(self) -> AsyncIterator[SlotStatus]:
        try:
            async for status in super().updates():
                yield status
        except SlotFailedError as error:
            fate = "" if self._sickened else await self._fate()
            if fate:
                raise SlotFailedError(f"{error}; {fate}") from error
            raise

    async def kill(self) -> None:
        # A paused container does not die, nor does one whose sandbox is frozen by the old freezer.
        await asyncio.to_thread(groups.thaw, self._pid)
        if self._send(signal.SIGKILL):
            try:
                await asyncio.to_thread(self._groups.destroy)
            except OSError as error:
                raise SlotFailedError(f"the processes of {self.name} do not end: {error}") from error
        await super().kill()

    def _supervisor(self, greeting: dict[str, Any]) -> int:
        # It knows its number inside alone; whose socket it is, the kernel says.
        return self._channel.peer
