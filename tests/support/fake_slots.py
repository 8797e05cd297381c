"""Slots in memory, behind the same port as real ones.

`FakeHost` is the machine: its supervisors outlive the managers that use them, as real ones do. Everything runs by a
`ManualClock`; `FakeHost.look` does what supervisors do by themselves when time passes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cloudclaw.clock import Clock
from cloudclaw.errors import UnavailableError
from cloudclaw_pool_manager.domain.attempt import AttemptId, Exit, KillReason, Launch, Limits, LogFrame, Stream, Usage
from cloudclaw_pool_manager.ports.backend import (
    Enforcement,
    FencedIncarnationError,
    Mechanism,
    SlotFailedError,
    SlotPhase,
    SlotStatus,
)

ORPHAN_TTL = 10.0


@dataclass(eq=False)
class FakeSupervisor:
    """One slot's supervisor and the sandbox in it.

    Attributes:
        starts: uids handed to it, in order; a repeated start of the same uid does not count.
        frames: the spool.
        fenced: frozen by its deadline, so that nothing but `thaw` lets it go on.
        freezing: a pause was asked for, and does not stand still yet.
        restless: its processes do not stand still for a pause.
        mapped: inodes that the task has mapped.
        pauses: (boot time of the freeze, of the resume or None while paused), in order.
        refuses: every call raises `SlotFailedError` while it is set to a message.
        gates: calls wait here, by name of the method.
    """

    number: int
    pid: int
    clock: Clock
    incarnation: int = 0
    phase: SlotPhase = SlotPhase.IDLE
    fenced: bool = False
    attempt: AttemptId | None = None
    launch: Launch | None = None
    limits: Limits | None = None
    tree: Path | None = None
    deadline: float = 0.0
    spoken: float = 0.0
    exit: Exit | None = None
    frames: list[LogFrame] = field(default_factory=list)
    log_end: int = 0
    forgotten: int = 0
    started: float = 0.0
    starts: list[str] = field(default_factory=list)
    stops: list[KillReason] = field(default_factory=list)
    thaws: int = 0
    freezing: bool = False
    restless: bool = False
    mapped: Collection[int] = ()
    pauses: list[tuple[float, float | None]] = field(default_factory=list)
    ignores_term: bool = False
    refuses: str = ""
    dead: bool = False
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    version: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    # -- what the task does --

    def write(self, data: bytes, stream: Stream = Stream.STDOUT) -> None:
        """The task writes output."""
        self.frames.append(LogFrame(self.log_end, stream, self.clock.wall(), data))
        self.log_end += len(data)
        self.tell()

    def finish(
        self, code: int = 0, *, signal: int = 0, killed: KillReason = KillReason.NONE, oom: bool = False
    ) -> None:
        """The task ends."""
        if self.exit is None:
            self.phase = SlotPhase.EXITED
            self.exit = Exit(code, signal, killed, oom, self.log_end, self.started, self.clock.wall())
            self.tell()

    # -- what happens to it --

    def die(self) -> None:
        """The supervisor is killed, and the sandbox with it."""
        self.dead = True
        self.tell()

    def look(self) -> None:
        """Freeze past the deadline; kill what nobody came for."""
        now = self.clock.boottime()
        alive = self.phase in (SlotPhase.RUNNING, SlotPhase.FROZEN)
        if alive and not self.fenced and now >= self.deadline:
            self.phase, self.fenced = SlotPhase.FROZEN, True
            self.tell()
        elif self.phase is SlotPhase.FROZEN and self.fenced and now >= max(self.deadline, self.spoken) + ORPHAN_TTL:
            self.finish(137, signal=9, killed=KillReason.ORPHANED)

    def stand_still(self) -> None:
        """What `freezing` began is done, if nobody took it back."""
        if self.freezing and self.phase is SlotPhase.RUNNING:
            self.phase = SlotPhase.FROZEN
            self.pauses.append((self.clock.boottime(), None))
            self.tell()

    def tell(self) -> None:
        self.version += 1
        self.changed.set()

    def status(self) -> SlotStatus:
        last = self.frames[-1].time if self.frames else self.started
        ready, paused = self.phase is SlotPhase.IDLE, self.phase is SlotPhase.FROZEN and not self.fenced
        return SlotStatus(self.phase, self.attempt, self.log_end, last, self.exit, ready, paused)


class FakeSlot:
    """`Slot` on a supervisor."""

    def __init__(self, supervisor: FakeSupervisor, incarnation: int):
        self.supervisor = supervisor
        self._incarnation = incarnation
        self.closed = False

    @property
    def name(self) -> str:
        return f"slot-{self.supervisor.number}"

    @property
    def pid(self) -> int:
        return self.supervisor.pid

    @property
    def uid(self) -> int:
        return 200_000 + self.supervisor.number

    @property
    def uid_shared(self) -> bool:
        return False

    @property
    def enforcement(self) -> Enforcement:
        return Enforcement(Mechanism.CGROUP_V2, Mechanism.CGROUP_V2, Mechanism.CGROUP_V2, Mechanism.WATCHED)

    async def _call(self, method: str, uid: str | None = None) -> FakeSupervisor:
        there = self.supervisor
        if gate := there.gates.get(method):
            await gate.wait()
        if there.dead or self.closed:
            raise SlotFailedError("its supervisor is gone")
        if there.refuses:
            raise SlotFailedError(there.refuses)
        if there.incarnation > self._incarnation:
            raise FencedIncarnationError(f"incarnation {there.incarnation} has taken over")
        if uid is not None and (there.attempt is None or there.attempt.uid != uid):
            raise SlotFailedError(f"{self.name} does not hold {uid}")
        there.spoken = there.clock.boottime()
        return there

    async def start(self, attempt: AttemptId, launch: Launch, limits: Limits, tree: Path, deadline: float) -> None:
        there = await self._call("start")
        if there.attempt == attempt:
            return
        if there.attempt is not None:
            raise SlotFailedError(f"it holds {there.attempt.uid}")
        there.starts.append(attempt.uid)
        there.attempt, there.launch, there.limits, there.tree, there.deadline = attempt, launch, limits, tree, deadline
        there.started = there.clock.wall()
        there.phase, there.fenced, there.pauses = SlotPhase.RUNNING, False, []
        there.tell()

    async def set_deadline(self, uid: str, deadline: float) -> None:
        there = await self._call("set_deadline", uid)
        there.deadline = deadline

    async def freeze(self, uid: str) -> None:
        there = await self._call("freeze", uid)
        if there.restless:
            raise UnavailableError("they do not stand still")
        if there.phase is SlotPhase.RUNNING:
            there.phase = SlotPhase.FROZEN
            there.pauses.append((there.clock.boottime(), None))
            there.tell()

    async def mapped(self, uid: str) -> Collection[int]:
        return (await self._call("mapped", uid)).mapped

    async def resume(self, uid: str, deadline: float) -> bool:
        there = await self._call("resume", uid)
        there.freezing = False
        there.look()
        if there.phase is not SlotPhase.FROZEN:
            return there.phase is SlotPhase.RUNNING
        if there.fenced or deadline <= there.clock.boottime():
            there.fenced = True
            there.tell()
            return False
        there.deadline = deadline
        there.pauses[-1] = (there.pauses[-1][0], there.clock.boottime())
        there.phase = SlotPhase.RUNNING
        there.tell()
        return True

    async def thaw(self, uid: str, deadline: float) -> None:
        there = await self._call("thaw", uid)
        there.deadline = deadline
        there.thaws += 1
        there.freezing = False
        there.fenced = False
        if there.phase is SlotPhase.FROZEN:
            there.phase = SlotPhase.RUNNING
            there.tell()

    async def stop(self, uid: str, reason: KillReason, grace: float) -> Exit:
        there = await self._call("stop", uid)
        there.stops.append(reason)
        there.finish(143, signal=15, killed=reason)
        assert there.exit is not None
        return there.exit

    async def status(self) -> SlotStatus:
        return (await self._call("status")).status()

    async def updates(self) -> AsyncIterator[SlotStatus]:
        there = self.supervisor
        yield await self.status()
        seen = there.version
        while True:
            if there.version != seen:
                seen = there.version
                yield await self.status()
                continue
            there.changed.clear()
            await there.changed.wait()

    async def read_log(self, uid: str, offset: int, max_bytes: int) -> Sequence[LogFrame]:
        there = await self._call("read_log", uid)
        if offset < there.forgotten:
            raise SlotFailedError(f"the log below byte {there.forgotten} was dropped, and {offset} was asked for")
        return [f for f in there.frames if f.offset + len(f.data) > offset]

    async def forget_log(self, uid: str, upto: int) -> None:
        there = await self._call("forget_log", uid)
        there.forgotten = max(there.forgotten, upto)

    async def usage(self, uid: str) -> Usage:
        there = await self._call("usage", uid)
        return Usage(memory_bytes=1 << 20, pids=1 + there.number)

    async def release(self, uid: str) -> None:
        there = await self._call("release", uid)
        if there.exit is None:
            raise SlotFailedError("the attempt still runs")
        there.phase, there.attempt, there.exit, there.tree = SlotPhase.IDLE, None, None, None
        there.frames, there.log_end, there.forgotten = [], 0, 0
        there.tell()

    async def close(self) -> None:
        self.closed = True


@dataclass(eq=False)
class FakeHost:
    """The machine.

    Attributes:
        cap: how many slots may ever be alive.
        peak: how many were, at most.
        broken: numbers that cannot be provisioned now, with the reason.
        provisions, destroyed: numbers, in order.
    """

    clock: Clock
    cap: int
    alive: dict[int, FakeSupervisor] = field(default_factory=dict)
    peak: int = 0
    broken: dict[int, str] = field(default_factory=dict)
    provisions: list[int] = field(default_factory=list)
    destroyed: list[int] = field(default_factory=list)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    pids: int = 1000

    def look(self) -> None:
        """What supervisors do by themselves."""
        for supervisor in list(self.alive.values()):
            supervisor.look()

    def running(self) -> list[str]:
        """uids of attempts whose processes are alive."""
        return [
            s.attempt.uid
            for s in self.alive.values()
            if s.attempt and not s.dead and s.phase in (SlotPhase.RUNNING, SlotPhase.FROZEN)
        ]

    def of(self, uid: str) -> FakeSupervisor:
        """The supervisor that holds an attempt."""
        return next(s for s in self.alive.values() if s.attempt and s.attempt.uid == uid)


class FakePool:
    """`PoolAdapter` of one manager on the host."""

    def __init__(self, host: FakeHost, incarnation: int):
        self.host = host
        self._incarnation = incarnation
        self._slots: list[FakeSlot] = []

    async def probe(self) -> None:
        """Always fine."""

    async def adopt(self) -> Sequence[FakeSlot]:
        for number, supervisor in list(self.host.alive.items()):
            if supervisor.dead:
                del self.host.alive[number]
                continue
            supervisor.incarnation = max(supervisor.incarnation, self._incarnation)
            self._slots.append(FakeSlot(supervisor, self._incarnation))
        return list(self._slots)

    async def provision(self, number: int) -> FakeSlot:
        host = self.host
        host.provisions.append(number)
        if gate := host.gates.get("provision"):
            await gate.wait()
        if number in host.broken:
            raise SlotFailedError(host.broken[number])
        if number in host.alive:
            raise SlotFailedError(f"slot {number} is locked by another")
        host.pids += 1
        supervisor = FakeSupervisor(number, host.pids, host.clock, self._incarnation)
        host.alive[number] = supervisor
        host.peak = max(host.peak, len(host.alive))
        slot = FakeSlot(supervisor, self._incarnation)
        self._slots.append(slot)
        return slot

    async def destroy(self, slot: object) -> None:
        assert isinstance(slot, FakeSlot)
        if gate := self.host.gates.get("destroy"):
            await gate.wait()
        number = slot.supervisor.number
        slot.supervisor.dead = True
        if self.host.alive.get(number) is slot.supervisor:
            del self.host.alive[number]
            self.host.destroyed.append(number)

    def cut(self) -> None:
        """The manager is killed."""
        for slot in self._slots:
            slot.closed = True

    async def close(self) -> None:
        self.cut()
