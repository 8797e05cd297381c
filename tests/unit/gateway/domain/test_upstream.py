"""Which targets lead where."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudclaw_gateway.domain.refusal import Kind, Mark, Refusal
from cloudclaw_gateway.domain.upstream import Upstream, parse_target

ANTHROPIC = Upstream("anthropic", Kind.ANTHROPIC, "https://m.eg/base")
OPENAI = Upstream("openai", Kind.OPENAI, "https://m.eg/api/v1")


@pytest.mark.parametrize(
    ("upstream", "method", "target", "url", "metered"),
    [
        (ANTHROPIC, "POST", "/anthropic/v1/messages", "https://m.eg/base/v1/messages", True),
        (ANTHROPIC, "POST", "/anthropic/v1/messages?beta=true", "https://m.eg/base/v1/messages?beta=true", True),
        (ANTHROPIC, "POST", "/anthropic/v1/messages/count_tokens", "https://m.eg/base/v1/messages/count_tokens", False),
        (ANTHROPIC, "GET", "/anthropic/v1/models?limit=5&key=x", "https://m.eg/base/v1/models?limit=5", False),
        (ANTHROPIC, "GET", "/anthropic/v1/models/m-1", "https://m.eg/base/v1/models/m-1", False),
        (OPENAI, "POST", "/openai/v1/chat/completions", "https://m.eg/api/v1/chat/completions", True),
        (OPENAI, "POST", "/openai/chat/completions", "https://m.eg/api/v1/chat/completions", True),
        (OPENAI, "POST", "/openai/v2/responses", "https://m.eg/api/v1/v2/responses", True),
        (OPENAI, "POST", "/openai/v1/responses", "https://m.eg/api/v1/responses", True),
    ],
)  # fmt: skip
def test_what_is_allowed_goes_below_the_upstreams_url(
    upstream: Upstream, method: str, target: str, url: str, metered: bool
) -> None:
    route = upstream.route(method, parse_target(target))
    assert (route.url, route.metered) == (url, metered)


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("POST", "/anthropic", 404),
        ("POST", "/anthropic/v1", 404),
        ("POST", "/anthropic/v1/messages/batches", 404),
        ("POST", "/anthropic/v1/v1/messages", 404),
        ("POST", "/anthropic/v1/complete", 404),
        ("GET", "/anthropic/v1/models/a/b", 404),
        ("GET", "/anthropic/v1/messages", 405),
        ("DELETE", "/anthropic/v1/models/m", 405),
    ],
)
def test_what_is_not_allowed_is_refused(method: str, target: str, status: int) -> None:
    with pytest.raises(Refusal) as caught:
        ANTHROPIC.route(method, parse_target(target))
    assert (caught.value.status, caught.value.mark) == (status, Mark.NOT_ALLOWED)


def test_configured_paths_take_the_place_of_the_protocols_own() -> None:
    upstream = Upstream("x", Kind.OPENAI, "http://x", paths=("POST audio/*", "GET audio/*"))
    assert upstream.route("POST", parse_target("/x/v1/audio/speech")).url == "http://x/v1/audio/speech"
    with pytest.raises(Refusal, match="not among those allowed"):
        upstream.route("POST", parse_target("/x/v1/chat/completions"))


@pytest.mark.parametrize(
    ("query", "left"),
    [
        ("beta=true", "beta=true"),
        ("key=1&beta=true&api_key=2", "beta=true"),
        ("API-KEY=1&%6b%65%79=2&access_token&x=key", "x=key"),
        ("a=1&&b=2", "a=1&b=2"),
        ("", ""),
    ],
)
def test_credentials_leave_the_query(query: str, left: str) -> None:
    assert parse_target(f"/u/p?{query}").query == left


@given(st.text(alphabet=string.printable, max_size=40))
def test_whatever_is_asked_stays_below_the_upstreams_url(rest: str) -> None:
    """Over any target that is not refused: scheme, host and base path stand, and no step goes up."""
    open_to_all = Upstream("u", Kind.OPENAI, "https://m.eg/base", paths=("POST *", "POST */*", "POST */*/*"))
    try:
        route = open_to_all.route("POST", parse_target("/u/" + rest))
    except Refusal:
        return
    assert route.url.startswith("https://m.eg/base/")
    path = route.url.removeprefix("https://m.eg/base/").partition("?")[0]
    assert all(step not in ("", ".", "..") for step in path.split("/"))
    assert not set(path) & set("%\\#@ \t\r\n") - {"@"}


@pytest.mark.parametrize(
    ("call", "metered"), [("generateContent", True), ("streamGenerateContent", True), ("countTokens", False)]
)
def test_a_model_in_the_path_is_found_there(call: str, metered: bool) -> None:
    gemini = Upstream("gemini", Kind.GEMINI, "https://m.eg")
    route = gemini.route("POST", parse_target(f"/gemini/v1beta/models/gem-1:{call}?alt=sse&key=x"))
    assert route.url == f"https://m.eg/v1beta/models/gem-1:{call}?alt=sse"
    assert (route.model, route.metered) == ("gem-1", metered)
    with pytest.raises(Refusal):
        gemini.route("POST", parse_target("/gemini/v1beta/models/gem-1:batchGenerateContent"))
