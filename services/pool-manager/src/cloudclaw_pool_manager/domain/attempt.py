"""What a node knows of an attempt: identity, launch, limits, end. No I/O here."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class AttemptId:
    """One attempt, as the node, the supervisor and the leader name it.

    Attributes:
        tenant: owner.
        task: task id.
        number: attempt number, from 1.
        uid: random id; names the attempt's objects and its spool.
        token: fencing token (create revision of the attempt's lease key).
    """

    tenant: str
    task: str
    number: int
    uid: str
    token: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What one attempt may use. Every field is set: a template's defaults are applied before.

    Attributes:
        cpu_millis: thousandths of a core.
        memory_bytes: resident memory and page cache charged to the attempt.
        pids: processes and threads.
        disk_bytes: workspace and home together.
        file_bytes: one file.
        tmp_bytes: each of `/tmp` and `/dev/shm`.
        log_bytes: output, both streams together; 0 for the backend's own limit, which is never exceeded. Notes, which
            are not the task's, come on top.
    """

    cpu_millis: int = 2000
    memory_bytes: int = 2 << 30
    pids: int = 512
    disk_bytes: int = 2 << 30
    file_bytes: int = 256 << 20
    tmp_bytes: int = 256 << 20
    log_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start inside a sandbox.

    Attributes:
        argv: program and arguments, at least one; looked up on the sandbox's PATH.
        env: the whole environment; nothing is inherited. Names match `[A-Za-z_][A-Za-z0-9_]*`.
        stdin: bytes given on standard input, then end of file unless `keep_stdin`.
        cwd: absolute, inside the sandbox.
        keep_stdin: leave standard input open for `Slot.input`, whose `close` ends it.
        note: opens the log as one SYSTEM frame, before any output; at most 1 MiB, ends with a newline, empty for none.
        warm_key: a name of the caller's for a program and all it was started with. `Slot.warm` gives it to what it
            starts; `Slot.start` goes on in the program that carries it, and `argv`, `env` and `cwd` then say nothing.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    cwd: str = "/workspace"
    keep_stdin: bool = False
    note: bytes = b""
    warm_key: str = ""


class KillReason(enum.StrEnum):
    """Why CloudClaw ended a sandbox, when it did."""

    NONE = ""
    CANCELED = "canceled"
    RUN_TIMEOUT = "run_timeout"
    SILENCE_TIMEOUT = "silence_timeout"
    MEMORY_LIMIT = "memory_limit"
    PIDS_LIMIT = "pids_limit"
    DISK_LIMIT = "disk_limit"
    LOG_LIMIT = "log_limit"
    DRAINED = "drained"
    """Its node is drained; it goes on elsewhere from the checkpoint at which it stood still."""
    TURN_LIMIT = "turn_limit"
    REQUEST_LIMIT = "request_limit"
    TOKEN_LIMIT = "token_limit"  # noqa: S105 - no password
    SPEND_LIMIT = "spend_limit"
    ANSWERED = "answered"
    """It gave its answer, its input was closed, and it did not end by itself: no fault, its answer counts."""
    FENCED = "fenced"
    """The lease was lost; nothing of the attempt may be published."""
    ORPHANED = "orphaned"
    """Frozen past its deadline, and no manager came for another TTL."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How the sandbox ended; its processes are gone when this exists.

    Attributes:
        code: exit code, 128 + n after signal n, 127 / 126 when the program was not found / not executable.
        signal: the signal that ended the program, 0 for none.
        killed: why CloudClaw ended it, `NONE` when it ended by itself.
        oom_killed: the kernel killed a process of it for memory.
        log_end: bytes of log in all.
        started: wall clock seconds.
        ended: wall clock seconds.
        failed: not empty when the program never ran or lost its sandbox through no act of its own: the slot's
            failure, in words.
    """

    code: int
    signal: int
    killed: KillReason
    oom_killed: bool
    log_end: int
    started: float
    ended: float
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Resources of one attempt as measured; 0 where the node cannot measure."""

    memory_bytes: int = 0
    memory_peak_bytes: int = 0
    pids: int = 0
    cpu_seconds: float = 0.0
    disk_bytes: int = 0


class Stream(enum.IntEnum):
    """Log stream numbers, equal to `cloudclaw.v1.LogStream`."""

    STDOUT = 1
    STDERR = 2
    SYSTEM = 3


@dataclass(frozen=True, slots=True)
class LogFrame:
    """A piece of log: `data` begins at byte `offset` of the attempt's log."""

    offset: int
    stream: Stream
    time: float
    data: bytes
