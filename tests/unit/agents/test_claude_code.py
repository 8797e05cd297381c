"""Claude Code's stream, as recorded, in CloudClaw's events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloudclaw.agents.claude_code import ClaudeCodeParser
from cloudclaw.agents.events import (
    AnyEvent,
    Error,
    ErrorKind,
    Finished,
    Message,
    Note,
    Retry,
    Started,
    ToolCall,
    ToolResult,
    Turn,
    Usage,
    UsageReport,
)
from cloudclaw.agents.parser import STDOUT
from tests.support.transcripts import fold, only, parse, recorded


def events_of(case: str) -> list[AnyEvent]:
    return parse(ClaudeCodeParser(), recorded("claude-code", case))


def said(*lines: dict[str, Any]) -> list[AnyEvent]:
    return parse(ClaudeCodeParser(), [(STDOUT, b"".join(json.dumps(line).encode() + b"\n" for line in lines))])


def block(message: str, **content: Any) -> dict[str, Any]:
    usage = {"input_tokens": 10, "output_tokens": 1}
    return {"type": "assistant", "message": {"id": message, "model": "m", "content": [content], "usage": usage}}


def result(call: str) -> dict[str, Any]:
    content = [{"type": "tool_result", "tool_use_id": call, "content": "out"}]
    return {"type": "user", "message": {"content": content}}


def test_a_run_is_told_in_order() -> None:
    events = [event for event in events_of("success") if not isinstance(event, UsageReport)]
    assert [type(event) for event in events] == [
        Started,
        Message,
        ToolCall,
        ToolResult,
        Turn,
        ToolCall,
        ToolResult,
        Turn,
        Message,
        Turn,
        Finished,
    ]
    started = only(events, Started)[0]
    assert started.session_id == "11111111-2222-4333-8444-555555555555"
    assert started.agent.startswith("claude-code 2.")
    assert json.loads(only(events, ToolCall)[0].arguments)["content"] == "hello\n"
    assert only(events, ToolCall)[0].call_id == only(events, ToolResult)[0].call_id
    assert [turn.number for turn in only(events, Turn)] == [1, 2, 3]
    assert only(events, Finished) == [Finished(True, text="The file is written.")]


def test_usage_grows_and_its_last_word_is_the_agents_own() -> None:
    reports = [report.usage for report in only(events_of("success"), UsageReport)]
    assert [report.input_tokens for report in reports] == sorted(report.input_tokens or 0 for report in reports)
    assert reports[0].output_tokens is None, "a message's own count is that of its first token"
    assert reports[-1] == Usage(37341, 37, 0, 0, reports[-1].cost_usd, 3)
    assert reports[-1].cost_usd == pytest.approx(0.150104)


def test_a_session_that_goes_on_reports_what_this_attempt_used_only() -> None:
    usage = fold(events_of("resumed")).usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (37995, 37)
    assert usage.cost_usd == pytest.approx(0.15272)


def test_two_messages_to_one_process_add_up() -> None:
    events = events_of("stream-json")
    assert len(only(events, Started)) == 1
    assert len(only(events, Finished)) == 2
    assert [turn.number for turn in only(events, Turn)] == [1, 2, 3, 4, 5, 6]
    usage = fold(events).usage
    assert usage is not None
    assert usage.input_tokens == 37342 + 37989
    assert usage.cost_usd == pytest.approx(0.302804)
    assert usage.turns == 6


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("authentication", ErrorKind.AUTHENTICATION),
        ("permission", ErrorKind.AUTHENTICATION),
        ("billing", ErrorKind.AUTHENTICATION),
        ("rate-limit", ErrorKind.RATE_LIMIT),
        ("overloaded", ErrorKind.OVERLOADED),
        ("server-error", ErrorKind.SERVER),
        ("context-too-long", ErrorKind.CONTEXT),
        ("not-found", ErrorKind.NOT_FOUND),
        ("invalid-request", ErrorKind.REJECTED),
        ("refused-connection", ErrorKind.UNREACHABLE),
        ("max-turns", ErrorKind.TURN_LIMIT),
        ("max-budget", ErrorKind.BUDGET),
        ("permission-denied", ErrorKind.PERMISSION),
        ("unknown-session", ErrorKind.CONFIGURATION),
    ],
)
def test_an_ending_is_told_by_its_kind(case: str, kind: ErrorKind) -> None:
    finished = only(events_of(case), Finished)
    assert [(one.ok, one.error) for one in finished] == [(False, kind)]
    assert finished[0].message


def test_an_error_that_calls_itself_a_success_is_an_error() -> None:
    last = json.loads(recorded("claude-code", "authentication")[1][1].splitlines()[-1])
    assert last["subtype"] == "success"
    transcript = fold(events_of("authentication"))
    assert transcript.finished is not None
    assert not transcript.finished.ok
    assert not transcript.begun, "what the agent wrote about the failure is no answer of the model"
    assert transcript.turns == 0


@pytest.mark.parametrize("case", ["bad-flag", "bad-settings", "bad-mcp", "session-in-use"])
def test_what_it_says_on_standard_error_before_it_begins_is_a_bad_configuration(case: str) -> None:
    events = events_of(case)
    assert only(events, Finished) == []
    assert [error.kind for error in only(events, Error)] == [ErrorKind.CONFIGURATION]


@pytest.mark.parametrize("case", ["sigterm", "killed"])
def test_one_that_was_ended_says_nothing_of_an_end(case: str) -> None:
    events = events_of(case)
    assert only(events, Finished) == []
    assert fold(events).begun


def test_one_that_was_interrupted_has_no_result() -> None:
    assert not any(finished.ok for finished in only(events_of("sigint"), Finished))


def test_its_own_retries_are_told() -> None:
    events = events_of("retried")
    assert [(retry.kind, retry.attempt) for retry in only(events, Retry)] == [(ErrorKind.OVERLOADED, 1)]
    assert only(events, Finished)[0].ok
    assert [retry.kind for retry in only(events_of("refused-connection"), Retry)] == [ErrorKind.UNREACHABLE] * 2


def test_a_turn_ends_with_the_last_result_of_several_calls() -> None:
    events = said(
        block("m1", type="tool_use", id="a", name="Bash", input={}),
        block("m1", type="tool_use", id="b", name="Bash", input={}),
        result("a"),
        result("b"),
    )
    assert [type(event) for event in events if isinstance(event, ToolResult | Turn)] == [ToolResult, ToolResult, Turn]


def test_a_tool_that_ends_before_the_next_is_called_does_not_make_two_turns() -> None:
    events = said(
        block("m1", type="tool_use", id="a", name="Bash", input={}),
        result("a"),
        block("m1", type="tool_use", id="b", name="Bash", input={}),
        result("b"),
        block("m2", type="tool_use", id="c", name="Bash", input={}),
        result("c"),
    )
    assert [turn.number for turn in only(events, Turn)] == [1, 2]


def test_a_subagents_work_is_shown_and_makes_no_turn() -> None:
    call = {**block("s1", type="tool_use", id="x", name="Bash", input={}), "parent_tool_use_id": "a"}
    words = {**block("s1", type="text", text="inner"), "parent_tool_use_id": "a"}
    events = said(block("m1", type="tool_use", id="a", name="Task", input={}), call, words, result("x"), result("a"))
    assert [event.tool for event in only(events, ToolCall)] == ["Task", "Bash"]
    assert only(events, Message) == []
    assert len(only(events, Turn)) == 1


def test_a_spare_that_refuses_its_session_says_why() -> None:
    line = {"type": "control_response", "response": {"subtype": "error", "error": "busy: not now"}}
    assert said(line) == [Note("refused", "busy: not now")]
