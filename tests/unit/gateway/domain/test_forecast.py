"""What a body tells of what its request may use."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloudclaw_gateway.domain.forecast import Forecast, foresee
from cloudclaw_gateway.domain.refusal import Refusal
from cloudclaw_gateway.domain.use import Tokens

UNNAMED = 1000


def read(body: bytes) -> Forecast | None:
    return foresee(body, writes=True, unnamed_output=UNNAMED)


@pytest.mark.parametrize(
    ("fields", "output"),
    [
        ({}, UNNAMED),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6, "n": 3}, 18),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
        ({"max_output_tokens": 7}, 7),
        ({"max_tokens": 5, "best_of": 4, "prompt": ["a", "b"]}, 40),
        ({"max_tokens": 5, "prompt": [1, 2, 3]}, 5),
        ({"generationConfig": {"maxOutputTokens": 8, "candidateCount": 2}}, 16),
        ({"generation_config": {"max_output_tokens": 8}, "generationConfig": {"maxOutputTokens": 9}}, 9),
        ({"max_tokens": None}, UNNAMED),
        ({"max_tokens": -5, "n": 0}, UNNAMED),
        ({"max_tokens": True, "n": "9"}, UNNAMED),
        ({"max_tokens": 1 << 50}, UNNAMED),
        ({"max_tokens": 1 << 39, "n": 1 << 39}, 1 << 40),
        ({"messages": [{"max_tokens": 5}], "tools": {"n": 9}}, UNNAMED),
    ],
)
def test_output_is_what_the_request_names_for_each_answer(fields: dict[str, Any], output: int) -> None:
    body = json.dumps({"model": "m", **fields}).encode()
    assert read(body) == Forecast("m", Tokens(len(body), output))
    assert foresee(body, writes=False, unnamed_output=UNNAMED) == Forecast("m", Tokens(len(body), 0))


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": "r"},
        {"conversation": {"id": "c"}},
        {"prompt": {"id": "p"}},
        {"cachedContent": "c"},
        {"cached_content": "c"},
    ],
)
def test_input_that_lies_elsewhere_is_not_foreseen(fields: dict[str, Any]) -> None:
    assert read(json.dumps({"model": "m", **fields}).encode()) == Forecast("m", None)


@pytest.mark.parametrize(
    ("fields", "dearer"),
    [
        ({}, ""),
        ({"service_tier": None, "speed": "standard"}, ""),
        *(({"service_tier": tier}, "") for tier in ("auto", "default", "flex", "standard_only")),
        ({"service_tier": "priority"}, "service_tier priority"),
        ({"speed": "fast"}, "speed fast"),
        ({"service_tier": {"x": "y" * 100}}, "service_tier {'x': 'yyyyyyyyyyyyy"),
    ],
)
def test_what_costs_more_than_the_models_price_is_seen(fields: dict[str, Any], dearer: str) -> None:
    forecast = read(json.dumps({"model": "m", **fields}).encode())
    assert forecast is not None
    assert forecast.dearer == dearer


@pytest.mark.parametrize("body", [b"", b"x", b"[]", b"7", b"null", b'{"model": "m"', b"{" * 100_000])
def test_what_is_no_object_tells_nothing(body: bytes) -> None:
    assert read(body) is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "m-1", "model": "other"}',
        b'{"model": "m-1", "model": "m-1"}',
        b'{"model": "m-1", "x": {}, "mod\\u0065l": "other"}',
        b'{"model": null, "model": "m-1"}',
        b'{"model": "m-1", "max_tokens": 5, "max_tokens": null}',
        b'{"n": 1, "n": 1000}',
        b"{" + b'"model": "m-1", ' * 100_000 + b'"x": 1}',
    ],
)
def test_a_field_that_stands_there_twice_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal, match="twice"):
        read(body)


def test_twice_within_something_else_is_none_of_its_business() -> None:
    assert read(b'{"model": "m", "tools": [{"model": 1, "model": 2}, {"n": 1, "n": 2}]}') is not None


def test_answers_in_the_background_are_refused() -> None:
    with pytest.raises(Refusal, match="background"):
        read(b'{"model": "m", "background": true}')
    assert read(b'{"model": "m", "background": false}') is not None
