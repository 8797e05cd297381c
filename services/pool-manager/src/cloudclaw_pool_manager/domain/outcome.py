"""How an attempt ended, and what its end means."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cloudclaw.agents.events import Usage
from cloudclaw.coordination.records import AttemptState, EndReason, SnapshotPointer
from cloudclaw_pool_manager.domain.attempt import Exit, KillReason
from cloudclaw_pool_manager.domain.models import ModelUse


class Phase(enum.IntEnum):
    """Phase of an attempt on its node, equal to `cloudclaw.v1.AttemptPhase`."""

    PREPARING = 1
    RUNNING = 2
    FROZEN = 3
    SAVING = 4
    REPORTING = 5


class Verdict(enum.IntEnum):
    """What the leader did with a report, equal to `cloudclaw.v1.ReportVerdict.Verdict`."""

    COMMITTED = 1
    FENCED = 2
    RETRY = 3


@dataclass(frozen=True, slots=True)
class FileChange:
    """One workspace file that differs from the base; a size is None where the file is absent."""

    path: bytes
    old_size: int | None
    new_size: int | None


@dataclass(frozen=True, slots=True)
class KeptArtifact:
    """One file kept beside the snapshot; `path` is relative to the workspace, `digest` its SHA-256 in hex."""

    path: bytes
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt leaves behind. Times are wall clock seconds, 0 where it never came so far.

    `usage` and `model_use` are this attempt's alone, as its agent and as the gateway counted; `inputs`: messages that
    its session holds: all up to this number.
    """

    state: AttemptState
    reason: EndReason
    message: str
    retryable: bool = False
    exit_code: int | None = None
    log_end: int = 0
    snapshot: SnapshotPointer | None = None
    final_message: str = ""
    session_id: str = ""
    changes: Sequence[FileChange] = ()
    artifacts: Sequence[KeptArtifact] = ()
    artifacts_truncated: bool = False
    usage: Usage | None = None
    model_use: ModelUse | None = None
    inputs: int = 0
    prepared: float = 0.0
    started: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is reported of a checkpoint.

    Attributes:
        snapshot: stored already; None when it failed.
        request: the latest request that it answers, 0 for none.
        frozen: seconds that the processes stood still.
        failure: why there is no snapshot.
        session_id: of the agent's session, when the snapshot holds it.
        inputs, usage, model_use: as in `Outcome`, up to the snapshot.
        answered: the agent had answered all of these.
        final_message: of a conversation, its answer to the last of these; empty unless `answered`.
    """

    snapshot: SnapshotPointer | None
    request: int = 0
    frozen: float = 0.0
    failure: str = ""
    session_id: str = ""
    inputs: int = 0
    answered: bool = False
    final_message: str = ""
    usage: Usage | None = None
    model_use: ModelUse | None = None


_KILLED = {
    KillReason.RUN_TIMEOUT: (EndReason.RUN_TIMEOUT, "ran longer than its run timeout allows"),
    KillReason.SILENCE_TIMEOUT: (EndReason.SILENCE_TIMEOUT, "wrote no output for longer than its silence timeout"),
    KillReason.MEMORY_LIMIT: (EndReason.MEMORY_LIMIT, "reached its memory limit"),
    KillReason.PIDS_LIMIT: (EndReason.PIDS_LIMIT, "reached its limit of processes and threads"),
    KillReason.DISK_LIMIT: (EndReason.DISK_LIMIT, "reached its disk limit"),
    KillReason.LOG_LIMIT: (EndReason.LOG_LIMIT, "wrote more output than a log may hold"),
    KillReason.TURN_LIMIT: (EndReason.TURN_LIMIT, "reached its limit of turns"),
    KillReason.REQUEST_LIMIT: (EndReason.REQUEST_LIMIT, "reached its limit of requests to models"),
    KillReason.TOKEN_LIMIT: (EndReason.TOKEN_LIMIT, "reached its limit of tokens"),
    KillReason.SPEND_LIMIT: (EndReason.SPEND_LIMIT, "reached its limit of spending on models"),
    KillReason.DRAINED: (EndReason.DRAINED, "its node is drained; it goes on from its checkpoint"),
    KillReason.FENCED: (EndReason.NODE_LOST, "its node lost the lease on it"),
    KillReason.ORPHANED: (EndReason.NODE_LOST, "stayed frozen without a manager for too long"),
}


def of_kill(exit: Exit) -> Outcome | None:
    """The outcome of an attempt that CloudClaw or the kernel ended; None when it ended by itself.

    A kernel's kill for memory counts only when the task did not cope with it: what ends well is not the
    limit's doing.
    """
    if exit.killed is KillReason.CANCELED:
        return _ended(exit, AttemptState.CANCELED, EndReason.CANCELED, "canceled by its user")
    if exit.killed not in (KillReason.NONE, KillReason.ANSWERED):
        reason, message = _KILLED[exit.killed]
        retryable = reason in (EndReason.NODE_LOST, EndReason.DRAINED)
        return _ended(exit, AttemptState.FAILED, reason, message, retryable=retryable)
    if exit.oom_killed and exit.code:
        reason, message = _KILLED[KillReason.MEMORY_LIMIT]
        return _ended(exit, AttemptState.FAILED, reason, message)
    return None


def ended_here(outcome: Outcome) -> bool:
    """The program's story is over: it ended by itself or at a limit, and was not canceled, lost or handed over."""
    return outcome.reason not in (EndReason.CANCELED, EndReason.NODE_LOST, EndReason.DRAINED, EndReason.PARKED)


def _ended(exit: Exit, state: AttemptState, reason: EndReason, message: str, *, retryable: bool = False) -> Outcome:
    return Outcome(
        state=state,
        reason=reason,
        message=message,
        retryable=retryable,
        exit_code=exit.code,
        log_end=exit.log_end,
        started=exit.started,
        ended=exit.ended,
    )


def failed(reason: EndReason, message: str, *, now: float, prepared: float = 0.0, retryable: bool = False) -> Outcome:
    """An attempt that failed for a reason other than its program's own end."""
    return Outcome(AttemptState.FAILED, reason, message, retryable=retryable, prepared=prepared, ended=now)


def canceled(*, now: float, prepared: float = 0.0) -> Outcome:
    """An attempt that was canceled before its program started, or with its slot."""
    return Outcome(AttemptState.CANCELED, EndReason.CANCELED, "canceled by its user", prepared=prepared, ended=now)


def parked(outcome: Outcome) -> Outcome:
    """An answer after which the conversation waits for its user, elsewhere and later."""
    return replace(
        outcome,
        state=AttemptState.FAILED,
        reason=EndReason.PARKED,
        message="waits for its user",
        retryable=True,
    )


def given_up(outcome: Outcome) -> Outcome:
    """Canceled after its program's own end, while what it left waited to be stored."""
    message = "canceled by its user while its files waited for the object store"
    return replace(
        outcome,
        state=AttemptState.CANCELED,
        reason=EndReason.CANCELED,
        message=message,
        retryable=False,
        artifacts=(),
        artifacts_truncated=False,
    )


def unsaved(outcome: Outcome, message: str, *, retryable: bool) -> Outcome:
    """A success whose files could not be kept, which is none."""
    return replace(
        outcome,
        state=AttemptState.FAILED,
        reason=EndReason.SNAPSHOT_FAILED,
        message=message,
        retryable=retryable,
    )
