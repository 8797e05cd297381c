"""Talking with an agent: one message, or many."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cloudclaw.v1 import task_pb2
from tests.unit.cli.conftest import Claw
from tests.unit.cli.fakes import Services
from tests.unit.cli.test_terminal import on_a_terminal

TASK = "task-0000000000000000"


@pytest.fixture
def talk(claw: Claw) -> Claw:
    """`claw`, with one conversation open."""
    ran = claw("submit", "--runtime", "claude-code", "--conversation", "--park-after", "5s", "--idle-timeout", "2h")
    assert ran.out == f"{TASK}\n", ran.err
    return claw


def test_a_conversation_is_submitted_with_its_times(talk: Claw, services: Services) -> None:
    spec = services.scheduler.submitted[0].spec
    assert (spec.conversation.park_after.seconds, spec.conversation.idle_timeout.seconds) == (5, 7200)
    talk("submit", "--runtime", "claude-code", "--conversation")
    plain = services.scheduler.submitted[1].spec
    assert plain.HasField("conversation")
    assert not plain.conversation.HasField("park_after")


def test_limits_and_the_model_are_sent(claw: Claw, services: Services) -> None:
    ran = claw(
        "submit", "--runtime", "claude-code", "--prompt", "x", "--model", "opus", "--max-turns", "3",
        "--max-requests", "9", "--max-tokens", "1000", "--max-spend", "0.5", "--session", "s-1",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    spec = services.scheduler.submitted[0].spec
    limits = spec.model_limits
    assert (spec.model, spec.session_id) == ("opus", "s-1")
    assert (limits.turns, limits.requests, limits.tokens, limits.spend_usd) == (3, 9, 1000, 0.5)
    assert not spec.HasField("conversation")
    claw("submit", "--", "true")
    assert not services.scheduler.submitted[1].spec.HasField("model_limits")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("submit", "--runtime", "claude-code"), "--prompt"),
        (("submit", "--runtime", "claude-code", "--prompt", "x", "--park-after", "1s"), "--conversation"),
        (("submit", "--runtime", "claude-code", "--prompt", "x", "--max-turns", "-1"), "--max-turns"),
        (("send", TASK), "--file"),
        (("send", TASK, "x", "--file", "y"), "not both"),
        (("send", TASK, "--file", "/nonexistent"), "cannot read"),
        (("send", TASK, "x", "--delay", "soon"), "--delay"),
        (("events", TASK, "--from", "0"), "--from"),
    ],
)
def test_wrong_usage_says_what_to_do(claw: Claw, services: Services, arguments: tuple[str, ...], said: str) -> None:
    ran = claw(*arguments)
    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert not services.scheduler.submitted


def test_a_runtime_that_is_not_offered_names_those_that_are(claw: Claw) -> None:
    ran = claw("submit", "--runtime", "gemini", "--prompt", "x")
    assert ran.code == 6
    assert "it offers: claude-code, command" in ran.err
    assert "--runtime" in ran.err


def test_a_message_comes_from_the_argument_a_file_or_standard_input(
    talk: Claw, services: Services, tmp_path: Path
) -> None:
    file = tmp_path / "message"
    file.write_text("from a file\n")
    assert talk("send", TASK, "as it is").out == "input 1 accepted\n"
    talk("send", TASK, "--file", str(file))
    talk("send", TASK, "-", stdin="from stdin")
    talk("send", TASK, "--file", "-", stdin="again")
    assert [given.text for given in services.scheduler.inputs] == ["as it is", "from a file\n", "from stdin", "again"]


def test_the_same_message_is_sent_once(talk: Claw, services: Services) -> None:
    assert talk("send", TASK, "x", "--message-id", "m1").out == "input 1 accepted\n"
    again = talk("send", TASK, "x", "--message-id", "m1")
    assert (again.code, again.out) == (0, "m1 had been accepted before\n")
    (told,) = talk("send", TASK, "x", "--message-id", "m1", "-o", "json").objects
    assert told == {"message_id": "m1", "accepted": False, "number": 1}
    assert len(services.scheduler.inputs) == 1


def test_a_message_can_wait_and_a_conversation_be_closed(talk: Claw, services: Services) -> None:
    assert talk("send", TASK, "later", "--delay", "10m").out == "input 1 accepted, for later\n"
    assert services.scheduler.inputs[0].delay.seconds == 600
    assert talk("send", TASK, "--end").out == "the conversation ends when all before is answered\n"
    assert services.scheduler.inputs[1].end


def test_a_task_that_is_no_conversation_says_how_to_have_one(claw: Claw) -> None:
    claw("submit", "--", "true")
    for command in (("send", TASK, "x"), ("chat", TASK)):
        ran = claw(*command)
        assert ran.code == 6
        assert "claw submit --conversation" in ran.err


def test_lines_of_a_pipe_are_sent_and_each_answer_is_shown(talk: Claw, services: Services) -> None:
    ran = talk("chat", TASK, stdin="one\n\ntwo\n")
    assert ran.code == 0, ran.err
    assert ran.out.splitlines() == ["> one", "you said one", "> two", "you said two"]
    assert f"claw chat {TASK}" in ran.err
    assert services.scheduler.tasks[TASK].state == task_pb2.TASK_STATE_RUNNING


def test_a_chat_that_is_closed_ends_with_the_result(talk: Claw, services: Services) -> None:
    ran = talk("chat", TASK, stdin="one\n/end\nnever sent\n")
    assert ran.code == 0, ran.err
    assert "you said one" in ran.out
    assert f"{TASK} succeeded: completed" in ran.out
    assert [given.text for given in services.scheduler.inputs] == ["one", ""]


def test_a_chat_can_close_at_the_end_of_its_input(talk: Claw) -> None:
    ran = talk("chat", TASK, "--end", "-o", "json", stdin="one\n")
    *events, result = ran.objects
    assert [event["message"]["text"] for event in events if "message" in event] == ["one", "you said one"]
    assert result["state"] == "TASK_STATE_SUCCEEDED"


def test_a_chat_ends_with_its_conversation_while_the_terminal_could_say_more(talk: Claw, services: Services) -> None:
    # The process ends although a thread of it still waits for a line; what it is told comes through a terminal.
    seen = on_a_terminal(services, "chat", TASK, typed=b"one\n/end\n")
    assert "you said one" in seen
    assert f"{TASK} succeeded: completed" in seen
    assert "> one" not in seen  # it stands there as it was typed
    assert "Fatal" not in seen


def test_a_parked_conversation_says_since_when_it_waits(talk: Claw, services: Services) -> None:
    task = services.scheduler.tasks[TASK]
    task.state, task.wait_reason, task.parked = task_pb2.TASK_STATE_QUEUED, task_pb2.WAIT_REASON_INPUT, True
    task.inputs, task.inputs_done, task.session_id = 3, 3, "s-1"
    event = task.events.add(state=task_pb2.TASK_STATE_QUEUED, reason=task_pb2.END_REASON_PARKED)
    event.time.FromSeconds(int(time.time()) - 120)
    task.due_time.FromSeconds(int(time.time()) + 3600)
    shown = talk("get", TASK).out
    assert "for input since" in shown
    assert "2m" in shown
    assert "3 messages, 3 answered and kept" in shown
    assert "s-1" in shown
    assert "parked (input, 2m" in talk("ls").out
    assert "parked (input, 2m" in talk("top").out
    assert f"claw send {TASK}" in talk("explain", TASK).out
