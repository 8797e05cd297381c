"""Prices, limits, and the answers that tell of them."""

from __future__ import annotations

import json

import pytest

from cloudclaw_gateway.domain.headers import incoming, outgoing
from cloudclaw_gateway.domain.prices import Price, PriceList
from cloudclaw_gateway.domain.refusal import Kind, Mark, Refusal
from cloudclaw_gateway.domain.use import LimitKind, Limits, Tokens, Use


def test_the_exact_name_goes_first_and_then_the_longest_glob() -> None:
    def price(number: float) -> Price:
        return Price(number, 0, 0, 0)

    prices = PriceList({"*": price(1), "claude-*": price(2), "claude-haiku-*": price(3), "claude-haiku-4": price(4)})
    found = {model: prices.find(model) for model in ("claude-haiku-4", "claude-haiku-3", "claude-opus", "gpt")}
    assert {model: p.input if p else None for model, p in found.items()} == {
        "claude-haiku-4": 4,
        "claude-haiku-3": 3,
        "claude-opus": 2,
        "gpt": 1,
    }
    assert PriceList({"claude-*": price(2)}).find("Claude-x") is None


def test_each_kind_of_token_has_its_price() -> None:
    assert Price(3, 15, 0.3, 3.75).cost(Tokens(1000, 100, 10_000, 200)) == pytest.approx(
        0.003 + 0.0015 + 0.003 + 0.00075
    )
    assert Price(0, 0, 0, 0, search=10).cost(Tokens(1000, searches=3)) == pytest.approx(0.03)


def test_what_is_set_aside_for_input_is_of_the_dearest_kind() -> None:
    assert Price(3, 15, 0.3, 3.75).most(Tokens(1000, 100)) == pytest.approx(0.00375 + 0.0015)


@pytest.mark.parametrize(
    ("limits", "use", "kind"),
    [
        (Limits(), Use(10**9, 10**9, 0, 0, 0, 1e9), None),
        (Limits(requests=2), Use(1), None),
        (Limits(requests=2), Use(2), LimitKind.REQUESTS),
        (Limits(tokens=10), Use(9, 2, 3, 4, 0), None),
        (Limits(tokens=10), Use(9, 2, 3, 4, 1), LimitKind.TOKENS),
        (Limits(spend_usd=1.0), Use(spend_usd=0.999), None),
        (Limits(spend_usd=1.0), Use(spend_usd=1.0), LimitKind.SPEND),
    ],
)
def test_a_limit_is_reached_when_nothing_of_it_is_left(limits: Limits, use: Use, kind: LimitKind | None) -> None:
    reached = limits.reached(use)
    assert (reached[0] if reached else None) == kind


def test_refusals_have_the_shape_of_each_protocol() -> None:
    refusal = Refusal(401, Mark.NO_KEY, "no key")
    assert json.loads(refusal.body(Kind.ANTHROPIC)) == {
        "type": "error",
        "error": {"type": "authentication_error", "message": "no key"},
    }
    assert json.loads(refusal.body(Kind.OPENAI)) == {
        "error": {"message": "no key", "type": "authentication_error", "param": None, "code": "invalid_api_key"}
    }
    assert ("x-should-retry", "false") in refusal.headers()
    assert ("x-should-retry", "false") not in Refusal(502, Mark.UNREACHABLE, "x", retry=True).headers()


def test_headers_of_a_connection_and_those_it_names_stay_on_it() -> None:
    headers = [("Connection", "X-Hop, close"), ("x-hop", "1"), ("Keep-Alive", "5"), ("X-End", "2")]
    assert ("X-End", "2") in outgoing(headers, Kind.OPENAI, None, {})
    assert incoming(headers) == [("X-End", "2")]
    assert not [n for n, _ in outgoing(headers, Kind.OPENAI, None, {}) if n.lower() in ("x-hop", "keep-alive")]


def test_the_operators_headers_and_the_key_go_before_the_sandboxes() -> None:
    headers = [("X-Team", "mine"), ("authorization", "mine"), ("anthropic-version", "1")]
    sent = outgoing(headers, Kind.ANTHROPIC, "k", {"x-team": "theirs"})
    assert sent == [
        ("anthropic-version", "1"),
        ("Accept-Encoding", "identity"),
        ("x-team", "theirs"),
        ("x-api-key", "k"),
    ]
