"""OpenCode's stream, as `run` printed it and as the driver of its server does, in CloudClaw's events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloudclaw.agents.events import (
    AnyEvent,
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
from cloudclaw.agents.opencode import OpenCodeParser
from cloudclaw.agents.parser import STDOUT
from tests.support.transcripts import fold, only, parse, recorded


def events_of(case: str) -> list[AnyEvent]:
    return parse(OpenCodeParser(), recorded("opencode", case))


def driven(*lines: dict[str, Any]) -> list[AnyEvent]:
    """What the driver's lines become, after the one that tells the session."""
    said = [{"type": "session", "sessionID": "ses_1", "resumed": False}, *lines]
    return parse(OpenCodeParser(), [(STDOUT, b"".join(json.dumps(line).encode() + b"\n" for line in said))])


def step(reason: str, session: str = "ses_1", kind: str = "step_finish", cost: float = 0) -> dict[str, Any]:
    tokens = {"input": 10, "output": 2, "reasoning": 1, "cache": {"read": 3, "write": 4}}
    part = {"type": "step-finish", "reason": reason, "tokens": tokens, "cost": cost}
    return {"type": kind, "sessionID": session, "part": part}


def text(words: str, session: str = "ses_1") -> dict[str, Any]:
    return {"type": "text", "sessionID": session, "part": {"type": "text", "text": words}}


def tool(kind: str, status: str, session: str = "ses_1", **state: Any) -> dict[str, Any]:
    part = {"callID": "call_1", "tool": "bash", "state": {"status": status, "input": {"command": "ls"}, **state}}
    return {"type": kind, "sessionID": session, "part": part}


IDLE = {"type": "idle", "sessionID": "ses_1"}


def test_a_run_is_told_in_order() -> None:
    events = [event for event in events_of("success") if not isinstance(event, UsageReport)]
    assert [type(event) for event in events] == [
        *(Started, Message, ToolCall, ToolResult, Turn),
        *(ToolCall, ToolResult, Turn),
        *(Message, Turn, Finished),
    ]
    assert only(events, Finished) == [Finished(True, text="The file is written.")]
    assert [turn.number for turn in only(events, Turn)] == [1, 2, 3]


def test_steps_add_up_and_an_unknown_price_is_no_price() -> None:
    usage = fold(events_of("success")).usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.turns) == (23261, 36, 3)
    assert usage.cost_usd == pytest.approx(0.070323)
    assert only(driven(step("stop")), UsageReport)[0].usage.cost_usd is None
    reports = only(driven(step("tool-calls", cost=0.5), step("stop", cost=0.25)), UsageReport)
    assert reports[-1].usage == Usage(20, 6, 6, 8, 0.75, 2)


@pytest.mark.parametrize("case", ["killed", "killed-in-a-loop", "sigterm", "sigint"])
def test_one_that_was_ended_has_no_last_word(case: str) -> None:
    events = events_of(case)
    assert only(events, Finished) == []
    assert fold(events).begun


def test_a_refused_tool_is_no_success_although_it_answers() -> None:
    (finished,) = only(events_of("permission-denied"), Finished)
    assert (finished.ok, finished.error) == (False, ErrorKind.PERMISSION)


def test_the_driver_tells_the_session_before_the_first_step() -> None:
    assert driven() == [Started("ses_1", "opencode")]


def test_a_tool_is_told_when_it_begins_and_when_it_ends() -> None:
    events = driven(tool("tool_start", "running"), tool("tool_use", "completed", output="a\nb"), step("tool-calls"))
    assert only(events, ToolCall) == [ToolCall("call_1", "bash", '{"command":"ls"}')]
    assert only(events, ToolResult) == [ToolResult("call_1", "a\nb")]
    failed = driven(tool("tool_use", "error", error="no such file"))
    assert only(failed, ToolResult) == [ToolResult("call_1", "no such file", is_error=True)]


def test_an_answer_ends_with_the_drivers_word_only() -> None:
    assert only(driven(text("Yes."), step("stop")), Finished) == []
    assert only(driven(text("Yes."), step("stop"), IDLE), Finished) == [Finished(True, text="Yes.")]
    assert [finished.ok for finished in only(driven(step("stop"), IDLE, step("stop"), IDLE), Finished)] == [True, True]


def test_stopping_without_an_answer_is_a_failure() -> None:
    for lines in ([IDLE], [step("length"), IDLE], [step("stop"), IDLE, IDLE]):
        finished = only(driven(*lines), Finished)[-1]
        assert not finished.ok
        assert finished.error is ErrorKind.UNKNOWN


def test_an_error_counts_until_a_step_follows() -> None:
    overflow = {"name": "ContextOverflowError", "data": {"message": "big"}}
    error = {"type": "error", "sessionID": "ses_1", "error": overflow}
    (failed,) = only(driven(error, IDLE), Finished)
    assert (failed.ok, failed.error, failed.message) == (False, ErrorKind.CONTEXT, "big")
    (finished,) = only(driven(error, {"type": "compacted"}, text("Yes."), step("stop"), IDLE), Finished)
    assert finished.ok


def test_retries_are_told_and_end_as_what_they_were_about() -> None:
    retry = {"type": "retry", "sessionID": "ses_1", "attempt": 1, "message": "Rate limit reached"}
    gave_up = {"type": "error", "error": {"name": "Retries", "data": {"message": "Rate limit reached"}}}
    events = driven(retry, gave_up, IDLE)
    assert only(events, Retry) == [Retry(ErrorKind.RATE_LIMIT, "Rate limit reached", 1)]
    assert only(events, Finished)[0].error is ErrorKind.RATE_LIMIT
    unknown = {"type": "error", "error": {"name": "Retries", "data": {"message": "boom"}}}
    assert only(driven(unknown, IDLE), Finished)[0].error is ErrorKind.SERVER


def test_what_a_subagent_does_is_shown_and_makes_no_turn() -> None:
    events = driven(tool("tool_use", "completed", "ses_2", output=""), text("inner", "ses_2"), step("stop", "ses_2"))
    assert len(only(events, ToolCall)) == 1
    assert only(events, Message) == []
    assert only(events, Turn) == []
    assert only(events, UsageReport)[0].usage.input_tokens == 10


def test_summing_up_counts_as_use_and_is_no_turn() -> None:
    events = driven(step("stop", kind="aside"), {"type": "compacted"})
    assert only(events, Turn) == []
    assert only(events, UsageReport)[0].usage.output_tokens == 3
    assert len(only(events, Note)) == 1


def test_a_refusal_by_the_driver_is_a_denial() -> None:
    events = driven({"type": "denied", "sessionID": "ses_1", "tool": "bash"}, text("I could not."), step("stop"), IDLE)
    (finished,) = only(events, Finished)
    assert (finished.error, finished.text) == (ErrorKind.PERMISSION, "I could not.")
    assert "bash" in finished.message
