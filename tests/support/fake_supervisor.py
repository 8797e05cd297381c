"""A supervisor in memory; `fake_slots` puts the manager's port before it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from cloudclaw.clock import Clock
from cloudclaw_pool_manager.domain.attempt import AttemptId, Exit, KillReason, Launch, Limits, LogFrame, Stream
from cloudclaw_pool_manager.ports.backend import SlotPhase, SlotStatus

ORPHAN_TTL = 10.0


@dataclass(frozen=True)
class FakeInput:
    """One input that a program was given."""

    id: str
    data: bytes
    close: bool


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
        inputs: what the program was given, in order.
        input_open: the program takes input.
        input_full: it reads none, and no more is taken.
        egress: its sandboxes have a listener.
        no_warm: trees cannot arrive later.
        slow_to_warm: a program is not ready before `warmed`.
        warm, warm_key: as `SlotStatus` tells them.
        warmings: (launch, limits, ready) of every program that was warmed.
        went_on_warm: the attempt runs in a program that was warm.
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
    inputs: list[FakeInput] = field(default_factory=list)
    input_open: bool = False
    input_full: bool = False
    egress: bool = False
    no_warm: bool = False
    slow_to_warm: bool = False
    warm: str = ""
    warm_key: str = ""
    warmings: list[tuple[Launch, Limits, str]] = field(default_factory=list)
    went_on_warm: bool = False
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
            self.input_open = False
            self.exit = Exit(code, signal, killed, oom, self.log_end, self.started, self.clock.wall())
            self.tell()

    def warmed(self, failed: str = "") -> None:
        """The program that warms is ready, or `failed`."""
        self.warm = f"failed: {failed}" if failed else "ready"
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
        return SlotStatus(
            self.phase,
            self.attempt,
            self.log_end,
            last,
            self.exit,
            ready and self.warm != "warming",
            paused,
            self.input_open,
            tuple(given.id for given in self.inputs),
            self.warm,
            self.warm_key,
        )
