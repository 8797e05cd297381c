"""What pools of supervised slots have in common, wherever their supervisors run."""

from __future__ import annotations

import abc
import asyncio
import os
import threading
from collections.abc import Sequence
from typing import Generic, TypeVar

import structlog

from cloudclaw.clock import Clock
from cloudclaw.errors import CloudClawError
from cloudclaw_pool_manager.backends import mounts
from cloudclaw_pool_manager.backends.config import BackendConfig
from cloudclaw_pool_manager.backends.layout import SlotFiles
from cloudclaw_pool_manager.backends.slot import BubblewrapSlot
from cloudclaw_pool_manager.ports.backend import FencedIncarnationError, Slot, SlotFailedError

_log = structlog.get_logger()

SlotT = TypeVar("SlotT", bound=BubblewrapSlot)


class SupervisedPool(abc.ABC, Generic[SlotT]):
    """See `ports.backend.PoolAdapter`.

    Args:
        config: the node's slots.
        clock: for log lines only; deadlines are the caller's.
    """

    def __init__(self, config: BackendConfig, clock: Clock):
        self._config = config
        self._clock = clock
        self._slots: dict[str, SlotT] = {}
        self._preparing = threading.Lock()
        self._prepared = False
        self._shared = False
        self._closed = False

    @abc.abstractmethod
    async def probe(self) -> None:
        """As the port says."""

    @abc.abstractmethod
    async def adopt(self) -> Sequence[Slot]:
        """As the port says."""

    @abc.abstractmethod
    async def _spawn(self, number: int) -> SlotT:
        """Start the supervisor of slot `number`; when this returns it listens, and nobody is connected."""

    @abc.abstractmethod
    async def _end(self, slot: SlotT, number: int) -> None:
        """Kill what the slot runs, and remove what it had."""

    def _equip(self) -> None:
        """What else is found once, before the first slot. Blocking."""

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

    async def destroy(self, slot: Slot) -> None:
        own = self._slots.get(slot.name)
        if own is None or own is not slot:
            return
        await self._end(own, number_of(slot.name))
        await own.close()
        del self._slots[slot.name]

    async def close(self) -> None:
        for slot in self._slots.values():
            await slot.close()
        self._slots.clear()
        await asyncio.to_thread(self._unshare_if_unused)

    async def _start(self, number: int) -> SlotT:
        await asyncio.to_thread(self._prepare)
        before = self._clock.boottime()
        slot = await self._spawn(number)
        try:
            await slot.connect()
        except (SlotFailedError, FencedIncarnationError):
            await slot.close()
            raise
        self._slots[slot.name] = slot
        _log.info("slot.provisioned", slot=slot.name, uid=slot.uid, seconds=round(self._clock.boottime() - before, 3))
        return slot

    async def _try_adopt(self, slot: SlotT) -> SlotFailedError | None:
        """Connect to an old slot and keep it; what it failed with, when it did.

        Raises:
            FencedIncarnationError: a newer manager has it.
        """
        try:
            await slot.connect()
        except SlotFailedError as error:
            await slot.close()
            return error
        except FencedIncarnationError:
            await slot.close()
            raise
        self._slots[slot.name] = slot
        return None

    def _prepare(self) -> None:
        """Once, whichever slot comes first: the directory of slots, as a shared mount when root, and the rest."""
        with self._preparing:
            if self._prepared:
                return
            if self._closed:
                raise SlotFailedError("the pool is closed")
            slots = self._config.node_dir / "slots"
            slots.mkdir(mode=0o711, parents=True, exist_ok=True)
            if os.geteuid() == 0:
                slots.chmod(0o711)
                self._shared = True
                mounts.share(slots)
            self._equip()
            self._prepared = True

    def _files(self, number: int) -> SlotFiles:
        return SlotFiles(self._config.node_dir, number)

    def _numbers(self) -> list[int]:
        """Slots that have a directory, alive or not."""
        slots = self._config.node_dir / "slots"
        names = (path.name for path in slots.iterdir() if path.is_dir()) if slots.is_dir() else ()
        return sorted(
            int(name[5:]) for name in names if name.startswith("slot-") and name[5:].isascii() and name[5:].isdigit()
        )

    def _unshare_if_unused(self) -> None:
        """Take the shared mount away when no slot is left.

        A `_prepare` whose caller was cancelled may still be at work in its thread, or start later.
        """
        slots = self._config.node_dir / "slots"
        with self._preparing:
            self._closed = True
            if self._shared and not self._numbers() and str(os.path.realpath(slots)) in mounts.mounted(slots):
                mounts.detach(slots)


def number_of(name: str) -> int:
    """The number of the slot that is called `slot-N`."""
    return int(name.removeprefix("slot-"))
