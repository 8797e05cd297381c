"""OpenClaw's log and document, as recorded, in CloudClaw's events."""

from __future__ import annotations

import json

import pytest

from cloudclaw.agents.events import (
    AnyEvent,
    Error,
    ErrorKind,
    Finished,
    Message,
    Retry,
    Started,
    ToolCall,
    ToolResult,
    Turn,
    Usage,
    UsageReport,
)
from cloudclaw.agents.openclaw import OpenClawParser
from cloudclaw.agents.parser import MAX_LINE, STDERR, STDOUT
from tests.support.transcripts import fold, only, parse, recorded


def events_of(case: str) -> list[AnyEvent]:
    return parse(OpenClawParser(), recorded("openclaw", case))


def logged(*messages: str, document: str = "") -> list[AnyEvent]:
    lines = [json.dumps({"level": "debug", "message": message}) for message in messages]
    return parse(OpenClawParser(), [(STDERR, "\n".join([*lines, ""]).encode()), (STDOUT, document.encode())])


def test_a_run_with_its_log_is_told_in_order() -> None:
    events = events_of("logged")
    assert [type(event) for event in events] == [
        Started,
        ToolCall,
        ToolResult,
        Turn,
        ToolCall,
        ToolResult,
        Turn,
        Turn,
        Message,
        UsageReport,
        Finished,
    ]
    assert only(events, Started) == [Started("11111111-2222-4333-8444-555555555555", "openclaw", "scripted")]
    assert [call.tool for call in only(events, ToolCall)] == ["write", "exec"]
    assert [turn.number for turn in only(events, Turn)] == [1, 2, 3]
    assert only(events, UsageReport)[0].usage == Usage(30080, 35, 0, 0, 0.090765, 3)
    assert events[-1] == Finished(True, text="The file is written.")


def test_without_that_log_the_document_tells_how_it_ended() -> None:
    events = events_of("success")
    assert [type(event) for event in events] == [Started, Message, UsageReport, Turn, Finished]
    assert fold(events).session_id == "11111111-2222-4333-8444-555555555555"


def test_the_document_of_agent_exec_is_understood_too() -> None:
    assert only(events_of("exec"), Finished) == [Finished(True, text="The file is written.")]
    assert [end.error for end in only(events_of("exec-failed"), Finished)] == [ErrorKind.AUTHENTICATION]


def test_tools_of_one_answer_are_one_turn_though_one_runs_after_the_other() -> None:
    events = logged(
        "embedded run start: runId=r sessionId=s provider=x model=m thinking=off",
        "[model-fetch] start provider=x",
        "embedded run tool start: runId=r tool=ls toolCallId=a",
        "embedded run tool end: runId=r tool=ls toolCallId=a",
        "embedded run tool start: runId=r tool=ls toolCallId=b",
        "embedded run tool end: runId=r tool=ls toolCallId=b isError=true",
        "[model-fetch] start provider=x",
        "[model-fetch] response provider=x status=503 elapsedMs=1",
        "[model-fetch] start provider=x",
    )
    assert [type(event) for event in events] == [Started, *[ToolCall, ToolResult] * 2, Turn, Retry]
    assert [result.is_error for result in only(events, ToolResult)] == [False, True]


def test_requests_that_fail_are_counted() -> None:
    busy = "[model-fetch] response provider=x status=429 elapsedMs=1"
    gone = "[model-fetch] error provider=x name=TypeError code=ECONNREFUSED message=fetch failed"
    assert [(retry.kind, retry.attempt) for retry in only(logged(busy, busy, gone), Retry)] == [
        (ErrorKind.RATE_LIMIT, 1),
        (ErrorKind.RATE_LIMIT, 2),
        (ErrorKind.UNREACHABLE, 3),
    ]


def test_a_failure_in_a_later_turn_keeps_what_came_before() -> None:
    events = events_of("logged-failed")
    assert [turn.number for turn in only(events, Turn)] == [1]
    assert only(events, Error)[0].kind is ErrorKind.AUTHENTICATION
    assert [(end.ok, end.error) for end in only(events, Finished)] == [(False, ErrorKind.AUTHENTICATION)]
    assert only(events, UsageReport)[0].usage.input_tokens == 9948


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("authentication", ErrorKind.AUTHENTICATION),
        ("billing", ErrorKind.AUTHENTICATION),
        ("permission", ErrorKind.AUTHENTICATION),
        ("rate-limit", ErrorKind.RATE_LIMIT),
        ("server-error", ErrorKind.SERVER),
        ("overloaded", ErrorKind.OVERLOADED),
        ("not-found", ErrorKind.NOT_FOUND),
        ("context-too-long", ErrorKind.CONTEXT),
        ("invalid-request", ErrorKind.REJECTED),
        ("bad-flag", ErrorKind.CONFIGURATION),
        ("bad-config", ErrorKind.CONFIGURATION),
    ],
)
def test_a_failure_has_its_kind(case: str, kind: ErrorKind) -> None:
    assert [(end.ok, end.error) for end in only(events_of(case), Finished)] == [(False, kind)]


def test_another_writer_of_its_state_is_no_bad_configuration() -> None:
    words = "another embedded OpenClaw state writer is active"
    (end,) = only(logged(document=json.dumps({"ok": False, "error": {"message": words}})), Finished)
    assert (end.error, end.message) == (ErrorKind.UNKNOWN, words)


def test_a_document_may_be_one_line_and_follow_other_words() -> None:
    document = 'warming up\n{"payloads": [{"text": "Yes."}, {"text": "No."}], "meta": {}}\n'
    assert only(logged(document=document), Finished) == [Finished(True, text="Yes.\n\nNo.")]


def test_a_document_without_an_end_is_dropped() -> None:
    parser = OpenClawParser()
    parser.feed(STDOUT, b"{\n")
    line = b'"x": "' + b"y" * 100_000 + b'",\n'
    for _ in range(MAX_LINE // len(line) + 1):
        parser.feed(STDOUT, line)
    assert len(parser.dump()) < len(line) * 2
