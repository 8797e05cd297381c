"""What operators do to one node: look at its pools and slots, resize, drain, recycle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cloudclaw.errors import NotFoundError, PreconditionError
from cloudclaw_pool_manager.app.attempts import AttemptRunner
from cloudclaw_pool_manager.app.manager import PoolManager
from cloudclaw_pool_manager.app.runner import Template
from cloudclaw_pool_manager.app.slots import SlotEntry
from cloudclaw_pool_manager.domain.slot import SlotState
from cloudclaw_pool_manager.ports.backend import SlotFailedError
from cloudclaw_pool_manager.ports.state import Drain


@dataclass(frozen=True, slots=True)
class SlotView:
    """One slot as operators see it; `name` is unique on the node."""

    name: str
    entry: SlotEntry
    attempt: AttemptRunner | None


class Operations:
    """Use cases over a running `PoolManager`."""

    def __init__(self, manager: PoolManager):
        self._manager = manager

    @property
    def node(self) -> str:
        """The node's id."""
        return self._manager.node

    @property
    def draining(self) -> bool:
        """The node takes no new work."""
        return self._manager.table.draining

    def pools(self, name: str = "") -> list[tuple[str, Template]]:
        """All pools, or the one named. Raises `NotFoundError`."""
        templates = self._manager.templates
        if name and name not in templates:
            raise NotFoundError(
                f"node {self.node} has no pool {name!r}; it has {', '.join(sorted(templates))}", reason="NO_POOL"
            )
        return [(pool, template) for pool, template in sorted(templates.items()) if not name or pool == name]

    def slots(self, pool: str = "") -> list[SlotView]:
        """Slots by pool and number, GONE ones left out unless they are wanted."""
        several = len(self._manager.templates) > 1
        return [
            SlotView(
                name=f"{name}/{entry.name}" if several else entry.name,
                entry=entry,
                attempt=entry.occupant if isinstance(entry.occupant, AttemptRunner) else None,
            )
            for name, template in self.pools(pool)
            for entry in template.slots.entries
            if entry.state is not SlotState.GONE or entry.number < template.slots.size
        ]

    async def warmth(self, view: SlotView) -> tuple[str, int]:
        """The runtime whose agent waits in the slot, and the bytes of memory that it uses; "" and 0 for none."""
        entry = view.entry
        if entry.slot is None or not entry.is_warm:
            return "", 0
        try:
            return self._manager.templates[entry.pool].warm, (await entry.slot.usage("")).memory_bytes
        except SlotFailedError:
            return "", 0  # its keeper finds that too, and says so

    def resize(self, pool: str, slots: int) -> tuple[str, Template]:
        """Change a pool's size until the next start. `NotFoundError`; `InvalidArgumentError` above the hard cap."""
        name, template = self.pools(pool or "default")[0]
        self._manager.resize(name, slots)
        return name, template

    async def drain(self, *, hand_over: bool = False) -> int:
        """Take no new work, and with `hand_over` end what runs at a checkpoint, so that it goes on elsewhere; answers
        how many attempts still run. What was said last counts."""
        await self._manager.set_drain(Drain.HAND_OVER if hand_over else Drain.FINISH)
        return len(self._manager.table.runners())

    async def undrain(self) -> None:
        """Take work again, and hand no more over."""
        await self._manager.set_drain(Drain.NONE)

    def recycle(self, slot: str, *, force: bool) -> SlotView:
        """Replace one slot. `NotFoundError`; `PreconditionError` while an attempt is in it, unless `force`."""
        found = [view for view in self.slots() if slot in (view.name, f"{view.entry.pool}/{view.entry.name}")]
        if not found:
            known: Sequence[str] = [view.name for view in self.slots()]
            there = ", ".join(known) or "none"
            raise NotFoundError(f"node {self.node} has no slot {slot!r}; it has {there}", reason="NO_SLOT")
        view = found[0]
        if view.entry.occupant is not None and not force:
            raise PreconditionError(
                f"slot {view.name} runs an attempt; wait for it, or use `force` to end it with SLOT_FAILED",
                subject=view.name,
                reason="SLOT_ASSIGNED",
            )
        template = self._manager.templates[view.entry.pool]
        template.slots.recycle(view.entry, "recycled by an operator")
        return view
