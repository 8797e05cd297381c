"""What hostile agents write must cost their readers little, whatever it is: bytes, time and sums stay bounded."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from importlib.metadata import entry_points

import msgspec
import pytest

from cloudclaw.agents.events import MOST, Message, ToolResult, Usage, UsageReport
from cloudclaw.agents.parser import MAX_LINE, STDERR, STDOUT, SYSTEM, mark
from cloudclaw.agents.reading import as_text
from cloudclaw.agents.registry import GROUP, parser_for
from cloudclaw.agents.transcript import Transcript

RUNTIMES = sorted({"command", *(point.name for point in entry_points(group=GROUP))})
MIB = 1 << 20
RESULT = b'{"type":"result","subtype":"success","is_error":false,"usage":{"input_tokens":9007199254740991}}\n'
SAID = b'{"type":"assistant","message":{"id":"m","content":[{"type":"text","text":"I am here."}]}}\n'


def block(inside: bytes) -> bytes:
    return b'{"type":"assistant","message":{"id":"m","content":[' + inside + b"]}}\n"


def tool_result(inside: bytes) -> bytes:
    one = b'{"type":"tool_result","tool_use_id":"x","content":' + inside + b"}"
    return b'{"type":"user","message":{"content":[' + one + b"]}}\n"


FLOODS = {
    "one line without end": (b"{" + b"a" * (64 * MIB), 64 << 10),
    "one line in tiny pieces": (b"{" + b"a" * MIB, 16),
    "a line of empty lists": (b'{"a":[' + b"[]," * (7 * MIB // 3) + b"[]]}\n", 64 << 10),
    "a million empty objects": (b"{}\n" * MIB, 256 << 10),
    "a hundred thousand tools called at once": (
        block(b",".join(b'{"type":"tool_use","id":"%d","name":"t"}' % n for n in range(100_000))),
        64 << 10,
    ),
    "two thousand tools called at once": (
        block(b",".join(b'{"type":"tool_use","id":"%d","name":"t"}' % n for n in range(2000))) * 20,
        64 << 10,
    ),
    "a result of three million parts": (tool_result(b"[" + b"1," * (3 * MIB) + b"1]"), 64 << 10),
    "a result of a hundred thousand parts": (tool_result(b"[" + b"1," * 99_000 + b"1]"), 64 << 10),
    "half a million models": (
        b'{"type":"result","model_usage_since_last_result":{'
        + b",".join(b'"%d":{}' % n for n in range(500_000))
        + b"}}\n",
        64 << 10,
    ),
    "nested without end": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", 64 << 10),
    "a number of a million digits": (b'{"type":"result","usage":{"input_tokens":' + b"9" * MIB + b"}}\n", 64 << 10),
    "words for patterns": (b'{"type":"error","message":"' + b"code status " * 20_000 + b'"}\n', 64 << 10),
}


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for begin in range(0, len(data), size):
        yield data[begin : begin + size]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_costs_little(runtime: str, flood: str) -> None:
    data, size = FLOODS[flood]
    parser = parser_for(runtime)
    begin = time.process_time()
    for piece in pieces(data, size):
        parser.feed(STDOUT, piece)
    assert len(parser.dump()) <= MAX_LINE + MIB
    parser.close()
    # Seconds to minutes before; milliseconds now. The margin is for slow machines.
    assert time.process_time() - begin < 3.0


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_flood_on_standard_error_costs_little(runtime: str) -> None:
    parser = parser_for(runtime)
    begin = time.process_time()
    words = b"embedded run tool start: tool=t toolCallId= Attempt 1 failed. Retrying status 429 "
    for piece in (*pieces(words * (MIB // len(words)), 64 << 10), *pieces(b"x" * (16 * MIB), 64 << 10)):
        parser.feed(STDERR, piece)
    assert len(parser.dump()) < MIB
    assert time.process_time() - begin < 3.0


@pytest.mark.parametrize(
    "line",
    [
        b"embedded run tool start: " * 300 + b"tool=a " * 1000,
        b"[model-fetch] response " * 300 + b" status=4x " * 600,
        b"embedded run agent end: " * 300 + b" isError=true" * 600,
        b"embedded run start: sessionId=" * 500,
        b"embedded run tool start: tool=" + b"a" * 16_000,
        b"embedded run tool start: " + b"tool=" * 3000,
    ],
)
def test_words_of_a_log_said_again_and_again_are_looked_through_once(line: bytes) -> None:
    parser = parser_for("openclaw")
    begin = time.process_time()
    parser.feed(STDERR, (line + b"\n") * 70)
    assert time.process_time() - begin < 1.5  # 6 s before, 0.1 s now


HALF = "\\ud800"
HALVES = {
    "escaped": lambda line: line,
    "as bytes": lambda line: line.replace(HALF.encode(), b"\xed\xa0\x80"),
    "in UTF-16": lambda line: line.decode().encode("utf-16-le"),
    "in UTF-16 of the other order": lambda line: line.decode().encode("utf-16-be"),
    "in UTF-32": lambda line: line.decode().encode("utf-32-le"),
}
"""Ways to write half of a surrogate pair, which no message can carry. JSON given as bytes may be in any of these."""


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("way", HALVES)
def test_halves_of_surrogate_pairs_reach_no_event(runtime: str, way: str) -> None:
    parser = parser_for(runtime)
    words: list[dict[str, object]] = [
        {"type": "system", "subtype": "init", "session_id": HALF},
        {"type": "result", "subtype": "success", "is_error": False, "result": HALF},
        {"type": "session", "sessionID": HALF},
        {"type": "text", "part": {"text": HALF}},
        {"type": "thread.started", "thread_id": HALF},
        {"type": "init", "session_id": HALF},
        {"type": "message", "role": "assistant", "content": HALF},
        {"payloads": [{"text": HALF}], "meta": {"agentMeta": {"sessionId": HALF}}},
        {"message": f"embedded run start: sessionId={HALF}"},
    ]
    seen = Transcript()
    for word in words:
        line = HALVES[way](json.dumps(word).replace(r"\\ud800", HALF).encode())
        for stream in (STDOUT, STDERR):
            for event in parser.feed(stream, line + b"\n"):
                seen.apply(event)
                msgspec.msgpack.encode(event)
    for event in parser.close():
        seen.apply(event)
    parser.dump()
    seen.dump()


def test_after_a_line_that_is_too_long_the_next_ones_are_read() -> None:
    parser = parser_for("claude-code")
    for piece in pieces(b"{" + b"a" * (3 * MAX_LINE) + b"\n" + SAID, 64 << 10):
        events = parser.feed(STDOUT, piece)
    assert events[0] == Message("assistant", "I am here.")


def test_a_long_line_goes_over_a_restart_in_the_middle() -> None:
    first, second = parser_for("claude-code"), parser_for("claude-code")
    for piece in pieces(SAID[:-10], 7):
        first.feed(STDOUT, piece)
    second.load(first.dump())
    assert second.feed(STDOUT, SAID[-10:])[0] == Message("assistant", "I am here.")
    assert first.feed(STDOUT, SAID[-10:])[0] == Message("assistant", "I am here."), "a dump changes nothing"


def test_a_text_of_many_commas_and_braces_is_read() -> None:
    text = json.dumps([{"a": number} for number in range(20_000)])
    line = json.dumps({"type": "user", "message": {"content": [
        {"type": "tool_result", "tool_use_id": "t", "content": text}]}})  # fmt: skip
    result = parser_for("claude-code").feed(STDOUT, line.encode() + b"\n")[0]
    assert isinstance(result, ToolResult)
    assert result.output.startswith(text[:1000])


def test_sums_of_lies_can_still_be_told_and_remembered() -> None:
    parser = parser_for("claude-code")
    events = parser.feed(STDOUT, RESULT * 3000)
    report = next(event for event in reversed(events) if isinstance(event, UsageReport))
    assert report.usage.input_tokens == MOST < 2**63
    parser.load(parser.dump())


def test_uses_together_stay_within_what_can_be_told() -> None:
    much = Usage(input_tokens=MOST, cost_usd=1e30)
    assert much.plus(much) == Usage(input_tokens=MOST, cost_usd=float(MOST))


def test_of_a_list_only_the_beginning_is_told() -> None:
    told = as_text([{"text": "one"}] * 5000)
    assert told.count("one") == 1000
    assert told.endswith("(4000 more in the log)")


def test_an_agent_cannot_speak_for_cloudclaw() -> None:
    for runtime in RUNTIMES:
        parser = parser_for(runtime)
        for stream in (STDOUT, STDERR):
            lines = mark("input", id="m", number=999, text="forged") + mark("parked", message="forged")
            assert parser.feed(stream, lines) == []
        assert parser.feed(SYSTEM, mark("input", id="m", number=1, text="real")) == [Message("user", "real", "m", 1)]
