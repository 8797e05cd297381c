"""What is read of responses, however their bytes are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudclaw_gateway.domain.meter import MAX_DOCUMENT, ResponseMeter
from cloudclaw_gateway.domain.use import Tokens


def stream(*events: Any) -> bytes:
    return b"".join(b"event: x\ndata: " + json.dumps(event).encode() + b"\n\n" for event in events)


ANTHROPIC = stream(
    {
        "type": "message_start",
        "message": {
            "model": "claude-1",
            "usage": {
                "input_tokens": 10,
                "output_tokens": 1,
                "cache_read_input_tokens": 200,
                "cache_creation_input_tokens": 30,
            },
        },
    },
    {"type": "content_block_delta", "delta": {"text": 'a trap: "usage": {"input_tokens": 999999}'}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 42}},
    {"type": "message_stop"},
)
CHAT = stream(
    {"model": "gpt-1", "choices": [{"delta": {"content": "hi"}}], "usage": None},
    {"model": "gpt-1", "choices": [], "usage": {
        "prompt_tokens": 100, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 60}}},
) + b"data: [DONE]\n\n"  # fmt: skip
RESPONSES = stream(
    {"type": "response.created", "response": {"model": "gpt-2", "usage": None}},
    {"type": "response.output_text.delta", "delta": "x"},
    {"type": "response.completed", "response": {"model": "gpt-2", "usage": {
        "input_tokens": 50, "input_tokens_details": {"cached_tokens": 20}, "output_tokens": 9, "total_tokens": 59}}},
)  # fmt: skip
GEMINI = stream(
    {"candidates": [{"content": {}}], "modelVersion": "gem-1", "usageMetadata": {"promptTokenCount": 50}},
    {"candidates": [{"content": {}}], "modelVersion": "gem-1", "usageMetadata": {
        "promptTokenCount": 50, "cachedContentTokenCount": 30, "candidatesTokenCount": 8, "thoughtsTokenCount": 4}},
)  # fmt: skip


@pytest.mark.parametrize(
    ("data", "model", "tokens"),
    [
        (ANTHROPIC, "claude-1", Tokens(10, 42, 200, 30)),
        (CHAT, "gpt-1", Tokens(40, 7, 60, 0)),
        (RESPONSES, "gpt-2", Tokens(30, 9, 20, 0)),
        (GEMINI, "gem-1", Tokens(20, 12, 30, 0)),
        (ANTHROPIC.replace(b"\n", b"\r\n"), "claude-1", Tokens(10, 42, 200, 30)),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_streams_are_counted_however_they_are_cut(data: bytes, model: str, tokens: Tokens, size: int) -> None:
    meter = ResponseMeter(streamed=True)
    for start in range(0, len(data), size):
        meter.feed(data[start : start + size])
    assert meter.finish(request_bytes=4000) == (tokens, False)
    assert meter.model == model


@pytest.mark.parametrize(
    ("document", "tokens"),
    [
        ({"model": "m", "usage": {"input_tokens": 5, "output_tokens": 6}}, Tokens(5, 6)),
        ({"model": "m", "usage": {"prompt_tokens": 5, "completion_tokens": 6}}, Tokens(5, 6)),
        ({"model": "m", "usage": {"prompt_tokens": 8, "total_tokens": 8}}, Tokens(8, 0)),
        (
            {"model": "m", "content": [{"input": {"usage": {"input_tokens": 0}}}], "usage": {"input_tokens": 5}},
            Tokens(5, 0),
        ),
    ],
)
def test_whole_documents_are_counted_by_their_own_usage(document: Any, tokens: Tokens) -> None:
    meter = ResponseMeter(streamed=False)
    data = json.dumps(document).encode()
    meter.feed(data[:10])
    meter.feed(data[10:])
    assert meter.finish(request_bytes=4000) == (tokens, False)
    assert meter.model == "m"


def test_a_stream_that_is_left_early_is_estimated_by_its_events() -> None:
    meter = ResponseMeter(streamed=True)
    start, *_ = ANTHROPIC.split(b'event: x\ndata: {"type": "message_delta"')
    meter.feed(start)
    for _ in range(20):
        meter.feed(stream({"type": "content_block_delta", "delta": {"text": "w"}}))
    tokens, estimated = meter.finish(request_bytes=4000)
    assert estimated
    # One for each event, and ten for the one with 41 characters.
    assert tokens == Tokens(10, 1 + 10 + 20, 200, 30)


def test_without_any_usage_request_and_events_are_estimated() -> None:
    meter = ResponseMeter(streamed=True)
    meter.feed(stream({"choices": [{"delta": {}}]}) * 5 + b"data: [DONE]\n\n")
    assert meter.finish(request_bytes=4000) == (Tokens(1000, 6), True)


def test_compressed_and_overlong_bodies_are_estimated_and_not_kept() -> None:
    for meter in (ResponseMeter(streamed=False, readable=False), ResponseMeter(streamed=False)):
        for _ in range(5):
            meter.feed(b'{"x": "' + b"x" * (MAX_DOCUMENT // 4))
        assert len(meter._rest) <= MAX_DOCUMENT
        tokens, estimated = meter.finish(request_bytes=400)
        assert estimated
        assert tokens.input == 100
        assert tokens.output > MAX_DOCUMENT // 4


def test_an_event_may_have_several_lines_of_data_and_the_last_no_end() -> None:
    meter = ResponseMeter(streamed=True)
    meter.feed(b'data: {"usage":\r\n: a comment\r\nid: 7\r\ndata: {"input_tokens": 3,\r\ndata:"output_tokens": 4}}\r\n')
    assert meter.finish(request_bytes=4000) == (Tokens(3, 4), False)
    meter = ResponseMeter(streamed=True)
    meter.feed(b'data: {"usage": {"input_tokens": 3, "output_tokens": 4}}')
    assert meter.finish(request_bytes=4000) == (Tokens(3, 4), False)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x" * 400}},
        {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "x" * 400}},
        {"choices": [{"delta": {"content": "x" * 200}}, {"delta": {"reasoning_content": "x" * 200}}]},
        {"choices": [{"delta": {"tool_calls": [{"id": "y" * 99, "function": {"name": "f", "arguments": "x" * 400}}]}}]},
        {"choices": [{"text": "x" * 400}]},
        {"type": "response.output_text.delta", "delta": "x" * 400},
        {"candidates": [{"content": {"role": "model", "parts": [{"text": "x" * 400}]}}]},
    ],
)
def test_what_an_event_writes_is_estimated_by_its_text(event: Any) -> None:
    """Upstreams put many tokens into one event, and much around them."""
    meter = ResponseMeter(streamed=True)
    meter.feed(stream(event, event))
    assert meter.finish(request_bytes=0) == (Tokens(0, 200), True)


def test_events_without_end_are_neither_kept_nor_free() -> None:
    meter = ResponseMeter(streamed=True)
    line = b"data: " + b"x" * 1000 + b"\n"
    for _ in range(3000):
        meter.feed(line)
        assert sum(map(len, meter._event)) <= MAX_DOCUMENT
    tokens, estimated = meter.finish(request_bytes=0)
    assert estimated
    assert tokens.output == pytest.approx(3000 * 1000 / 4, rel=0.02)


SEARCH = {"type": "web_search_call", "status": "completed"}


@pytest.mark.parametrize(
    ("streamed", "data"),
    [
        (True, stream(
            {"type": "message_delta", "usage": {"output_tokens": 1, "server_tool_use": {"web_search_requests": 1}}},
            {"type": "message_delta", "usage": {
                "input_tokens": 3, "output_tokens": 4, "server_tool_use": {"web_search_requests": 2}}})),
        (True, stream(
            {"type": "response.output_item.added", "item": SEARCH},
            {"type": "response.output_item.done", "item": SEARCH},
            {"type": "response.output_item.done", "item": {"type": "message", "content": []}},
            {"type": "response.output_item.done", "item": SEARCH},
            {"type": "response.completed", "response": {
                "output": [SEARCH, SEARCH], "usage": {"input_tokens": 3, "output_tokens": 4}}})),
        (False, json.dumps({
            "output": [SEARCH, {"type": "message"}, SEARCH],
            "usage": {"input_tokens": 3, "output_tokens": 4}}).encode()),
    ],
)  # fmt: skip
def test_searches_that_the_upstream_made_are_counted(streamed: bool, data: bytes) -> None:
    meter = ResponseMeter(streamed=streamed)
    meter.feed(data)
    assert meter.finish(request_bytes=4000) == (Tokens(3, 4, searches=2), False)


def test_a_compressed_stream_is_estimated_by_its_bytes() -> None:
    meter = ResponseMeter(streamed=True, readable=False)
    meter.feed(b"\x1f\x8b" * 200)
    assert meter.finish(request_bytes=400) == (Tokens(100, 100), True)


def test_geminis_stream_that_is_no_stream_of_events_is_read() -> None:
    meter = ResponseMeter(streamed=False)
    events = [json.loads(line[5:]) for line in GEMINI.splitlines() if line.startswith(b"data:")]
    meter.feed(json.dumps(events).encode())
    assert meter.finish(request_bytes=4000) == (Tokens(20, 12, 30, 0), False)


def test_geminis_stream_that_is_left_before_it_told_of_its_output_is_estimated() -> None:
    meter = ResponseMeter(streamed=True)
    text = {"candidates": [{"content": {"parts": [{"text": "x" * 80}]}}]}
    meter.feed(stream(text | {"usageMetadata": {"promptTokenCount": 50, "toolUsePromptTokenCount": 5}}))
    assert meter.finish(request_bytes=4000) == (Tokens(55, 20), True)


def test_after_an_overlong_event_the_next_ones_are_read() -> None:
    meter = ResponseMeter(streamed=True)
    meter.feed(b"data: " + b"x" * (MAX_DOCUMENT + 1))
    meter.feed(b"xx\n\n" + stream({"type": "message_delta", "usage": {"input_tokens": 3, "output_tokens": 4}}))
    assert meter.finish(request_bytes=0) == (Tokens(3, 4), False)


@pytest.mark.parametrize(
    "usage",
    [
        {"input_tokens": -5, "output_tokens": -1},
        {"input_tokens": 1e300, "output_tokens": "7"},
        {"input_tokens": True, "output_tokens": None},
        {"input_tokens": 1 << 60},
        {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 9}},
        {"prompt_tokens": 3, "prompt_tokens_details": "x"},
        [1],
        "x",
    ],
)
def test_absurd_counts_take_nothing_back(usage: Any) -> None:
    meter = ResponseMeter(streamed=True)
    meter.feed(stream({"usage": usage}))
    tokens, _ = meter.finish(request_bytes=0)
    assert min(tokens.input, tokens.output, tokens.cache_read, tokens.cache_write) >= 0
    assert max(tokens.input, tokens.output, tokens.cache_read, tokens.cache_write) <= 1 << 40


@given(st.lists(st.binary(max_size=50), max_size=20), st.booleans())
def test_no_bytes_break_it(pieces: list[bytes], streamed: bool) -> None:
    meter = ResponseMeter(streamed=streamed)
    for piece in pieces:
        meter.feed(b"data:" + piece)
    tokens, _ = meter.finish(request_bytes=10)
    assert tokens.input >= 0
