"""What a node reports of an attempt's end, and whether it is to be believed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cloudclaw.coordination.records import AttemptState, EndReason, Mode, SnapshotPointer, TaskRecord


@dataclass(frozen=True, slots=True)
class Outcome:
    """The part of a report that decides the task's state. `started`: unix seconds by the node's clock; `inputs`: the
    snapshot contains all up to this number; `session`: the agent's."""

    state: AttemptState
    reason: EndReason
    message: str
    exit_code: int | None
    log_end: int
    snapshot: SnapshotPointer | None
    started: float
    retryable: bool
    inputs: int = 0
    session: str = ""

    @property
    def parks(self) -> bool:
        """The attempt waits for input, and gives its slot back."""
        return self.reason is EndReason.PARKED


@dataclass(frozen=True, slots=True)
class Commit:
    """What a finish does to the workspace: the snapshot to keep, and whether the head moves to it."""

    snapshot: SnapshotPointer | None = None
    move_head: bool = False


def checked(record: TaskRecord, outcome: Outcome) -> Outcome:
    """`outcome` as far as it can be true of this task.

    Only a conversation parks, and only with a snapshot to go on from: otherwise its node is at fault. A conversation
    whose agent ended by itself, while inputs that were accepted are not in what it left, or are not due yet, has not
    ended: it is parked, and goes on with them.
    """
    talks = record.plan.interactive and not record.cancel_requested
    if outcome.parks and not record.cancel_requested and (not talks or outcome.snapshot is None):
        why = "without a snapshot" if talks else "although it is no conversation"
        message = f"parked by its node {why}"
        return replace(outcome, reason=EndReason.INTERNAL, state=AttemptState.FAILED, message=message, retryable=True)
    answered = max(outcome.inputs, record.inputs_done)
    unanswered = outcome.state is AttemptState.SUCCEEDED and (answered < record.inputs or record.later > 0)
    if talks and unanswered and not outcome.parks and outcome.snapshot is not None:
        return replace(outcome, reason=EndReason.PARKED, state=AttemptState.FAILED)
    return outcome


def commit_of(record: TaskRecord, outcome: Outcome) -> Commit:
    """Only success keeps a snapshot, and only in a workspace whose mode keeps one; a canceled task never does
    (rules 6 and 7). An unchanged tree moves nothing."""
    plan = record.plan
    if outcome.state is not AttemptState.SUCCEEDED or record.cancel_requested or not plan.workspace:
        return Commit()
    if plan.mode is Mode.EPHEMERAL or outcome.snapshot is None:
        return Commit()
    if record.base is not None and outcome.snapshot.id == record.base.id:
        return Commit()
    return Commit(outcome.snapshot, move_head=plan.mode is Mode.EXCLUSIVE)


def committed(record: TaskRecord, uid: str) -> bool:
    """Whether the end of attempt `uid` was taken from its own report: a repeated report is answered COMMITTED."""
    ends = [attempt for attempt in record.attempts if attempt.uid == uid]
    return bool(ends) and ends[0].state not in (AttemptState.RUNNING, AttemptState.LOST)
