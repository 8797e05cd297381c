"""The rules of a task's life."""

from __future__ import annotations

from collections.abc import Callable

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
from cloudclaw.errors import InvalidArgumentError, PreconditionError

NOW = 1_700_000_000.0
HEAD = SnapshotPointer(id="snap-head", manifest="m")
CHECKPOINT = SnapshotPointer(id="snap-check", manifest="c")
PLAN = Plan(workspace="site", mode=Mode.EXCLUSIVE, max_attempts=5, initial_backoff=1.0, max_backoff=6.0)


def queued(plan: Plan = PLAN) -> TaskRecord:
    return life.queued(tenant="acme", task="task-1", plan=plan, now=NOW, op_id="op-0")


def running(task: TaskRecord | None = None, plan: Plan = PLAN) -> TaskRecord:
    task = task or queued(plan)
    if task.due:
        task = life.became_due(task, NOW, op_id="op-due")
    return life.claimed(task, "node-1", f"uid-{task.attempt + 1}", HEAD, NOW + 1, "op-1")


def failed(
    task: TaskRecord, reason: EndReason = EndReason.NONZERO_EXIT, *, retryable: bool = False, now: float = NOW + 2
) -> TaskRecord:
    return life.reported(task, now, AttemptState.FAILED, reason, "why", op_id="op-2", exit_code=3, retryable=retryable)


def lost(task: TaskRecord, now: float = NOW + 2) -> TaskRecord:
    return life.lost(task, now, op_id="op-2", message="silent", log_end=7)


def test_a_submitted_task_waits_in_the_queue() -> None:
    task = queued()
    assert (task.state, task.due, task.attempt, task.queued, task.created) == (TaskState.QUEUED, 0, 0, NOW, NOW)
    assert [event.state for event in task.events] == [TaskState.QUEUED]


def test_labels_that_would_fill_a_record_are_refused() -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        queued(replace(PLAN, labels={f"key-{n}": "x" * 255 for n in range(32)}))
    assert refused.value.field == "spec.labels"


def test_a_claim_counts_the_attempt_and_names_its_holder() -> None:
    task = running()
    assert (task.state, task.attempt, task.uid, task.node, task.op_id) == (
        TaskState.RUNNING,
        1,
        "uid-1",
        "node-1",
        "op-1",
    )
    assert task.base == HEAD
    [attempt] = task.attempts
    assert (attempt.number, attempt.uid, attempt.state, attempt.base) == (1, "uid-1", AttemptState.RUNNING, HEAD.id)


def test_an_attempt_starts_from_the_checkpoint_but_the_head_must_stay_the_head() -> None:
    task = life.checkpointed(running(), NOW, CHECKPOINT, op_id="op-c")
    again = running(lost(task))
    assert again.attempts[-1].base == CHECKPOINT.id
    assert again.base == HEAD


def test_a_delayed_task_cannot_be_claimed() -> None:
    with pytest.raises(PreconditionError):
        life.claimed(lost(running()), "node-1", "uid", HEAD, NOW, "op")


def test_success_ends_the_task() -> None:
    task = life.reported(
        running(),
        NOW + 2,
        AttemptState.SUCCEEDED,
        EndReason.COMPLETED,
        op_id="op-2",
        exit_code=0,
        log_end=10,
        token=99,
        started=NOW + 1.5,
        result="cmVz",
    )
    assert (task.state, task.uid, task.node, task.due, task.result) == (TaskState.SUCCEEDED, "", "", 0, "cmVz")
    [end] = task.attempts
    assert (end.state, end.reason, end.exit_code, end.log_end, end.token) == (
        AttemptState.SUCCEEDED,
        EndReason.COMPLETED,
        0,
        10,
        99,
    )
    assert (end.started, end.ended) == (NOW + 1.5, NOW + 2)


def test_a_failure_that_is_nobody_s_fault_but_the_task_s_ends_it() -> None:
    task = failed(running())
    assert task.state is TaskState.FAILED
    assert task.events[-1].reason is EndReason.NONZERO_EXIT


@pytest.mark.parametrize(
    ("reason", "retryable", "retry_on", "again"),
    [
        (EndReason.NONZERO_EXIT, True, (), True),
        (EndReason.NONZERO_EXIT, False, (EndReason.NONZERO_EXIT,), True),
        (EndReason.NONZERO_EXIT, False, (EndReason.INTERNAL,), False),
        (EndReason.SLOT_FAILED, False, (EndReason.NONZERO_EXIT,), True),
        (EndReason.NODE_LOST, False, (EndReason.NONZERO_EXIT,), True),
        (EndReason.INTERNAL, False, (), True),
        (EndReason.INTERNAL, False, (EndReason.NONZERO_EXIT,), False),
        (EndReason.SNAPSHOT_FAILED, False, (), False),
        (EndReason.SNAPSHOT_FAILED, True, (), True),
    ],
)
def test_which_failures_are_tried_again(
    reason: EndReason, retryable: bool, retry_on: tuple[EndReason, ...], again: bool
) -> None:
    task = failed(running(plan=replace(PLAN, retry_on=retry_on)), reason, retryable=retryable)
    assert task.state is (TaskState.QUEUED if again else TaskState.FAILED)
    assert bool(task.due) is again


def test_pauses_grow_up_to_the_longest_and_attempts_run_out() -> None:
    task, pauses = queued(), []
    for _ in range(5):
        task = failed(running(task), retryable=True)
        pauses.append(task.due - (NOW + 2) if task.due else None)
    assert pauses == [1.0, 2.0, 4.0, 6.0, None]
    assert task.state is TaskState.FAILED
    assert [attempt.number for attempt in task.attempts] == [1, 2, 3, 4, 5]


def test_an_absurd_backoff_is_only_the_longest_pause() -> None:
    assert life.backoff(replace(PLAN, backoff_multiplier=1e300), 99) == PLAN.max_backoff
    assert life.backoff(replace(PLAN, initial_backoff=0.0), 3) == 0.0


def test_the_first_losses_in_a_row_wait_for_nothing_and_further_ones_do() -> None:
    task, pauses = queued(), []
    for _ in range(4):
        task = lost(running(task))
        pauses.append(task.due - (NOW + 2))
    assert pauses == [0.0, 0.0, 1.0, 2.0]
    assert lost(running(task)).state is TaskState.FAILED


def test_a_failure_in_between_begins_a_new_row_of_losses() -> None:
    task = lost(running(lost(running())))
    task = failed(running(task), retryable=True)
    assert lost(running(task)).due == NOW + 2


def test_a_task_that_loses_its_node_every_time_fails_with_its_history() -> None:
    task = queued(replace(PLAN, max_attempts=3))
    for _ in range(3):
        task = lost(running(task))
    assert task.state is TaskState.FAILED
    assert [(end.state, end.reason, end.log_end) for end in task.attempts] == [
        (AttemptState.LOST, EndReason.NODE_LOST, 7)
    ] * 3
    assert task.events[-1].reason is EndReason.NODE_LOST


@pytest.mark.parametrize("state", [AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.CANCELED])
def test_once_canceled_a_report_ends_it_canceled_whatever_it_says(state: AttemptState) -> None:
    task = life.cancel_requested(running(), NOW + 1, op_id="op-c")
    ended = life.reported(task, NOW + 2, state, EndReason.INTERNAL, op_id="op-2", retryable=True)
    assert ended.state is TaskState.CANCELED
    assert ended.attempts[-1].state is AttemptState.CANCELED


def test_once_canceled_a_lost_attempt_is_not_tried_again() -> None:
    task = lost(life.cancel_requested(running(), NOW + 1, op_id="op-c"))
    assert (task.state, task.due) == (TaskState.CANCELED, 0)
    assert task.attempts[-1].state is AttemptState.LOST


def test_once_canceled_an_attempt_given_back_ends_the_task() -> None:
    task = life.unclaimed(life.cancel_requested(running(), NOW, op_id="op-c"), NOW, op_id="op-u")
    assert (task.state, task.attempt) == (TaskState.CANCELED, 0)


def test_a_node_that_cancels_by_itself_is_at_fault() -> None:
    task = life.reported(running(), NOW + 2, AttemptState.CANCELED, EndReason.CANCELED, op_id="op-2")
    assert task.state is TaskState.QUEUED
    assert task.attempts[-1].reason is EndReason.INTERNAL


def test_a_report_of_a_lost_attempt_is_a_loss() -> None:
    task = life.reported(running(), NOW + 2, AttemptState.LOST, EndReason.NODE_LOST, op_id="op-2")
    assert (task.attempts[-1].state, task.due) == (AttemptState.LOST, NOW + 2)


def test_asking_twice_to_cancel_changes_nothing() -> None:
    task = life.cancel_requested(running(), NOW, op_id="op-c")
    assert life.cancel_requested(task, NOW + 1, op_id="op-d") is task


def test_an_attempt_given_back_is_not_counted_and_keeps_its_place() -> None:
    task = life.unclaimed(running(), NOW + 5, op_id="op-u", message="no slot")
    assert (task.state, task.attempt, task.attempts, task.uid, task.base) == (TaskState.QUEUED, 0, (), "", None)
    assert task.queued == NOW
    second = life.unclaimed(running(lost(running())), NOW + 5, op_id="op-u")
    assert second.attempt == 1
    assert second.base == HEAD


def test_a_task_that_became_due_waits_anew() -> None:
    task = life.became_due(lost(running()), NOW + 9, op_id="op-d")
    assert (task.due, task.queued) == (0, NOW + 9)
    with pytest.raises(PreconditionError):
        life.became_due(task, NOW, op_id="op-d")


def test_queued_and_delayed_tasks_can_be_canceled_or_failed() -> None:
    for task in (queued(), lost(running())):
        assert life.canceled(task, NOW, op_id="op-c").state is TaskState.CANCELED
        ended = life.failed(task, NOW, EndReason.QUEUE_TIMEOUT, "too long", op_id="op-f")
        assert (ended.state, ended.due, ended.events[-1].reason) == (TaskState.FAILED, 0, EndReason.QUEUE_TIMEOUT)


def test_steps_that_a_state_does_not_allow_are_refused() -> None:
    ended = life.canceled(queued(), NOW, op_id="op-c")
    steps: tuple[Callable[[], TaskRecord], ...] = (
        lambda: running(ended),
        lambda: lost(ended),
        lambda: lost(queued()),
        lambda: failed(queued()),
        lambda: life.canceled(running(), NOW, op_id="op"),
        lambda: life.cancel_requested(queued(), NOW, op_id="op"),
        lambda: life.unclaimed(queued(), NOW, op_id="op"),
        lambda: life.checkpointed(queued(), NOW, CHECKPOINT, op_id="op"),
        lambda: life.reported(running(), NOW, AttemptState.RUNNING, EndReason.COMPLETED, op_id="op"),
    )
    for step in steps:
        with pytest.raises(PreconditionError):
            step()


def test_due_times_are_whole_milliseconds_as_their_keys_are() -> None:
    task = failed(running(), retryable=True, now=NOW + 0.123456)
    assert task.due == pytest.approx(NOW + 1.123, abs=1e-6)
    assert round(task.due * 1000) / 1000 == task.due
