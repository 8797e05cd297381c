"""Slots as host processes, each with bubblewrap sandboxes: the default backend."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import structlog

from cloudclaw.clock import Clock
from cloudclaw_pool_manager.backends import probe, spawn
from cloudclaw_pool_manager.backends.attach import MountedTrees
from cloudclaw_pool_manager.backends.channel import SupervisorDeadError
from cloudclaw_pool_manager.backends.config import BackendConfig
from cloudclaw_pool_manager.backends.limits import GroupsFactory, find_groups
from cloudclaw_pool_manager.backends.pool import SupervisedPool
from cloudclaw_pool_manager.backends.slot import BubblewrapSlot
from cloudclaw_pool_manager.ports.backend import Slot, SlotFailedError

_log = structlog.get_logger()


class BubblewrapPool(SupervisedPool[BubblewrapSlot]):
    """See `ports.backend.PoolAdapter`.

    As root every slot has a uid of its own (`uid_base + number`), trees are attached by idmapped mounts,
    and the next sandbox waits ready-made. Otherwise all slots share the manager's uid, and a sandbox is
    built with its tree at start, a few milliseconds slower.

    Args:
        config: the node's slots.
        clock: for log lines only; deadlines are the caller's.
    """

    def __init__(self, config: BackendConfig, clock: Clock):
        super().__init__(config, clock)
        self._tools: probe.Tools | None = None
        self._groups: GroupsFactory | None = None

    async def probe(self) -> None:
        self._tools = await asyncio.to_thread(probe.probe, self._config)

    async def adopt(self) -> Sequence[Slot]:
        await asyncio.to_thread(self._prepare)
        found: list[Slot] = []
        for number in await asyncio.to_thread(self._numbers):
            slot = self._slot(number)
            error = await self._try_adopt(slot)
            if error is None:
                found.append(slot)
            else:
                await self._clean_dead(number, error)
        return found

    async def _spawn(self, number: int) -> BubblewrapSlot:
        assert self._tools is not None
        assert self._groups is not None
        files = self._files(number)
        await asyncio.to_thread(spawn.spawn, self._config, self._tools, files, self._groups(files.name), number)
        return self._slot(number)

    async def _end(self, slot: BubblewrapSlot, number: int) -> None:
        await slot.kill()
        await asyncio.to_thread(self._remove, number, True)

    def _equip(self) -> None:
        if self._tools is None:
            self._tools = probe.find_tools()
        self._groups = find_groups(self._config)

    def _slot(self, number: int) -> BubblewrapSlot:
        assert self._groups is not None
        files = self._files(number)
        groups = self._groups(files.name)
        if os.geteuid() != 0:
            return BubblewrapSlot(self._config, files, groups, None, os.geteuid())
        uid = self._config.uid_base + number
        trees = MountedTrees(files.box, self._config.files_uid, uid)
        return BubblewrapSlot(self._config, files, groups, trees, uid)

    async def _clean_dead(self, number: int, error: SlotFailedError) -> None:
        try:
            await asyncio.to_thread(self._remove, number, isinstance(error, SupervisorDeadError))
        except SlotFailedError as locked:
            # Alive and deaf: it stays locked, so the cap holds, and the operator is told.
            _log.error("slot.not_adopted", slot=f"slot-{number}", error=str(error), cleaning=str(locked))
        else:
            _log.info("slot.cleaned", slot=f"slot-{number}", error=str(error))

    def _remove(self, number: int, dead: bool) -> None:
        """Remove what slot `number` left; `dead` when its supervisor is known to have ended."""
        assert self._groups is not None
        files = self._files(number)
        if dead:
            # A sandbox that was frozen outlives its supervisor, locks the slot and does nothing.
            spawn.kill_rest(files, self._groups(files.name))
        lock = spawn.lock_when_gone(files)
        try:
            spawn.clean(files, self._groups(files.name))
        finally:
            os.close(lock)
