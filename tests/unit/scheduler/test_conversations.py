"""Conversations: input to what runs, waits or has ended."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Put
from cloudclaw.coordination.records import encode
from cloudclaw.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
    QuotaExceededError,
)
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from tests.unit.scheduler.plane import Plane, duration, soon
from tests.unit.scheduler.talking import COMMITTED, Host, Talker, texts


async def test_input_to_a_running_attempt_is_delivered_once_on_each_stream(host: Host, talker: Talker) -> None:
    task_id = await talker.talk()
    await host.next()
    await talker.say(task_id, "m1")
    await talker.say(task_id, "m2")
    first = await soon(host.inputs.get())  # the node does not say that it has it
    rest = [] if len(first.inputs) == 2 else list((await soon(host.inputs.get())).inputs)
    assert texts([*first.inputs, *rest]) == [(1, "m1"), (2, "m2")]
    await host.heard(5)
    assert host.inputs.empty()
    await host.disconnect()
    await host.connect()
    again = await host.given()
    assert texts(again.inputs) == [(1, "m1"), (2, "m2")]
    await host.heard(5)
    assert host.inputs.empty()


async def test_what_was_said_while_it_waited_for_a_slot_comes_with_the_assignment(host: Host, talker: Talker) -> None:
    blocker = await talker.submit()
    running = await host.next()
    task_id = await talker.talk()
    large = "x" * 100_000
    await talker.say(task_id, "m1", large)
    await talker.say(task_id, "m2")
    assert running.task_id == blocker
    await host.finish(running)
    assignment = await host.next()
    assert texts(assignment.inputs) == [(1, large), (2, "m2")]
    await host.heard(3)
    assert host.inputs.empty()


async def test_more_than_fits_into_an_assignment_follows_it(host: Host, talker: Talker) -> None:
    await talker.submit()
    running = await host.next()
    task_id = await talker.talk()
    large = "x" * (700 * 1024)
    for number in range(3):
        await talker.say(task_id, f"m{number}", large)
    await talker.say(task_id, "end", end=True)
    await host.finish(running)
    assignment = await host.next()
    assert [given.number for given in assignment.inputs] == [1]
    assert not assignment.closing
    deliveries = [await host.given(), await host.given()]
    assert [given.number for each in deliveries for given in each.inputs] == [2, 3]
    assert [each.closing for each in deliveries] == [False, True]


async def test_a_message_is_accepted_once_whatever_became_of_the_task(host: Host, talker: Talker) -> None:
    task_id = await talker.talk()
    first = await host.next()
    assert (await talker.say(task_id, "m1", "hi")).accepted
    again = await talker.say(task_id, "m1", "hi")
    assert (again.accepted, again.number) == (False, 1)
    with pytest.raises(AlreadyExistsError) as reused:
        await talker.say(task_id, "m1", "something else")
    assert reused.value.reason == "MESSAGE_ID_REUSED"
    await host.finish(first, inputs=1)
    assert (await talker.get(task_id)).state == task_pb2.TASK_STATE_SUCCEEDED
    again = await talker.say(task_id, "m1", "hi")
    assert (again.accepted, again.number) == (False, 1)


async def test_who_may_not_say_anything_any_more_is_told_why(plane: Plane, host: Host, talker: Talker) -> None:
    plain = await talker.submit()
    with pytest.raises(PreconditionError) as refused:
        await talker.say(plain, "m")
    assert refused.value.reason == "NOT_A_CONVERSATION"
    await host.finish(await host.next())
    task_id = await talker.talk()
    ended = await talker.say(task_id, "bye", end=True)
    assert (ended.accepted, ended.number) == (True, 0)
    with pytest.raises(PreconditionError) as refused:
        await talker.say(task_id, "m")
    assert refused.value.reason == "CONVERSATION_CLOSED"
    assignment = await host.next()
    assert assignment.closing or (await host.given()).closing
    await host.finish(assignment)
    with pytest.raises(PreconditionError) as refused:
        await talker.say(task_id, "m")
    assert refused.value.reason == "TASK_ENDED"
    canceled = await talker.talk()
    await host.next()
    await talker.cancel(canceled)
    with pytest.raises(PreconditionError) as refused:
        await talker.say(canceled, "m")
    assert refused.value.reason == "TASK_ENDED"
    with pytest.raises(NotFoundError):
        await Talker(plane, "other").say(task_id, "m")


async def test_a_thousand_inputs_are_enough(plane: Plane, talker: Talker) -> None:
    task_id = await talker.talk()
    task = await plane.transactions.get_task("acme", task_id)
    assert task is not None
    await plane.kv.txn([], [Put(keys.task("acme", task_id), encode(replace(task.record, inputs=999)))])
    await talker.say(task_id, "last")
    with pytest.raises(QuotaExceededError) as refused:
        await talker.say(task_id, "beyond")
    assert refused.value.reason == "TOO_MANY_INPUTS"


async def test_a_flood_of_input_stops_before_it_fills_a_node(talker: Talker, host: Host) -> None:
    task_id = await talker.talk()
    assignment = await host.next()
    for number in range(16):
        await talker.say(task_id, f"m-{number}", "x" * (1 << 20))
    with pytest.raises(QuotaExceededError) as refused:
        await talker.say(task_id, "m-16", "x")
    assert refused.value.reason == "TOO_MANY_INPUTS"
    assert not (await talker.say(task_id, "m-3", "x" * (1 << 20))).accepted, "what was accepted is answered as before"
    await host.checkpoint(assignment, "c-1", inputs=16)
    assert (await talker.say(task_id, "m-16", "x")).number == 17


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("message_id", pb.SendInputRequest(message_id="", text="x")),
        ("message_id", pb.SendInputRequest(message_id="a/b", text="x")),
        ("text", pb.SendInputRequest(message_id="m")),
        ("text", pb.SendInputRequest(message_id="m", text="x" * (1024 * 1024 + 1))),
        ("delay", pb.SendInputRequest(message_id="m", text="x", delay=duration(31 * 86_400))),
        ("delay", pb.SendInputRequest(message_id="m", end=True, delay=duration(1))),
    ],
)
async def test_a_bad_message_names_its_field(talker: Talker, field: str, request_: pb.SendInputRequest) -> None:
    request_.task_id = await talker.talk()
    with pytest.raises(InvalidArgumentError) as refused:
        await talker.stub.SendInput(request_)
    assert refused.value.field == field


@pytest.mark.parametrize("session", ["../../etc/passwd", "--settings", "x\n" * 50, "\U0001f600" * 500, "s" * 129])
async def test_what_an_agent_calls_its_session_is_kept_only_if_a_user_could_say_it(
    host: Host, talker: Talker, session: str
) -> None:
    task = await talker.talk()
    first = await host.next()
    assert await host.checkpoint(first, "c-1", session_id=session) == COMMITTED
    assert (await talker.get(task)).session_id == ""
    assert await host.checkpoint(first, "c-2", session_id="session-9") == COMMITTED
    assert await host.finish(first, session_id=session) == COMMITTED
    assert (await talker.result(task)).session_id == "session-9"
