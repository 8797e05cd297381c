"""Slots in memory, behind the same port as real ones.

`FakeHost` is the machine: its supervisors outlive the managers that use them, as real ones do. Everything runs by a
`ManualClock`; `FakeHost.look` does what supervisors do by themselves when time passes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cloudclaw.clock import Clock
from cloudclaw.errors import InvalidArgumentError, PreconditionError, UnavailableError
from cloudclaw_pool_manager.domain.attempt import AttemptId, Exit, KillReason, Launch, Limits, LogFrame, Stream, Usage
from cloudclaw_pool_manager.ports.backend import (
    Enforcement,
    FencedIncarnationError,
    Mechanism,
    SlotFailedError,
    SlotPhase,
    SlotStatus,
)
from tests.support.fake_supervisor import ORPHAN_TTL, FakeInput, FakeSupervisor

__all__ = ["ORPHAN_TTL", "FakeHost", "FakePool", "FakeSlot", "FakeSupervisor"]


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
        if launch.warm_key and (there.warm, there.warm_key) != ("ready", launch.warm_key):
            raise PreconditionError(f"{launch.warm_key!r} is not warm", subject=self.name, reason="NOT_WARM")
        there.went_on_warm = bool(launch.warm_key)
        there.warm = there.warm_key = ""
        there.starts.append(attempt.uid)
        there.attempt, there.launch, there.limits, there.tree, there.deadline = attempt, launch, limits, tree, deadline
        there.started = there.clock.wall()
        there.phase, there.fenced, there.pauses = SlotPhase.RUNNING, False, []
        there.inputs, there.input_open = [], launch.keep_stdin
        if launch.note:
            there.write(launch.note, Stream.SYSTEM)
        there.tell()

    async def input(
        self, uid: str, message_id: str, *, note: bytes = b"", data: bytes = b"", close: bool = False
    ) -> bool:
        there = await self._call("input", uid)
        if not message_id:
            raise InvalidArgumentError("a name for the message", field="message_id")
        if any(given.id == message_id for given in there.inputs):
            return False
        if not there.input_open:
            raise PreconditionError("its standard input is closed", subject=uid, reason="INPUT_CLOSED")
        if there.input_full:
            raise UnavailableError("it has not read its input", reason="INPUT_FULL")
        there.inputs.append(FakeInput(message_id, data, close))
        there.input_open = not close
        if note:
            there.write(note, Stream.SYSTEM)
        there.tell()
        return True

    async def egress(self, uid: str) -> int:
        """A real listener on some port of this host, another one at every call."""
        there = await self._call("egress", uid)
        if not there.egress:
            raise PreconditionError("it was made without", subject=self.name, reason="NO_EGRESS")
        return socket.create_server(("127.0.0.1", 0)).detach()

    async def warm(self, launch: Launch, limits: Limits, ready: str, *, within: float = 60.0) -> None:
        there = await self._call("warm")
        if there.no_warm:
            raise PreconditionError("trees cannot arrive later", subject=self.name, reason="NO_WARM")
        if there.attempt is not None:
            raise SlotFailedError(f"it holds {there.attempt.uid}")
        if there.warm_key == launch.warm_key and there.warm in ("warming", "ready"):
            return
        there.warmings.append((launch, limits, ready))
        there.warm, there.warm_key = "warming" if there.slow_to_warm else "ready", launch.warm_key
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
        there = await self._call("usage", uid or None)
        return Usage(memory_bytes=1 << 20, pids=1 + there.number)

    async def release(self, uid: str) -> None:
        there = await self._call("release", uid)
        if there.exit is None:
            raise SlotFailedError("the attempt still runs")
        there.phase, there.attempt, there.exit, there.tree = SlotPhase.IDLE, None, None, None
        there.frames, there.log_end, there.forgotten = [], 0, 0
        there.inputs, there.went_on_warm = [], False
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
        away: why no slot at all can be provisioned now, empty when they can.
        provisions, destroyed: numbers, in order.
        egress: slots are made with a listener in their sandboxes.
        no_warm, slow_to_warm: of the slots that are made.
    """

    clock: Clock
    cap: int
    alive: dict[int, FakeSupervisor] = field(default_factory=dict)
    peak: int = 0
    broken: dict[int, str] = field(default_factory=dict)
    away: str = ""
    provisions: list[int] = field(default_factory=list)
    destroyed: list[int] = field(default_factory=list)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    pids: int = 1000
    egress: bool = False
    no_warm: bool = False
    slow_to_warm: bool = False

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
        if host.away:
            raise UnavailableError(host.away)
        if number in host.broken:
            raise SlotFailedError(host.broken[number])
        if number in host.alive:
            raise SlotFailedError(f"slot {number} is locked by another")
        host.pids += 1
        supervisor = FakeSupervisor(number, host.pids, host.clock, self._incarnation)
        supervisor.egress, supervisor.no_warm = host.egress, host.no_warm
        supervisor.slow_to_warm = host.slow_to_warm
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
