"""The slot of one attempt: taken from its pool, and given back clean or replaced."""

from __future__ import annotations

from cloudclaw_pool_manager.app.runner import NotStartedError, Template
from cloudclaw_pool_manager.app.slots import READY, Occupant, SlotEntry
from cloudclaw_pool_manager.ports.backend import Slot, SlotFailedError


class Berth:
    """Where one attempt is.

    Attributes:
        failure: why its slot cannot be used any more; None while it can.
    """

    def __init__(self, template: Template | None):
        self.failure: str | None = None
        self._template = template
        self._entry: SlotEntry | None = None
        self._held: Slot | None = None
        self._warm_key = ""

    @property
    def held(self) -> Slot | None:
        """The slot, in whatever state; None before there is one."""
        return self._held

    @property
    def slot(self) -> Slot:
        """The slot. Raises `SlotFailedError` when it failed, or there is none."""
        if self._held is None or self.failure is not None:
            raise SlotFailedError(self.failure or "the attempt has no slot")
        return self._held

    @property
    def warm_key(self) -> str:
        """What waited in it when it was taken, empty for nothing."""
        return self._warm_key

    @property
    def name(self) -> str:
        """`slot-N`."""
        return self._entry.name if self._entry is not None else ""

    async def take(self, template: Template, occupant: Occupant, seconds: float, warm_key: str = "") -> Slot:
        """A slot of the pool, if possible one in which `warm_key` waits. Raises `NotStartedError` when none came free
        within `seconds`."""
        self._entry = await template.slots.take(occupant, seconds, warm_key=warm_key)
        if self._entry is None:
            raise NotStartedError(f"no slot of pool {template.slots.name!r} came free within {seconds:g} s")
        self._held = self._entry.occupied()
        self._warm_key = self._entry.warm_key if self._entry.warm == READY else ""
        return self._held

    def adopt(self, entry: SlotEntry) -> Slot:
        """The slot in which an earlier manager left the attempt."""
        self._entry, self._held = entry, entry.occupied()
        return self._held

    def recycle(self, slot: Slot, message: str) -> None:
        """A call to `slot` failed: have it replaced, if it is this one."""
        if self._held is slot and self._entry is not None and self._template is not None:
            self._template.slots.recycle(self._entry, message)

    async def replace(self, message: str) -> None:
        """The slot is no longer the attempt's business, once no process is left in it: when this returns."""
        if self._entry is not None and self._held is not None and self._template is not None:
            self.failure = message
            await self._template.slots.replace(self._entry, self._held, message)

    async def leave(self, uid: str, *, started: bool) -> None:
        """Give the slot back; one that was `started` in is cleaned first, and replaced when that fails."""
        if self.failure is not None or self._entry is None or self._template is None:
            return
        try:
            if started:
                await self.slot.release(uid)
            self._template.slots.give_back(self._entry)
        except (SlotFailedError, OSError) as error:
            await self.replace(str(error))
