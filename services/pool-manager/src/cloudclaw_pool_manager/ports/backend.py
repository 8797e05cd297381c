"""The backend port: where slots live. `bubblewrap` and `docker` are adapters of it."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from cloudclaw_pool_manager.domain.attempt import AttemptId, Exit, KillReason, Launch, Limits, LogFrame, Usage


class SlotPhase(enum.StrEnum):
    """What a slot's supervisor is doing."""

    IDLE = "idle"
    RUNNING = "running"
    FROZEN = "frozen"
    EXITED = "exited"
    """The sandbox is gone; its log and exit are kept until `release`."""


class Mechanism(enum.StrEnum):
    """What enforces a limit on this node."""

    NONE = "none"
    RLIMIT = "rlimit"
    CGROUP_V1 = "cgroup_v1"
    CGROUP_V2 = "cgroup_v2"
    WATCHED = "watched"


@dataclass(frozen=True, slots=True)
class Enforcement:
    """Which mechanism holds each limit; shown by `ListSlots`."""

    cpu: Mechanism
    memory: Mechanism
    pids: Mechanism
    disk: Mechanism


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """A slot as its supervisor reports it.

    Attributes:
        phase: what it is doing.
        attempt: the attempt in it, None when IDLE.
        log_end: bytes of log so far.
        last_output: boot time of the last byte of output, or of the start.
        exit: set when EXITED.
        sandbox_ready: a sandbox is built and waits for its task.
        paused: FROZEN by `Slot.freeze` alone; no deadline has passed.
        input_open: `Slot.input` still reaches the program. A program that closed its standard input itself is not
            noticed.
        inputs: ids of the inputs that the attempt was given, in order, as of the last `Slot.status`.
        warm: of an IDLE slot: empty, `warming`, `ready`, or `failed: ` and why; a failed one is cold again.
        warm_key: what is warm, or failed to be.
    """

    phase: SlotPhase
    attempt: AttemptId | None = None
    log_end: int = 0
    last_output: float = 0.0
    exit: Exit | None = None
    sandbox_ready: bool = False
    paused: bool = False
    input_open: bool = False
    inputs: tuple[str, ...] = ()
    warm: str = ""
    warm_key: str = ""


class EveryInode(Collection[int]):
    """Holds every inode there may be, and can be neither counted nor listed."""

    def __contains__(self, inode: object) -> bool:
        return True

    def __iter__(self) -> Iterator[int]:
        raise TypeError("there is no list of every inode; ask with `in`")

    def __len__(self) -> int:
        raise TypeError("there is no number of every inode; ask with `in`")

    def __bool__(self) -> bool:
        return True


EVERY_INODE: Final = EveryInode()


class SlotFailedError(Exception):
    """The slot cannot serve: its supervisor is gone or does not answer. Destroy it and provision another."""


class FencedIncarnationError(Exception):
    """The supervisor obeys a newer incarnation of the manager; this one must stop using the slot."""


class Slot(Protocol):
    """One warm slot and the connection to its supervisor.

    Every method may raise `SlotFailedError` when the supervisor is gone, and `FencedIncarnationError`
    when a newer manager has taken over. Calls for an attempt name it by uid; a call for another attempt
    than the slot holds raises `SlotFailedError`.
    """

    @property
    def name(self) -> str:
        """`slot-0` … on this node."""
        ...

    @property
    def pid(self) -> int:
        """Host process id of the supervisor."""
        ...

    @property
    def uid(self) -> int:
        """Host uid of its sandboxes, never 0."""
        ...

    @property
    def uid_shared(self) -> bool:
        """True when other slots share the uid (the manager does not run as root)."""
        ...

    @property
    def enforcement(self) -> Enforcement:
        """What holds the limits here."""
        ...

    async def start(self, attempt: AttemptId, launch: Launch, limits: Limits, tree: Path, deadline: float) -> None:
        """Attach `tree` and hand the waiting sandbox (or a fresh one) to the task.

        `tree` holds `workspace` and `home`; they become `/workspace` and `/home/agent`. `deadline` is a
        boot time (design rule 3). Returns when the task was started; a program that cannot be executed
        still starts and ends with code 127 or 126. Idempotent by `attempt.uid`.

        With `launch.warm_key` the task goes on in the warm program of that key: the tree arrives, what the program
        printed so far is dropped, `note` and `stdin` are given, limits and deadline begin. Without it a warm program is
        discarded, which costs the time of a new sandbox.

        Raises `PreconditionError(reason="NOT_WARM")`, and nothing has happened, when no program of that key is `ready`
        under limits that fit (`tmp_bytes` and `file_bytes` are fixed when it starts): start again without the key.
        `PreconditionError(reason="OLD_SUPERVISOR")` where an adopted supervisor does not know `keep_stdin`, `note` or
        `warm_key`.
        """
        ...

    async def input(
        self, uid: str, message_id: str, *, note: bytes = b"", data: bytes = b"", close: bool = False
    ) -> bool:
        """Give the program `data` on standard input after all that it was given before, and end it there with `close`.

        `note` (as `Launch.note`) goes to the log when the input is taken, whenever the program reads it. A frozen
        sandbox takes input for later. Answers False, having done nothing, when the attempt was given `message_id`
        before, by an earlier manager too.

        Raises:
            PreconditionError: reason `INPUT_CLOSED`: it ended, is being ended, or its standard input is closed;
                `OLD_SUPERVISOR`.
            UnavailableError: reason `INPUT_FULL`: the program has not read 16 MiB of earlier input, or the log waits
                to be made durable.
            InvalidArgumentError: no message id, or a `note` or `data` that is too large ever to be taken.
        """
        ...

    async def egress(self, uid: str) -> int:
        """A descriptor of the TCP listener on 127.0.0.1:8787 inside the attempt's sandbox; the caller closes it.

        Whoever accepts there speaks with this attempt alone. Connections made before wait in its backlog.

        Raises:
            PreconditionError: reason `NO_EGRESS`: the slot was made without; `OLD_SUPERVISOR`.
        """
        ...

    async def warm(self, launch: Launch, limits: Limits, ready: str, *, within: float = 60.0) -> None:
        """Start a program in the waiting sandbox, before there is an attempt, for a `start` with its `warm_key`.

        Its standard input gets `launch.stdin` and stays open. It is `ready` when a line of its standard output matches
        the regular expression `ready`; `SlotStatus.warm` tells that, and why it failed: it ended, printed 256 KiB
        before that line, took longer than `within` seconds, or hit a limit. `limits` hold from its start; `usage("")`
        tells what it uses. There is no tree yet: `/workspace` and `/home/agent` are empty and not writable, `/tmp` is,
        and stays. A working directory that it has there stays the old one when the tree arrives, while absolute paths
        lead into the tree. Idempotent by `launch.warm_key`; another key discards what was warm.

        Raises:
            PreconditionError: reason `NO_WARM`: trees arrive later only where the manager is root; `OLD_SUPERVISOR`.
        """
        ...

    async def set_deadline(self, uid: str, deadline: float) -> None:
        """Move the self-fencing deadline. Past it the supervisor freezes the sandbox by itself, and kills
        it (`KillReason.ORPHANED`) when no manager has spoken to it for another `orphan_ttl`.

        A deadline in the future does not thaw: that is `thaw`, after a linearizable read of the token.
        Any call at all counts as the manager having spoken.
        """
        ...

    async def freeze(self, uid: str) -> None:
        """Pause: stop all of the sandbox's processes and return when they are stopped. `resume` ends it.

        Raises `UnavailableError` when they do not stand still in time (`resume` all the same), and
        `PreconditionError(reason="OLD_SUPERVISOR")` where an adopted supervisor is too old to `resume`.
        """
        ...

    async def mapped(self, uid: str) -> Collection[int]:
        """Inodes of the files that the sandbox's processes have mapped shared, whatever they may do there just now.

        For the time of a pause; what is read is bounded. `EVERY_INODE` where it cannot be told: a process keeps its
        mappings from us (it is not dumpable, and the manager is not root), or there are too many.
        """
        ...

    async def resume(self, uid: str, deadline: float) -> bool:
        """End a pause: let the processes go on until `deadline`, and answer True. Answers False and leaves them
        frozen when a deadline has passed meanwhile, or `deadline` has, or the attempt has ended: who decides about a
        `thaw` is whoever reads the token (design rule 3)."""
        ...

    async def thaw(self, uid: str, deadline: float) -> None:
        """Let them go on until `deadline`, whatever froze them."""
        ...

    async def stop(self, uid: str, reason: KillReason, grace: float) -> Exit:
        """End the sandbox: SIGTERM, SIGKILL after `grace` seconds (at once when 0 or frozen).

        Returns when every process is gone. Idempotent: an attempt that has ended already keeps its
        first exit.
        """
        ...

    async def status(self) -> SlotStatus:
        """Ask the supervisor."""
        ...

    def updates(self) -> AsyncIterator[SlotStatus]:
        """Statuses as they change: log growth (coalesced to at most one in 5 ms), freeze, thaw, exit.

        The first one is the present status. Ends with `SlotFailedError` when the supervisor is gone.
        """
        ...

    async def read_log(self, uid: str, offset: int, max_bytes: int) -> Sequence[LogFrame]:
        """Frames from `offset` on, at most about `max_bytes`; empty when there is no more yet."""
        ...

    async def forget_log(self, uid: str, upto: int) -> None:
        """The bytes below `upto` are durable elsewhere; the spool may drop them."""
        ...

    async def usage(self, uid: str) -> Usage:
        """Resources used by the attempt so far; with an empty `uid`, by the sandbox of an IDLE slot."""
        ...

    async def release(self, uid: str) -> None:
        """After `EXITED`: detach the tree, drop the spool, build the next sandbox; the slot is IDLE.

        The tree is untouched and, when this returns, no longer reachable from any sandbox.
        """
        ...

    async def close(self) -> None:
        """Disconnect and leave the supervisor running, to be adopted later."""
        ...


class PoolAdapter(Protocol):
    """The slots of one template on this host.

    The number of slots is a hard cap: as many slot files as slots, each locked by its supervisor
    (design §6), so two managers at once do not exceed it either.
    """

    async def probe(self) -> None:
        """Raise `cloudclaw.errors.PreconditionError` saying what to install or allow when slots cannot
        be isolated here. Nothing ever runs unisolated instead."""
        ...

    async def adopt(self) -> Sequence[Slot]:
        """Connect to the slots that an earlier manager left running, raising the supervisors' incarnation."""
        ...

    async def provision(self, number: int) -> Slot:
        """Start slot `number` (0-based), or raise `SlotFailedError` when it is locked by another."""
        ...

    async def destroy(self, slot: Slot) -> None:
        """Kill the slot's processes, sandbox included; detach and remove what it had. Idempotent."""
        ...

    async def close(self) -> None:
        """Disconnect from all slots and leave them running."""
        ...
