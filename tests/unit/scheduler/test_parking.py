"""Conversations that park: what wakes, closes and ends them, and what counts."""

from __future__ import annotations

import pytest

from cloudclaw.errors import PreconditionError
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from tests.unit.scheduler.plane import Plane, User, duration, until
from tests.unit.scheduler.talking import COMMITTED, Host, Talker, texts

QUEUED = task_pb2.TASK_STATE_QUEUED
SUCCEEDED, FAILED, CANCELED = (
    task_pb2.TASK_STATE_SUCCEEDED,
    task_pb2.TASK_STATE_FAILED,
    task_pb2.TASK_STATE_CANCELED,
)


async def test_a_parked_conversation_holds_no_slot_and_goes_on_from_its_snapshot(host: Host, talker: Talker) -> None:
    task_id = await talker.talk()
    first = await host.next()
    assert (first.session_id, first.inputs_done, list(first.inputs), first.closing) == ("", 0, [], False)
    assert await host.park(first, "c-1") == COMMITTED
    task = await talker.parked(task_id)
    assert (task.state, task.wait_reason) == (QUEUED, task_pb2.WAIT_REASON_INPUT)
    assert (task.checkpoint.snapshot_id, task.session_id) == ("c-1", "session-1")
    other = await talker.talk("the only slot is free")
    between = await host.next()
    assert between.task_id == other
    answer = await talker.say(task_id, "m1", "go on")
    assert (answer.accepted, answer.number) == (True, 1)
    await host.finish(between)
    second = await host.next()
    assert (second.task_id, second.attempt, second.base.snapshot_id, second.resumes) == (task_id, 2, "c-1", True)
    assert (second.session_id, second.inputs_done, texts(second.inputs)) == ("session-1", 0, [(1, "go on")])


async def test_an_input_that_came_before_the_park_report_sends_the_task_on_at_once(host: Host, talker: Talker) -> None:
    task_id = await talker.talk()
    first = await host.next()
    await talker.say(task_id, "m1")  # the agent has not seen it when the slot is given back
    assert await host.park(first, "c-1", inputs=0) == COMMITTED
    second = await host.next()
    assert (second.attempt, texts(second.inputs)) == (2, [(1, "m1")])
    assert not (await talker.get(task_id)).parked


async def test_an_answered_input_is_not_delivered_again(host: Host, talker: Talker) -> None:
    task_id = await talker.talk()
    first = await host.next()
    await talker.say(task_id, "m1")
    await host.given()
    await host.park(first, "c-1", inputs=1)
    task = await talker.parked(task_id)
    assert (task.inputs, task.inputs_done) == (1, 1)
    await talker.say(task_id, "m2")
    second = await host.next()
    assert (second.inputs_done, texts(second.inputs)) == (1, [(2, "m2")])


async def test_inputs_beyond_the_checkpoint_come_again_after_a_loss(plane: Plane, host: Host, talker: Talker) -> None:
    task_id = await talker.talk()
    first = await host.next()
    for name in ("m1", "m2"):
        await talker.say(task_id, name)
    await until("both are there", lambda: host.inputs.qsize() > 0)
    assert await host.checkpoint(first, "c-1", inputs=1, session_id="session-9") == COMMITTED
    await host.disconnect()
    await plane.kv.revoke(host.lease)
    other = Host(plane, "node-2")
    await other.connect()
    second = await other.next()
    assert (second.session_id, second.inputs_done, texts(second.inputs)) == ("session-9", 1, [(2, "m2")])


async def test_a_drained_conversation_goes_on_with_what_it_did_not_answer(
    plane: Plane, host: Host, talker: Talker
) -> None:
    task_id = await talker.talk()
    first = await host.next()
    await talker.say(task_id, "m1")
    other = Host(plane, "node-2")
    await other.connect()
    await host.checkpoint(first, "c-1", session_id="s")
    await host.finish(first, state=task_pb2.ATTEMPT_STATE_FAILED, reason=task_pb2.END_REASON_DRAINED, retryable=True)
    second = await other.next()
    assert (second.session_id, texts(second.inputs)) == ("s", [(1, "m1")])


async def test_the_end_wakes_a_parked_conversation_to_be_closed(host: Host, talker: Talker) -> None:
    task_id = await talker.talk()
    await host.park(await host.next(), "c-1", final_message="so far")
    await talker.parked(task_id)
    await talker.say(task_id, "bye", end=True)
    second = await host.next()
    assert (second.closing, list(second.inputs)) == (True, [])
    await host.finish(second)
    result = await talker.result(task_id)
    assert (result.state, result.final_message, result.session_id) == (SUCCEEDED, "so far", "session-1")


@pytest.mark.parametrize("size", [10, 5000])
async def test_a_conversation_that_idles_ends_with_its_last_answer(
    plane: Plane, host: Host, talker: Talker, size: int
) -> None:
    task_id = await talker.talk(idle=0.2)
    answer = "a" * size
    await host.park(await host.next(), "c-1", final_message=answer)
    second = await host.next()
    assert (second.task_id, second.closing, list(second.inputs)) == (task_id, True, [])
    assert (await talker.get(task_id)).closing
    await host.finish(second)
    result = await talker.result(task_id)
    assert (result.state, result.final_message) == (SUCCEEDED, answer)
    stored = [info.name async for info in plane.objects.list("results/")]
    assert len(stored) == (size > 1000), "an answer that another took the place of is removed"


async def test_an_attempt_that_parks_without_a_word_leaves_what_was_said_before(host: Host, talker: Talker) -> None:
    task_id = await talker.talk()
    await host.park(await host.next(), "c-1", final_message="so far")
    await talker.parked(task_id)
    await talker.say(task_id, "m1")
    await host.park(await host.next(), "c-2", inputs=1)
    await talker.parked(task_id)
    await talker.say(task_id, "m2", "", end=True)
    await host.finish(await host.next(), inputs=1)
    assert (await talker.result(task_id)).final_message == "so far"


async def test_a_delayed_input_wakes_a_parked_conversation(plane: Plane, host: Host, talker: Talker) -> None:
    task_id = await talker.talk(idle=36_000)
    await host.park(await host.next(), "c-1")
    await talker.parked(task_id)
    answer = await talker.say(task_id, "later", delay=3600)
    assert (answer.accepted, answer.number) == (True, 0)
    task = await talker.get(task_id)
    assert (task.parked, task.inputs, task.inputs_done) == (True, 1, 0)
    plane.jump(3600)
    second = await host.next()
    assert texts(second.inputs) == [(1, "later")]
    again = await talker.say(task_id, "later", delay=3600)
    assert (again.accepted, again.number) == (False, 1)


async def test_what_is_said_meanwhile_does_not_wait_behind_a_delayed_input(
    plane: Plane, host: Host, talker: Talker
) -> None:
    task_id = await talker.talk()
    first = await host.next()
    await talker.say(task_id, "later", delay=3600)
    await talker.say(task_id, "now")
    assert texts((await host.given()).inputs) == [(1, "now")]
    plane.jump(3600)
    assert texts((await host.given()).inputs) == [(2, "later")]
    assert first.task_id == task_id


async def test_a_conversation_with_input_to_come_neither_idles_nor_closes_before_it(
    plane: Plane, host: Host, talker: Talker
) -> None:
    task_id = await talker.talk(idle=60)
    first = await host.next()
    request = pb.SendInputRequest(task_id=task_id, message_id="last", text="last", end=True, delay=duration(3600))
    await talker.stub.SendInput(request)
    await host.heard(2)
    assert host.inputs.empty(), "it closes with its last input, not before"
    await host.park(first, "c-1")
    task = await talker.parked(task_id)
    assert task.closing
    plane.jump(1800)
    await host.heard(12)  # for longer than the leader goes without a look at the clock
    assert (await talker.get(task_id)).parked
    plane.jump(1800)
    second = await host.next()
    assert (texts(second.inputs), second.closing) == ([(1, "last")], True)


async def test_a_parked_conversation_is_canceled_at_once(host: Host, talker: Talker) -> None:
    task_id = await talker.talk()
    await host.park(await host.next(), "c-1", final_message="so far")
    await talker.parked(task_id)
    assert (await talker.cancel(task_id)).state == CANCELED
    result = await talker.result(task_id)
    assert (result.final_message, result.reason) == ("so far", task_pb2.END_REASON_CANCELED)


async def test_a_cancel_wins_over_a_park_report(host: Host, talker: Talker) -> None:
    task_id = await talker.talk()
    first = await host.next()
    await talker.cancel(task_id)
    assert await host.park(first, "c-1") == COMMITTED
    assert (await talker.get(task_id)).state == CANCELED


async def test_the_queue_timeout_does_not_run_while_parked(host: Host, talker: Talker) -> None:
    timeouts = task_pb2.Timeouts(queue=duration(0.3))
    task_id = await talker.talk(idle=0.9, timeouts=timeouts)
    await host.park(await host.next(), "c-1")
    second = await host.next()  # by idling, three queue timeouts later
    assert (second.task_id, second.closing) == (task_id, True)


async def test_parking_begins_the_count_of_attempts_anew(host: Host, talker: Talker) -> None:
    task_id = await talker.talk(retry=task_pb2.RetryPolicy(max_attempts=1))
    for turn in range(1, 5):
        attempt = await host.next()
        assert attempt.attempt == turn
        await host.park(attempt, f"c-{turn}", inputs=turn - 1)
        await talker.parked(task_id)
        await talker.say(task_id, f"m{turn}")
    last = await host.next()
    await host.finish(last, state=task_pb2.ATTEMPT_STATE_FAILED, reason=task_pb2.END_REASON_NONZERO_EXIT, exit_code=1)
    task = await talker.get(task_id)
    assert (task.state, len(task.attempts)) == (FAILED, 5)


async def test_an_attempt_that_parks_without_an_answer_is_counted(host: Host, talker: Talker) -> None:
    retry = task_pb2.RetryPolicy(max_attempts=2, initial_backoff=duration(0.01))
    task_id = await talker.talk(retry=retry)
    await host.park(await host.next(), "c-1")
    await talker.parked(task_id)
    await talker.say(task_id, "m1")
    for number in (2, 3):
        attempt = await host.next()
        assert texts(attempt.inputs) == [(1, "m1")]
        await host.park(attempt, f"c-{number}", inputs=0)
    task = await talker.wait(task_id)
    assert (task.state, task.events[-1].reason) == (FAILED, task_pb2.END_REASON_INTERNAL)


async def test_an_agent_that_ended_by_itself_leaves_no_input_unanswered(host: Host, talker: Talker) -> None:
    task_id = await talker.talk()
    first = await host.next()
    await talker.say(task_id, "m1")
    snapshot = task_pb2.SnapshotRef(snapshot_id="c-1", manifest_digest="d")
    assert await host.finish(first, snapshot=snapshot, inputs=0) == COMMITTED
    second = await host.next()
    assert (second.base.snapshot_id, texts(second.inputs)) == ("c-1", [(1, "m1")])


@pytest.mark.parametrize("talks", [True, False])
async def test_a_park_report_that_cannot_be_true_is_a_fault_of_the_node(
    host: Host, talker: Talker, talks: bool
) -> None:
    task_id = await (talker.talk() if talks else talker.submit())
    first = await host.next()
    snapshot = None if talks else task_pb2.SnapshotRef(snapshot_id="c-1", manifest_digest="d")
    outcome = {"state": task_pb2.ATTEMPT_STATE_FAILED, "reason": task_pb2.END_REASON_PARKED}
    assert await host.finish(first, **outcome, snapshot=snapshot) == COMMITTED
    second = await host.next()
    task = await talker.get(task_id)
    assert (second.attempt, task.attempts[0].reason) == (2, task_pb2.END_REASON_INTERNAL)


async def test_explain_says_since_when_and_until_when_it_is_parked(host: Host, talker: Talker) -> None:
    task_id = await talker.talk()
    await host.park(await host.next(), "c-1")
    await talker.parked(task_id)
    explained = await talker.stub.ExplainTask(pb.ExplainTaskRequest(task_id=task_id))
    assert any("Parked since" in reason and "until" in reason for reason in explained.reasons), explained.reasons
    assert not any("FAILED" in reason for reason in explained.reasons), explained.reasons
    await talker.say(task_id, "later", delay=60)
    explained = await talker.stub.ExplainTask(pb.ExplainTaskRequest(task_id=task_id))
    assert any("accepted for later" in reason for reason in explained.reasons), explained.reasons


async def test_a_parked_conversation_that_is_canceled_says_so_in_its_result(host: Host, talker: Talker) -> None:
    task_id = await talker.talk()
    await host.park(await host.next(), "c-1")
    await talker.parked(task_id)
    with pytest.raises(PreconditionError, match="it is parked, and waits for its user"):
        await talker.result(task_id)
    await talker.cancel(task_id)
    result = await talker.result(task_id)
    assert (result.state, result.message) == (CANCELED, "canceled by its user")


async def test_use_counts_once_whatever_became_of_the_attempts(plane: Plane, host: Host, talker: Talker) -> None:
    task_id = await talker.talk()
    first = await host.next()
    usage = task_pb2.Usage(input_tokens=10, cost_usd=0.5, turns=1)
    use = task_pb2.ModelUse(requests=1, input_tokens=10, spend_usd=0.25)
    await host.checkpoint(first, "c-1", usage=usage, model_use=use)
    await host.checkpoint(first, "c-2", usage=usage, model_use=use)
    await host.park(first, "c-3", usage=task_pb2.Usage(input_tokens=20, turns=2), model_use=use)
    await talker.parked(task_id)
    await talker.say(task_id, "m1")
    second = await host.next()
    assert second.model_use == use, "what earlier attempts used"
    await host.checkpoint(second, "c-4", usage=task_pb2.Usage(input_tokens=100), model_use=use)
    await host.disconnect()
    await plane.kv.revoke(host.lease)
    other = Host(plane, "node-2")
    await other.connect()
    third = await other.next()
    assert (third.model_use.requests, third.model_use.spend_usd) == (2, 0.5)
    await other.finish(third, usage=task_pb2.Usage(output_tokens=7), inputs=1)
    result = await talker.result(task_id)
    assert result.usage == task_pb2.Usage(input_tokens=120, output_tokens=7, turns=2)
    assert (result.model_use.requests, result.model_use.input_tokens) == (2, 20)


async def test_a_task_that_used_no_model_says_nothing_of_it(plane: Plane, user: User) -> None:
    host = Host(plane)
    await host.connect()
    task_id = await user.submit()
    await host.finish(await host.next())
    result = await user.result(task_id)
    assert not result.HasField("usage")
    assert not result.HasField("model_use")
