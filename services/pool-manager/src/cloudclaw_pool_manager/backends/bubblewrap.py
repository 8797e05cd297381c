"""Slots as host processes, each with bubblewrap sandboxes: the default backend."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence

import structlog

from cloudclaw.clock import Clock
from cloudclaw.errors import CloudClawError
from cloudclaw_pool_manager.backends import mounts, probe, spawn
from cloudclaw_pool_manager.backends.attach import MountedTrees
from cloudclaw_pool_manager.backends.channel import SupervisorDeadError
from cloudclaw_pool_manager.backends.config import BackendConfig
from cloudclaw_pool_manager.backends.layout import SlotFiles
from cloudclaw_pool_manager.backends.limits import GroupsFactory, find_groups
from cloudclaw_pool_manager.backends.slot import BubblewrapSlot
from cloudclaw_pool_manager.ports.backend import FencedIncarnationError, Slot, SlotFailedError

_log = structlog.get_logger()


class BubblewrapPool:
    """See `ports.backend.PoolAdapter`.

    As root every slot has a uid of its own (`uid_base + number`), trees are attached by idmapped mounts,
    and the next sandbox waits ready-made. Otherwise all slots share the manager's uid, and a sandbox is
    built with its tree at start, a few milliseconds slower.

    Args:
        config: the node's slots.
        clock: for log lines only; deadlines are the caller's.
    """

    def __init__(self, config: BackendConfig, clock: Clock):
        self._config = config
        self._clock = clock
        self._slots: dict[str, BubblewrapSlot] = {}
        self._tools: probe.Tools | None = None
        self._groups: GroupsFactory | None = None
        self._preparing = threading.Lock()
        self._shared = False
        self._closed = False

    async def probe(self) -> None:
        self._tools = await asyncio.to_thread(probe.probe, self._config)

    async def adopt(self) -> Sequence[Slot]:
        await asyncio.to_thread(self._prepare)
        found: list[Slot] = []
        for number in await asyncio.to_thread(self._numbers):
            slot = self._slot(number)
            try:
                await slot.connect()
            except SlotFailedError as error:
                await slot.close()
                await self._clean_dead(number, error)
                continue
            except FencedIncarnationError:
                await slot.close()
                raise
            self._slots[slot.name] = slot
            found.append(slot)
        return found

    async def provision(self, number: int) -> Slot:
        if not 0 <= number < self._config.slots:
            raise SlotFailedError(f"this node has {self._config.slots} slots, and {number} is none of them")
        starting = asyncio.ensure_future(self._start(number))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # A thread starts the supervisor, and no cancellation stops that: let it come up, and take it down.
            # Whatever comes of that, the cancellation is what the caller hears of.
            await asyncio.wait((starting,))
            try:
                await self.destroy(starting.result())
            except (SlotFailedError, FencedIncarnationError, CloudClawError, OSError) as error:
                _log.info("slot.not_started", slot=f"slot-{number}", error=str(error))
            raise

    async def _start(self, number: int) -> BubblewrapSlot:
        await asyncio.to_thread(self._prepare)
        assert self._tools is not None
        assert self._groups is not None
        files = SlotFiles(self._config.node_dir, number)
        before = self._clock.boottime()
        await asyncio.to_thread(spawn.spawn, self._config, self._tools, files, self._groups(files.name), number)
        slot = self._slot(number)
        try:
            await slot.connect()
        except (SlotFailedError, FencedIncarnationError):
            await slot.close()
            raise
        self._slots[slot.name] = slot
        _log.info("slot.provisioned", slot=slot.name, uid=slot.uid, seconds=round(self._clock.boottime() - before, 3))
        return slot

    async def destroy(self, slot: Slot) -> None:
        own = self._slots.get(slot.name)
        if own is None or own is not slot:
            return
        await own.kill()
        number = int(slot.name.removeprefix("slot-"))
        await asyncio.to_thread(self._remove, number, True)
        await own.close()
        del self._slots[slot.name]

    async def close(self) -> None:
        for slot in self._slots.values():
            await slot.close()
        self._slots.clear()
        await asyncio.to_thread(self._unshare_if_unused)

    def _prepare(self) -> None:
        """Once, whichever slot comes first: the directory of slots, as a shared mount when root, and the groups."""
        with self._preparing:
            if self._groups is not None:
                return
            if self._closed:
                raise SlotFailedError("the pool is closed")
            if self._tools is None:
                self._tools = probe.find_tools()
            slots = self._config.node_dir / "slots"
            slots.mkdir(mode=0o711, parents=True, exist_ok=True)
            if os.geteuid() == 0:
                slots.chmod(0o711)
                self._shared = True
                mounts.share(slots)
            self._groups = find_groups(self._config)

    def _slot(self, number: int) -> BubblewrapSlot:
        assert self._groups is not None
        files = SlotFiles(self._config.node_dir, number)
        groups = self._groups(files.name)
        if os.geteuid() != 0:
            return BubblewrapSlot(self._config, files, groups, None, os.geteuid())
        uid = self._config.uid_base + number
        trees = MountedTrees(files.box, self._config.files_uid, uid)
        return BubblewrapSlot(self._config, files, groups, trees, uid)

    def _numbers(self) -> list[int]:
        """Slots that have a directory, alive or not."""
        names = (path.name for path in (self._config.node_dir / "slots").iterdir() if path.is_dir())
        return sorted(
            int(name[5:]) for name in names if name.startswith("slot-") and name[5:].isascii() and name[5:].isdigit()
        )

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
        files = SlotFiles(self._config.node_dir, number)
        if dead:
            # A sandbox that was frozen outlives its supervisor, locks the slot and does nothing.
            spawn.kill_rest(files, self._groups(files.name))
        lock = spawn.lock_when_gone(files)
        try:
            spawn.clean(files, self._groups(files.name))
        finally:
            os.close(lock)

    def _unshare_if_unused(self) -> None:
        """Take the shared mount away when no slot is left.

        A `_prepare` whose caller was cancelled may still be at work in its thread, or start later.
        """
        slots = self._config.node_dir / "slots"
        with self._preparing:
            self._closed = True
            if self._shared and not self._numbers() and str(os.path.realpath(slots)) in mounts.mounted(slots):
                mounts.detach(slots)
