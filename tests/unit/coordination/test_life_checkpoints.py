"""Checkpoints and hand-overs in a task's life."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cloudclaw.coordination import life
from cloudclaw.coordination.records import (
    AttemptState,
    EndReason,
    Mode,
    Plan,
    SnapshotPointer,
    TaskRecord,
    TaskState,
)
from cloudclaw.errors import PreconditionError

NOW = 1_700_000_000.0
HEAD = SnapshotPointer(id="snap-head", manifest="m")
CHECKPOINT = SnapshotPointer(id="snap-check", manifest="c")
PLAN = Plan(workspace="site", mode=Mode.EXCLUSIVE, max_attempts=2, initial_backoff=4.0)


def running(task: TaskRecord | None = None) -> TaskRecord:
    task = task or life.queued(tenant="acme", task="task-1", plan=PLAN, now=NOW, op_id="op-0", request="r")
    if task.due:
        task = life.became_due(task, NOW, op_id="op-due")
    return life.claimed(task, "node-1", f"uid-{task.attempt + 1}", HEAD, NOW + 1, "op-1")


def checkpointed(task: TaskRecord, request: int = 0) -> TaskRecord:
    return life.checkpointed(task, NOW + 2, CHECKPOINT, op_id="op-c", request=request, frozen=0.0123)


def wanted(task: TaskRecord) -> TaskRecord:
    return life.checkpoint_wanted(task, NOW + 2, op_id="op-w")


def refused(task: TaskRecord, request: int, failure: str = "over the quota") -> TaskRecord:
    return life.checkpoint_refused(task, NOW + 3, failure, op_id="op-r", request=request)


def ended(
    task: TaskRecord, reason: EndReason, state: AttemptState = AttemptState.FAILED, *, retryable: bool = False
) -> TaskRecord:
    return life.reported(task, NOW + 9, state, reason, op_id="op-e", retryable=retryable)


def drained(task: TaskRecord) -> TaskRecord:
    return ended(task, EndReason.DRAINED)


def test_a_task_remembers_the_request_that_made_it() -> None:
    assert running().request == "r"


OLD = SnapshotPointer(id="snap-old", manifest="o")


@pytest.mark.parametrize(("mode", "kept"), [(Mode.EXCLUSIVE, HEAD), (Mode.FORK, OLD)])
def test_who_holds_the_writer_keeps_the_base_it_began_with(mode: Mode, kept: SnapshotPointer) -> None:
    plan = Plan(workspace="site", mode=mode)
    task = running(life.queued(tenant="acme", task="task-1", plan=plan, now=NOW, op_id="op-0"))
    task = life.became_due(ended(task, EndReason.SLOT_FAILED, retryable=True), NOW, op_id="op-due")
    again = life.claimed(task, "node-2", "uid-2", OLD, NOW + 9, "op-2")
    assert (again.base, again.attempts[-1].base) == (kept, kept.id), "however old the head is that a leader sees"


def test_a_first_attempt_that_took_a_checkpoint_is_not_given_back() -> None:
    with pytest.raises(PreconditionError):
        life.unclaimed(checkpointed(running()), NOW + 3, op_id="op-u")
    again = life.became_due(ended(checkpointed(running()), EndReason.SLOT_FAILED, retryable=True), NOW, op_id="op-due")
    assert life.unclaimed(running(again), NOW + 3, op_id="op-u").checkpoint == CHECKPOINT


def test_a_checkpoint_says_when_it_was_taken_and_how_long_the_processes_stood() -> None:
    task = checkpointed(running())
    assert (task.checkpoint, task.checkpoint_time, task.frozen) == (CHECKPOINT, NOW + 2, 0.0123)
    assert (task.state, task.op_id, task.updated) == (TaskState.RUNNING, "op-c", NOW + 2)


def test_an_attempt_knows_whether_it_resumes() -> None:
    first = running()
    assert not first.attempts[-1].resumed
    again = running(life.lost(checkpointed(first), NOW, op_id="op-l"))
    assert [attempt.resumed for attempt in again.attempts] == [False, True]
    assert [attempt.base for attempt in again.attempts] == [HEAD.id, CHECKPOINT.id]


# -- on demand --


def test_requests_are_numbered_and_a_checkpoint_answers_those_up_to_its_own() -> None:
    task = wanted(wanted(running()))
    assert (task.checkpoint_wanted, task.checkpoint_served) == (2, 0)
    task = checkpointed(task, request=1)
    assert task.checkpoint_served == 1
    task = checkpointed(task, request=2)
    assert task.checkpoint_served == 2
    assert checkpointed(task, request=1).checkpoint_served == 2


def test_a_checkpoint_at_its_interval_answers_no_request() -> None:
    assert checkpointed(wanted(running())).checkpoint_served == 0


def test_a_node_answers_no_request_that_nobody_made() -> None:
    task = running()
    assert checkpointed(task, request=7).checkpoint_served == 0
    assert refused(task, request=7) is task
    assert refused(wanted(task), request=7).checkpoint_served == 1


def test_a_refused_checkpoint_says_why_and_leaves_the_earlier_one() -> None:
    task = refused(wanted(checkpointed(running())), request=1, failure="x" * 300)
    assert (task.checkpoint, task.checkpoint_served, task.state) == (CHECKPOINT, 1, TaskState.RUNNING)
    assert len(task.checkpoint_failure) == 200
    assert checkpointed(wanted(task), request=2).checkpoint_failure == ""


def test_a_refusal_without_a_word_is_still_told_from_a_success() -> None:
    assert refused(wanted(running()), request=1, failure="").checkpoint_failure


def test_a_refusal_that_is_repeated_changes_nothing() -> None:
    task = refused(wanted(running()), request=1)
    assert refused(task, request=1, failure="other") is task


@pytest.mark.parametrize("end", [EndReason.DRAINED, EndReason.INTERNAL])
def test_a_request_that_an_attempt_left_open_is_not_answered_by_the_next_one(end: EndReason) -> None:
    task = ended(wanted(checkpointed(running())), end)
    assert (task.checkpoint_wanted, task.checkpoint_served) == (1, 0)
    task = running(task)
    assert task.checkpoint_served == 1
    assert task.checkpoint_failure


def test_a_claim_with_no_request_open_says_of_none_that_it_failed() -> None:
    task = running(ended(checkpointed(wanted(running()), request=1), EndReason.INTERNAL))
    assert (task.checkpoint_served, task.checkpoint_failure) == (1, "")


def test_only_a_running_attempt_is_asked_or_answers() -> None:
    task = drained(checkpointed(running()))
    for step in (wanted, checkpointed, lambda task: refused(task, 1)):
        with pytest.raises(PreconditionError):
            step(task)


# -- what an end leaves --


def test_a_success_leaves_no_checkpoint() -> None:
    task = ended(checkpointed(running()), EndReason.COMPLETED, AttemptState.SUCCEEDED)
    assert (task.state, task.checkpoint) == (TaskState.SUCCEEDED, None)


def test_a_failure_and_a_cancel_leave_the_checkpoint_to_the_user() -> None:
    task = ended(checkpointed(running()), EndReason.NONZERO_EXIT)
    assert (task.state, task.checkpoint) == (TaskState.FAILED, CHECKPOINT)
    task = life.cancel_requested(checkpointed(running()), NOW, op_id="op-x")
    task = ended(task, EndReason.COMPLETED, AttemptState.SUCCEEDED)
    assert (task.state, task.checkpoint) == (TaskState.CANCELED, CHECKPOINT)
    task = life.canceled(drained(checkpointed(running())), NOW, op_id="op-x")
    assert task.checkpoint == CHECKPOINT


# -- hand-over --


def test_a_drained_attempt_is_given_back_and_goes_on_at_once() -> None:
    task = drained(checkpointed(running()))
    assert (task.state, task.due, task.attempt, task.given_back) == (TaskState.QUEUED, NOW + 9, 1, 1)
    assert (task.attempts[-1].state, task.attempts[-1].reason) == (AttemptState.FAILED, EndReason.DRAINED)
    assert running(task).attempts[-1].resumed


def test_a_drained_attempt_without_a_checkpoint_is_given_back_too_and_waits() -> None:
    task = drained(running())
    assert (task.state, task.due, task.given_back) == (TaskState.QUEUED, NOW + 13, 1)


def test_no_number_of_drains_uses_up_the_attempts() -> None:
    task = checkpointed(running())
    for _ in range(10):
        task = running(drained(task))
    assert (task.attempt, task.given_back) == (11, 10)
    task = running(ended(task, EndReason.INTERNAL))
    assert task.due == 0
    assert ended(task, EndReason.INTERNAL).state is TaskState.FAILED


@pytest.mark.parametrize("how", ["failed", "lost"])
def test_attempts_are_capped_without_those_given_back(how: str) -> None:
    task = running(drained(checkpointed(running())))
    for last in (False, True):
        if how == "lost":
            task = life.lost(task, NOW + 9, op_id="op-l")
        else:
            task = ended(task, EndReason.NONZERO_EXIT, retryable=True)
        assert task.state is (TaskState.FAILED if last else TaskState.QUEUED)
        if not last:
            task = running(task)
    assert (task.attempt, task.given_back) == (3, 1)


def test_the_backoff_counts_failures_and_no_drains() -> None:
    task = running(drained(running(drained(checkpointed(running())))))
    assert ended(task, EndReason.INTERNAL).due == NOW + 13


def test_a_cancel_wins_over_a_hand_over() -> None:
    task = life.cancel_requested(checkpointed(running()), NOW, op_id="op-x")
    task = drained(task)
    assert (task.state, task.given_back, task.due) == (TaskState.CANCELED, 0, 0)


def test_an_attempt_given_back_at_the_cap_still_goes_on() -> None:
    task = running(ended(checkpointed(running()), EndReason.INTERNAL))
    assert task.attempt == PLAN.max_attempts
    task = drained(task)
    assert (task.state, task.given_back) == (TaskState.QUEUED, 1)
    assert ended(running(task), EndReason.INTERNAL).state is TaskState.FAILED


def test_an_unclaim_after_a_drain_gives_back_only_its_own() -> None:
    task = running(drained(checkpointed(running())))
    task = life.unclaimed(task, NOW, op_id="op-u")
    assert (task.attempt, task.given_back, task.checkpoint) == (1, 1, CHECKPOINT)
    assert replace(running(task).attempts[-1], started=0).number == 2
