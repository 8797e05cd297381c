"""Codex's stream, as recorded, in CloudClaw's events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloudclaw.agents.codex import CodexParser
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
from tests.support.transcripts import only, parse, recorded


def events_of(case: str) -> list[AnyEvent]:
    return parse(CodexParser(), recorded("codex", case))


def said(*lines: dict[str, Any]) -> list[AnyEvent]:
    return parse(CodexParser(), [(STDOUT, b"".join(json.dumps(line).encode() + b"\n" for line in lines))])


def item(state: str, number: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": f"item.{state}", "item": {"id": f"item_{number}", "type": kind, **fields}}


def used(total: int) -> dict[str, Any]:
    return {"input_tokens": total, "cached_input_tokens": total // 2, "output_tokens": total // 10}


def test_a_run_is_told_in_order() -> None:
    events = events_of("success")
    assert [type(event) for event in events] == [
        Started,
        Note,
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
    call = only(events, ToolCall)[0]
    assert (call.tool, call.call_id) == ("shell", only(events, ToolResult)[0].call_id)
    assert "hello.txt" in json.loads(call.arguments)["command"]
    assert only(events, ToolResult)[1].output == "hello\n"
    assert [turn.number for turn in only(events, Turn)] == [1, 2, 3]
    assert events[-1] == Finished(True, text="The file is written.")
    assert only(events, UsageReport)[0].usage == Usage(30031, 34, 0, 0, turns=3)


def test_what_the_thread_used_before_is_not_counted_again() -> None:
    before = {"type": "event_msg", "payload": {"type": "token_count", "info": {"total_token_usage": used(1000)}}}
    end = {"type": "turn.completed", "usage": used(1500)}
    events = said(before, {"type": "thread.started", "thread_id": "t"}, end)
    assert only(events, Started) == [Started("t", "codex", resumed=True)]
    assert only(events, UsageReport)[0].usage == Usage(250, 50, 250, turns=1)


def test_tools_at_work_at_once_are_one_turn() -> None:
    events = said(
        item("started", 1, "command_execution", command="a"),
        item("started", 2, "command_execution", command="b"),
        item("completed", 2, "command_execution", command="b", aggregated_output="", exit_code=3, status="failed"),
        item("completed", 1, "command_execution", command="a", aggregated_output="", exit_code=0, status="completed"),
    )
    assert [type(event) for event in events] == [ToolCall, ToolCall, ToolResult, ToolResult, Turn]
    assert [result.is_error for result in only(events, ToolResult)] == [True, False]


def test_a_tool_that_is_told_at_its_end_only_has_its_call_as_well() -> None:
    events = said(
        item("completed", 1, "file_change", changes=[{"path": "a", "kind": "add"}], status="completed"),
        item("completed", 2, "mcp_tool_call", server="s", tool="t", arguments={"x": 1}, error={"message": "no"}),
    )
    assert [type(event) for event in events] == [ToolCall, ToolResult, Turn] * 2
    assert [call.tool for call in only(events, ToolCall)] == ["patch", "s.t"]
    assert only(events, ToolResult)[1] == ToolResult("item_2", "no", is_error=True)


def test_thoughts_and_plans_are_no_tools() -> None:
    assert said(item("completed", 1, "reasoning", text="hm"), item("started", 2, "todo_list", items=[])) == []


def test_a_retry_says_what_it_is_about() -> None:
    retry = only(events_of("authentication"), Retry)[0]
    assert (retry.kind, retry.attempt) == (ErrorKind.AUTHENTICATION, 1)
    assert retry.message.startswith("unexpected status 401 Unauthorized")


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("authentication", ErrorKind.AUTHENTICATION),
        ("billing", ErrorKind.AUTHENTICATION),
        ("rate-limit", ErrorKind.RATE_LIMIT),
        ("overloaded", ErrorKind.OVERLOADED),
        ("server-error", ErrorKind.SERVER),
        ("permission", ErrorKind.AUTHENTICATION),
        ("invalid-request", ErrorKind.REJECTED),
        ("not-found", ErrorKind.NOT_FOUND),
        ("context-too-long", ErrorKind.CONTEXT),
    ],
)
def test_a_failure_has_its_kind(case: str, kind: ErrorKind) -> None:
    events = events_of(case)
    assert only(events, Error)[-1].kind is kind
    assert [(end.ok, end.error) for end in only(events, Finished)] == [(False, kind)]


def test_what_it_says_before_a_thread_is_a_configurations_fault() -> None:
    (error,) = only(events_of("unknown-session"), Error)
    assert error.kind is ErrorKind.CONFIGURATION
    assert "no rollout found" in error.message


def test_a_killed_run_has_no_end() -> None:
    events = events_of("killed")
    assert only(events, Finished) == []
    assert [turn.number for turn in only(events, Turn)] == [1]
