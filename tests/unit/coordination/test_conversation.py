"""The life of a conversation, step by step."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cloudclaw.coordination import conversation, life
from cloudclaw.coordination.bounds import fit
from cloudclaw.coordination.records import (
    MAX_TASK_BYTES,
    PAGE,
    AttemptState,
    EndReason,
    ModelUse,
    Plan,
    SnapshotPointer,
    TaskRecord,
    TaskState,
    Usage,
    decode,
    decode_page,
    encode,
    encode_page,
)
from cloudclaw.coordination.usage import model_use_sum, usage_sum
from cloudclaw.errors import DataLossError, PreconditionError, QuotaExceededError

NOW = 1_700_000_000.0
MIB = 1 << 20
ONE, TWO = SnapshotPointer(id="snap-1", manifest="m"), SnapshotPointer(id="snap-2", manifest="m")
PLAN = Plan(runtime="claude-code", interactive=True, idle_timeout=60.0, max_attempts=2, initial_backoff=4.0)


def queued(plan: Plan = PLAN) -> TaskRecord:
    return life.queued(tenant="acme", task="task-1", plan=plan, now=NOW, op_id="op")


def running(task: TaskRecord | None = None) -> TaskRecord:
    task = task or queued()
    return life.claimed(task, "node-1", f"uid-{task.attempt + 1}", None, NOW, "op")


def sent(task: TaskRecord, **how: object) -> TaskRecord:
    return conversation.sent(task, NOW + 5, op_id="op", **how)  # type: ignore[arg-type]


def parked(task: TaskRecord, snapshot: SnapshotPointer = ONE, **said: object) -> TaskRecord:
    return conversation.parked(task, NOW + 1, snapshot, op_id="op", **said)  # type: ignore[arg-type]


def test_a_parked_task_waits_for_its_idle_deadline() -> None:
    task = parked(running(), session="s", log_end=7, result="cmVzdWx0")
    assert (task.state, task.parked_since, task.due) == (TaskState.QUEUED, NOW + 1, NOW + 61)
    assert (task.checkpoint, task.session, task.result, task.node, task.uid) == (ONE, "s", "cmVzdWx0", "", "")
    end = task.attempts[-1]
    assert (end.state, end.reason, end.log_end) == (AttemptState.FAILED, EndReason.PARKED, 7)
    assert not task.state.ended


def test_an_input_wakes_it_and_the_next_attempt_has_it_to_answer() -> None:
    task = sent(parked(running()))
    assert (task.parked, task.due, task.queued, task.inputs, task.inputs_done) == (False, 0.0, NOW + 5, 1, 0)
    again = running(task)
    assert (again.attempt, again.attempts[-1].resumed) == (2, True)
    after = parked(again, TWO, inputs=1)
    assert (after.inputs_done, after.parked, after.checkpoint) == (1, True, TWO)


def test_what_a_snapshot_contains_is_never_more_than_there_is_nor_less_than_before() -> None:
    task = running(sent(sent(queued())))
    task = life.checkpointed(task, NOW, ONE, op_id="op", inputs=9)
    assert task.inputs_done == 2
    assert life.checkpointed(task, NOW, TWO, op_id="op", inputs=0).inputs_done == 2


def test_a_delayed_input_has_no_number_before_it_is_due() -> None:
    task = sent(parked(running()), due=NOW + 30)
    assert (task.parked, task.due, task.inputs, task.later, task.later_due) == (True, NOW + 30, 0, 1, NOW + 30)
    sooner = sent(task, due=NOW + 10)
    assert (sooner.due, sooner.later) == (NOW + 10, 2)
    woken = conversation.came_due(sooner, NOW + 10, 1, NOW + 30, op_id="op")
    assert (woken.parked, woken.inputs, woken.later, woken.later_due) == (False, 1, 1, NOW + 30)
    after = parked(running(woken), inputs=1)
    assert after.due == NOW + 30, "input to come keeps it from idling"


def test_it_closes_only_after_all_that_is_to_come() -> None:
    task = sent(parked(running()), due=NOW + 30, end=True)
    assert (task.closing, task.closes, task.parked) == (True, False, True)
    woken = conversation.came_due(task, NOW + 30, 1, 0.0, op_id="op")
    assert (woken.closes, woken.parked) == (True, False)


def test_the_end_alone_has_no_number_and_wakes_it() -> None:
    task = sent(parked(running()), text=False, end=True)
    assert (task.inputs, task.closes, task.parked) == (0, True, False)


def test_idling_closes() -> None:
    task = conversation.idled(parked(running()), NOW + 61, op_id="op")
    assert (task.closes, task.parked, task.due) == (True, False, 0.0)
    with pytest.raises(PreconditionError):
        conversation.idled(task, NOW, op_id="op")
    with pytest.raises(PreconditionError):
        conversation.idled(sent(parked(running()), due=NOW + 30), NOW, op_id="op")


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (queued(Plan()), "NOT_A_CONVERSATION"),
        (life.canceled(queued(), NOW, op_id="op"), "TASK_ENDED"),
        (life.cancel_requested(running(), NOW, op_id="op"), "TASK_ENDED"),
        (sent(queued(), end=True), "CONVERSATION_CLOSED"),
    ],
)
def test_what_takes_no_input_says_why(task: TaskRecord, reason: str) -> None:
    with pytest.raises(PreconditionError) as refused:
        sent(task)
    assert refused.value.reason == reason


def test_a_thousand_inputs_are_enough_but_the_end_is_always_taken() -> None:
    task = replace(queued(), inputs=990, later=10)
    with pytest.raises(QuotaExceededError):
        sent(task)
    assert sent(task, text=False, end=True).closing


def test_what_waits_for_its_answer_is_limited_in_bytes() -> None:
    task = replace(running(), waiting=0)
    for _ in range(16):
        task = sent(task, size=MIB)
    with pytest.raises(QuotaExceededError) as refused:
        sent(task, size=1)
    assert refused.value.reason == "TOO_MANY_INPUTS"
    with pytest.raises(QuotaExceededError):
        sent(task, size=1, due=NOW + 60)
    assert sent(task, text=False, end=True).closing, "the end is always taken"
    half = life.checkpointed(task, NOW, ONE, op_id="op", inputs=15)
    with pytest.raises(QuotaExceededError):
        sent(half, size=1)
    assert sent(life.checkpointed(task, NOW, ONE, op_id="op", inputs=16), size=MIB).waiting == MIB
    assert sent(parked(task, inputs=16), size=MIB).waiting == MIB
    assert decode(encode(task), TaskRecord).waiting == 16 * MIB


def test_what_is_to_come_later_waits_too() -> None:
    task = sent(running(), size=16 * MIB, due=NOW + 60)
    with pytest.raises(QuotaExceededError):
        sent(life.checkpointed(task, NOW, ONE, op_id="op"), size=1)
    assert sent(queued(), size=17 * MIB).waiting == 17 * MIB, "one alone is the service's to refuse"


def test_only_a_running_conversation_parks() -> None:
    for task in (queued(), running(queued(Plan())), life.cancel_requested(running(), NOW, op_id="op")):
        with pytest.raises(PreconditionError):
            parked(task)
    with pytest.raises(PreconditionError):
        life.reported(running(), NOW, AttemptState.FAILED, EndReason.PARKED, op_id="op")
    with pytest.raises(PreconditionError):
        life.became_due(parked(running()), NOW, op_id="op")


def test_an_answer_begins_the_count_of_attempts_anew_and_none_at_all_is_counted() -> None:
    task = sent(parked(running()))
    assert task.attempt - task.given_back == 0
    first = parked(running(task), TWO)
    assert (first.parked, first.due, first.given_back) == (False, NOW + 5, 1), "a pause, as after any failure"
    second = parked(running(life.became_due(first, NOW, op_id="op")), TWO)
    assert (second.state, second.events[-1].reason) == (TaskState.FAILED, EndReason.INTERNAL)


def test_a_checkpoint_on_the_way_does_not_hide_an_answer() -> None:
    task = life.checkpointed(running(sent(parked(running()))), NOW, TWO, op_id="op", inputs=1)
    after = parked(sent(task), TWO, inputs=1)
    assert (after.due, after.given_back, after.parked) == (0.0, 2, False), "the second input is for the next attempt"


def test_the_prompt_is_something_to_answer_too() -> None:
    """An agent that takes nothing while it runs has answered the prompt, and not what came meanwhile."""
    task = sent(life.checkpointed(running(), NOW, ONE, op_id="op"))
    after = parked(task, TWO)
    assert (after.due, after.given_back, after.parked) == (0.0, 1, False)


def test_a_canceled_conversation_keeps_what_it_said_last() -> None:
    task = life.canceled(parked(running(), result="cmVzdWx0"), NOW, op_id="op")
    assert (task.state, task.result, task.parked, task.due) == (TaskState.CANCELED, "cmVzdWx0", False, 0.0)


@pytest.mark.parametrize("reason", [EndReason.MODEL_RATE_LIMIT, EndReason.MODEL_OVERLOADED, EndReason.AGENT_FAILED])
def test_a_model_s_failure_is_tried_again_when_its_node_says_that_it_helps(reason: EndReason) -> None:
    for retryable, state in ((True, TaskState.QUEUED), (False, TaskState.FAILED)):
        after = life.reported(running(), NOW, AttemptState.FAILED, reason, op_id="op", retryable=retryable)
        assert after.state is state


def test_use_counts_once() -> None:
    task = life.checkpointed(
        running(), NOW, ONE, op_id="op", usage=Usage(input_tokens=5), model_use=ModelUse(requests=1)
    )
    lost = life.lost(task, NOW, op_id="op")
    assert (lost.usage, lost.model_use, lost.usage_now) == (Usage(input_tokens=5), ModelUse(requests=1), None)
    task = running(life.became_due(lost, NOW, op_id="op"))
    task = life.checkpointed(task, NOW, TWO, op_id="op", usage=Usage(input_tokens=2))
    done = life.reported(
        task, NOW, AttemptState.SUCCEEDED, EndReason.COMPLETED, op_id="op", usage=Usage(input_tokens=3, cost_usd=0.5)
    )
    assert (done.usage, done.model_use) == (Usage(input_tokens=8, cost_usd=0.5), ModelUse(requests=1))


def test_no_use_that_a_checkpoint_told_of_is_taken_back() -> None:
    """Whoever counted for the end had forgotten some."""
    told = ModelUse(requests=3, output_tokens=10)
    task = life.checkpointed(running(), NOW, ONE, op_id="op", model_use=told)
    ends: dict[str, ModelUse | None] = {"less": ModelUse(output_tokens=12), "more": ModelUse(requests=4), "none": None}
    expected = {
        "less": ModelUse(requests=3, output_tokens=12),
        "more": ModelUse(requests=4, output_tokens=10),
        "none": told,
    }
    for name, use in ends.items():
        done = life.reported(task, NOW, AttemptState.SUCCEEDED, EndReason.COMPLETED, op_id="op", model_use=use)
        assert done.model_use == expected[name]


def test_sums_leave_out_what_nobody_said() -> None:
    assert usage_sum(None, None) is None
    assert usage_sum(Usage(turns=1), None) == usage_sum(None, Usage(turns=1)) == Usage(turns=1)
    assert usage_sum(Usage(cost_usd=0.1), Usage(cost_usd=0.2)) == Usage(cost_usd=0.3)
    assert model_use_sum(None, ModelUse(requests=1)) == ModelUse(requests=1)


def test_the_record_of_a_long_conversation_stays_small_and_loses_no_attempt() -> None:
    task, pages = queued(replace(PLAN, labels={f"k{n}": "v" * 100 for n in range(10)})), []
    for turn in range(1000):
        before = running(task)
        task = parked(before, SnapshotPointer(id=f"snap-{turn:016}", manifest="a" * 64), inputs=turn, result="x" * 1300)
        if task.earlier > before.earlier:
            pages.append(encode_page(before.attempts[:PAGE]))
        assert len(encode(task)) <= MAX_TASK_BYTES
        task = sent(task)
        assert decode(encode(task), TaskRecord) == task == fit(task)
    attempts = [attempt for page in pages for attempt in decode_page(page)] + list(task.attempts)
    assert [attempt.number for attempt in attempts] == list(range(1, 1001))
    assert [attempt.uid for attempt in attempts] == [f"uid-{number}" for number in range(1, 1001)]
    assert max(map(len, pages)) < 4096


def test_a_damaged_page_is_named() -> None:
    for data in (b"", b"{}", b'{"packed": "!"}', b'{"packed": 7}'):
        with pytest.raises(DataLossError):
            decode_page(data)


def test_what_it_said_last_is_kept_with_the_checkpoint_that_holds_it() -> None:
    task = life.checkpointed(running(), NOW, ONE, op_id="op", answered=True, result="MQ==")
    task = life.checkpointed(task, NOW, TWO, op_id="op", inputs=1)
    assert task.result == "MQ==", "half of an answer takes no answer's place"
    task = life.checkpointed(task, NOW, ONE, op_id="op", answered=True, result_object="results/2")
    assert (task.result, task.result_object) == ("", "results/2")
    lost = life.lost(task, NOW, op_id="op")
    assert (lost.state, lost.result_object) == (TaskState.QUEUED, "results/2")
    again = life.lost(running(life.became_due(lost, NOW, op_id="op")), NOW, op_id="op")
    assert (again.state, again.result_object) == (TaskState.FAILED, "results/2")
