"""One pool's slots: kept warm, replaced when sick, handed out one attempt each.

Every slot number below the hard cap has one keeper, a task that provisions the slot, follows its supervisor, and
destroys it when it is sick, recycled or no longer wanted. No other code provisions or destroys, so the number of
slots cannot exceed the cap.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from cloudclaw.clock import Clock
from cloudclaw.errors import CloudClawError, InvalidArgumentError, UnavailableError
from cloudclaw_pool_manager.app.metrics import NodeMetrics
from cloudclaw_pool_manager.app.timing import cancel
from cloudclaw_pool_manager.domain.slot import SlotState, quarantine
from cloudclaw_pool_manager.ports.backend import PoolAdapter, Slot, SlotFailedError, SlotPhase, SlotStatus

_log = structlog.get_logger()

_AGAIN = 1.0
"""Seconds between two tries while what slots are made with is away."""


READY: Final = "ready"
FAILED: Final = "failed"
"""What `SlotStatus.warm` says, or begins with, of a program that waits, or does not any more."""


class Occupant(Protocol):
    """The attempt in a slot, as the slot's keeper sees it. Both are called from the event loop and must not block."""

    def on_status(self, status: SlotStatus) -> None:
        """The supervisor reports on this attempt."""
        ...

    def on_slot_failed(self, message: str) -> None:
        """The slot is sick. Its processes are gone once `SlotEntry.gone` is set."""
        ...


@dataclass(eq=False)
class SlotEntry:
    """One slot number and what is there now.

    Attributes:
        gone: set once no process of the present slot can be alive; a new one with every slot.
        since: wall clock seconds of the last change of state.
        served: attempts that ended in the present slot.
        failures: in a row.
        last_failure: why it was last replaced, for people.
        warm, warm_key: of the program that waits in it (`SlotStatus`).
    """

    pool: str
    number: int
    state: SlotState = SlotState.GONE
    slot: Slot | None = None
    occupant: Occupant | None = None
    since: float = 0.0
    served: int = 0
    failures: int = 0
    last_failure: str = ""
    sandbox_ready: bool = False
    warm: str = ""
    warm_key: str = ""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    retire: asyncio.Event = field(default_factory=asyncio.Event)
    wanted: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """`slot-N`."""
        return f"slot-{self.number}"

    @property
    def is_warm(self) -> bool:
        """A program waits in it for a task."""
        return self.state is SlotState.IDLE and self.warm == READY

    @property
    def cold_because(self) -> str:
        """What the program that was to wait died of, empty when it did not."""
        return f"not warm: {self.warm}" if self.warm.startswith(FAILED) else ""

    def occupied(self) -> Slot:
        """The slot of an entry that was taken."""
        if self.slot is None:
            raise SlotFailedError(self.last_failure or "the slot is gone")
        return self.slot


class SlotPool:
    """The slots of one pool on this node."""

    def __init__(
        self,
        name: str,
        adapter: PoolAdapter,
        clock: Clock,
        *,
        slots: int,
        hard_cap: int,
        metrics: NodeMetrics,
        single_use: bool = False,
    ):
        self.name = name
        self.hard_cap = hard_cap
        self.size = slots
        self.changed: list[asyncio.Event] = []
        self._adapter = adapter
        self._clock = clock
        self._single_use = single_use
        self._entries = {number: SlotEntry(pool=name, number=number) for number in range(hard_cap)}
        for entry in self._entries.values():
            entry.gone.set()
        self._idle: deque[SlotEntry] = deque()
        self._waiting: deque[tuple[asyncio.Future[SlotEntry], Occupant]] = deque()
        self._failed = metrics.slot_failures.labels(name)
        for state in SlotState:
            metrics.slots.labels(name, state.name.lower()).set_function(functools.partial(self.count, state))

    @property
    def entries(self) -> Sequence[SlotEntry]:
        """All slot numbers, by number."""
        return [self._entries[number] for number in sorted(self._entries)]

    def count(self, *states: SlotState) -> int:
        """Slots in one of `states`."""
        return sum(entry.state in states for entry in self._entries.values())

    async def adopt(self) -> list[tuple[SlotEntry, SlotStatus]]:
        """Take over what an earlier manager left; call once, before `run`. Slots that do not answer are destroyed.

        A slot with an attempt comes back ASSIGNED and without an occupant: `occupy` it, clean it and `give_back`, or
        `discard` it.
        """
        adopted = []
        for slot in await self._adapter.adopt():
            number = int(slot.name.rpartition("-")[2])
            entry = self._entries.setdefault(number, SlotEntry(pool=self.name, number=number))
            try:
                status = await slot.status()
            except SlotFailedError as error:
                _log.warning("an old slot does not answer", slot=slot.name, error=str(error))
                await self._adapter.destroy(slot)
                continue
            entry.slot = slot
            entry.gone = asyncio.Event()
            entry.sandbox_ready, entry.warm, entry.warm_key = status.sandbox_ready, status.warm, status.warm_key
            self._set(entry, SlotState.IDLE if status.phase is SlotPhase.IDLE else SlotState.ASSIGNED)
            adopted.append((entry, status))
        return adopted

    async def run(self) -> None:
        """Keep the slots until cancelled; leaves them as they are then."""
        for number, entry in self._entries.items():
            if number < self.size:
                entry.wanted.set()
            elif entry.slot is not None and entry.occupant is None:
                entry.retire.set()
        async with asyncio.TaskGroup() as group:
            for entry in self._entries.values():
                group.create_task(self._keep(entry), name=f"keep {self.name}/{entry.name}")

    async def take(self, occupant: Occupant, seconds: float, *, warm_key: str = "") -> SlotEntry | None:
        """An idle slot, now ASSIGNED to `occupant`; None when none came free in `seconds`. Where there is a choice, one
        in which `warm_key` waits; without it one in which nothing does."""
        while self._idle:
            entry = next((entry for entry in self._idle if entry.warm_key == warm_key), self._idle[0])
            self._idle.remove(entry)
            if entry.state is SlotState.IDLE and not entry.retire.is_set():
                self._assign(entry, occupant)
                return entry
        future: asyncio.Future[SlotEntry] = asyncio.get_running_loop().create_future()
        place = (future, occupant)
        self._waiting.append(place)
        timer = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait((future, timer), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel(timer)
            if not future.done():
                self._waiting.remove(place)
        return future.result() if future.done() else None

    def occupy(self, entry: SlotEntry, occupant: Occupant) -> None:
        """Put the runner of an adopted attempt into its slot."""
        self._assign(entry, occupant)

    def give_back(self, entry: SlotEntry) -> None:
        """After `Slot.release`: the slot is clean."""
        entry.occupant = None
        entry.served += 1
        entry.failures = 0
        if entry.number >= self.size or self._single_use:
            entry.retire.set()
        self._offer(entry)

    async def replace(self, entry: SlotEntry, slot: Slot, message: str) -> None:
        """`slot` of `entry` is sick: destroy it, and return when its processes are gone. Another follows by itself."""
        if entry.slot is slot:
            gone = entry.gone
            self._fail(entry, message)
            await gone.wait()

    async def discard(self, entry: SlotEntry) -> None:
        """As `replace`, for an adopted slot before `run`."""
        await self._destroy(entry)

    def resize(self, slots: int) -> None:
        """Change how many are kept. Idle ones above it go at once, others when their attempt ends."""
        if not 0 <= slots <= self.hard_cap:
            raise InvalidArgumentError(f"pool {self.name} holds at most {self.hard_cap} slots here", field="slots")
        self.size = slots
        for number, entry in self._entries.items():
            if number < slots:
                entry.wanted.set()
            else:
                entry.wanted.clear()
                if entry.occupant is None:
                    entry.retire.set()
        self._notify()

    def recycle(self, entry: SlotEntry, message: str) -> None:
        """Replace one slot; an attempt in it ends SLOT_FAILED."""
        if entry.occupant is None:
            entry.last_failure = message
            entry.retire.set()
        else:
            self._fail(entry, message)

    async def destroy_all(self) -> None:
        """End every slot, once `run` is over; all at once, as each may have to wait for an engine."""
        async with asyncio.TaskGroup() as group:
            for entry in self._entries.values():
                if entry.slot is not None:
                    group.create_task(self._end(entry))

    async def close(self) -> None:
        """Disconnect; the slots go on."""
        await self._adapter.close()

    # -- keepers --

    async def _keep(self, entry: SlotEntry) -> None:
        if entry.slot is not None and entry.occupant is None:
            self._offer(entry)
        while True:
            if entry.slot is None:
                if not entry.wanted.is_set():
                    self._set(entry, SlotState.GONE)
                    await entry.wanted.wait()
                self._set(entry, SlotState.PROVISIONING)
                pause = quarantine(entry.failures)
                if pause:
                    await self._clock.sleep(pause)
                    if not entry.wanted.is_set():
                        continue
                if not await self._provision(entry):
                    continue
                self._offer(entry)
            await self._follow(entry)
            self._set(entry, SlotState.DRAINING)
            await self._destroy(entry)
            entry.retire.clear()

    async def _provision(self, entry: SlotEntry) -> bool:
        entry.gone = asyncio.Event()
        try:
            entry.slot = await self._adapter.provision(entry.number)
        except UnavailableError as error:
            # What slots are made with is away, which says nothing about this one: no quarantine.
            entry.gone.set()
            if entry.last_failure != str(error):
                _log.warning("no slot yet", pool=self.name, slot=entry.name, error=str(error))
            entry.last_failure = str(error)
            await self._clock.sleep(_AGAIN)
            return False
        except (SlotFailedError, CloudClawError, OSError) as error:
            entry.gone.set()
            entry.failures += 1
            entry.last_failure = str(error)
            _log.warning("no slot", pool=self.name, slot=entry.name, failures=entry.failures, error=str(error))
            if entry.failures == 1:
                entry.failures = 2  # what cannot even be started is not tried again without a pause
            return False
        entry.served = 0
        entry.retire.clear()
        return True

    async def _follow(self, entry: SlotEntry) -> None:
        """Pass on what the supervisor reports, until the slot is to be destroyed."""
        updates = asyncio.ensure_future(self._updates(entry))
        retire = asyncio.ensure_future(entry.retire.wait())
        try:
            await asyncio.wait((updates, retire), return_when=asyncio.FIRST_COMPLETED)
            if updates.done():
                error = updates.exception()
                if error is not None and not isinstance(error, SlotFailedError):
                    raise error
                self._fail(entry, str(error or "its supervisor went away"))
        finally:
            await cancel(updates, retire)

    async def _updates(self, entry: SlotEntry) -> None:
        async for status in entry.occupied().updates():
            news = (status.sandbox_ready, status.warm, status.warm_key)
            if news != (entry.sandbox_ready, entry.warm, entry.warm_key):
                entry.sandbox_ready, entry.warm, entry.warm_key = news
                if entry.state is SlotState.IDLE:
                    self._notify()
            if entry.occupant is not None and status.attempt is not None:
                entry.occupant.on_status(status)

    async def _end(self, entry: SlotEntry) -> None:
        await self._destroy(entry)
        self._set(entry, SlotState.GONE)

    async def _destroy(self, entry: SlotEntry) -> None:
        """Until it is done: a slot that cannot be destroyed still counts against the cap."""
        attempt = 0
        while entry.slot is not None:
            try:
                await self._adapter.destroy(entry.slot)
            except (SlotFailedError, OSError) as error:
                attempt += 1
                _log.error("a slot cannot be destroyed", pool=self.name, slot=entry.name, error=str(error))
                await self._clock.sleep(quarantine(attempt + 1))
                continue
            entry.slot = None
            entry.occupant = None
            entry.sandbox_ready, entry.warm, entry.warm_key = False, "", ""
            entry.gone.set()

    def _fail(self, entry: SlotEntry, message: str) -> None:
        if entry.retire.is_set() or entry.slot is None:
            return
        entry.failures += 1
        entry.last_failure = message
        entry.retire.set()
        self._failed.inc()
        _log.warning("a slot is sick", pool=self.name, slot=entry.name, failures=entry.failures, error=message)
        if entry.occupant is not None:
            entry.occupant.on_slot_failed(message)

    # -- states --

    def _assign(self, entry: SlotEntry, occupant: Occupant) -> None:
        entry.occupant = occupant
        self._set(entry, SlotState.ASSIGNED)

    def _offer(self, entry: SlotEntry) -> None:
        """A clean slot goes to who waits longest, or into the store."""
        self._set(entry, SlotState.IDLE)
        if entry.retire.is_set():
            return
        while self._waiting:
            future, occupant = self._waiting.popleft()
            if not future.done():
                self._assign(entry, occupant)
                future.set_result(entry)
                return
        if entry not in self._idle:
            self._idle.append(entry)

    def _set(self, entry: SlotEntry, state: SlotState) -> None:
        if entry.state is not state:
            entry.state = state
            entry.since = self._clock.wall()
            self._notify()

    def _notify(self) -> None:
        for event in self.changed:
            event.set()
