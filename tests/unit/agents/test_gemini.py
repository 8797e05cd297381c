"""Gemini's stream, as recorded, in CloudClaw's events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloudclaw.agents.events import (
    MAX_TEXT,
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
from cloudclaw.agents.gemini import GeminiParser
from cloudclaw.agents.parser import STDOUT
from tests.support.transcripts import only, parse, recorded


def events_of(case: str) -> list[AnyEvent]:
    return parse(GeminiParser(), recorded("gemini", case))


def said(*lines: dict[str, Any]) -> list[AnyEvent]:
    return parse(GeminiParser(), [(STDOUT, b"".join(json.dumps(line).encode() + b"\n" for line in lines))])


def piece(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": text, "delta": True}


def test_a_run_is_told_in_order() -> None:
    events = events_of("success")
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
        UsageReport,
        Turn,
        Finished,
    ]
    assert only(events, Started)[0].model == "gemini-2.5-pro"
    assert [message.role for message in only(events, Message)] == ["assistant"] * 2, "the log has the prompt already"
    assert json.loads(only(events, ToolCall)[0].arguments)["content"] == "hello\n"
    assert only(events, ToolResult)[1].output == "hello"
    assert only(events, UsageReport)[0].usage == Usage(35510, 37, 0, turns=3)
    assert events[-1] == Finished(True, text="The file is written.")


def test_pieces_become_one_message() -> None:
    events = said(piece("I write "), piece("the file."), {"type": "tool_use", "tool_id": "1", "tool_name": "ls"})
    assert events == [Message("assistant", "I write the file."), ToolCall("1", "ls", "null")]


def test_a_message_without_an_end_is_told_when_the_log_ends() -> None:
    assert said(piece("I wri")) == [Message("assistant", "I wri")]


def test_a_long_message_is_kept_in_part() -> None:
    (message,) = only(said(*[piece("x" * 1000)] * 100), Message)
    assert message.text.startswith("x" * MAX_TEXT)
    assert message.text.endswith(f"({100_000 - MAX_TEXT} more characters in the log)")


def test_a_broken_line_does_not_lose_what_was_said_before_it() -> None:
    assert said(piece("Yes."), {"type": "tool_use"}) == [Message("assistant", "Yes.")]


def test_several_tools_are_one_turn() -> None:
    calls = [{"type": "tool_use", "tool_id": name, "tool_name": "ls", "parameters": {}} for name in "ab"]
    results: list[dict[str, Any]] = [{"type": "tool_result", "tool_id": "a", "status": "success", "output": "x"}]
    results += [{"type": "tool_result", "tool_id": "b", "status": "error", "error": {"message": "no"}}]
    events = said(*calls, *results)
    assert [type(event) for event in events] == [ToolCall, ToolCall, ToolResult, ToolResult, Turn]
    assert only(events, ToolResult)[1] == ToolResult("b", "no", is_error=True)


def test_a_warning_is_no_error() -> None:
    events = said(
        {"type": "error", "severity": "warning", "message": "Loop detected"},
        {"type": "error", "severity": "error", "message": "Maximum session turns exceeded"},
    )
    assert [type(event) for event in events] == [Note, Error]


def test_its_own_limit_of_turns_is_told_as_one() -> None:
    error = {"type": "FatalTurnLimitedError", "message": "Reached max session turns"}
    (end,) = only(said({"type": "result", "status": "error", "error": error}), Finished)
    assert (end.ok, end.error) == (False, ErrorKind.TURN_LIMIT)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("authentication", ErrorKind.AUTHENTICATION),
        ("permission", ErrorKind.AUTHENTICATION),
        ("rate-limit", ErrorKind.RATE_LIMIT),
        ("billing", ErrorKind.AUTHENTICATION),
        ("overloaded", ErrorKind.OVERLOADED),
        ("server-error", ErrorKind.SERVER),
        ("invalid-request", ErrorKind.REJECTED),
        ("not-found", ErrorKind.NOT_FOUND),
        ("context-too-long", ErrorKind.CONTEXT),
    ],
)
def test_a_failure_has_its_kind(case: str, kind: ErrorKind) -> None:
    assert [(end.ok, end.error) for end in only(events_of(case), Finished)] == [(False, kind)]


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("[API Error: An internal error has occurred.]", ErrorKind.SERVER),
        ("[API Error: The model is overloaded. Please try again later.]", ErrorKind.OVERLOADED),
        ("[API Error: exception TypeError: fetch failed sending request]", ErrorKind.UNREACHABLE),
    ],
)
def test_words_without_a_status_have_a_kind(message: str, kind: ErrorKind) -> None:
    (end,) = only(said({"type": "result", "status": "error", "error": {"message": message}}), Finished)
    assert end.error is kind


def test_it_tells_on_standard_error_that_it_asks_again() -> None:
    retries = only(events_of("rate-limit"), Retry)
    assert [retry.attempt for retry in retries] == list(range(1, len(retries) + 1))
    assert {retry.kind for retry in retries} == {ErrorKind.RATE_LIMIT}


def test_what_it_says_before_a_session_is_a_configurations_fault() -> None:
    (error,) = only(events_of("unknown-session"), Error)
    assert error.kind is ErrorKind.CONFIGURATION
    assert "No previous sessions" in error.message
