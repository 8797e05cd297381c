"""Which headers pass, in each direction.

Header names here are lower case; values pass unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from cloudclaw_gateway.domain.refusal import Kind

Headers = list[tuple[str, str]]

_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect"}
    | {"content-length", "http2-settings", "early-data"}
)
"""Of one connection only. The length is set anew by who sends."""

_NEVER_OUT: Final = frozenset(
    # Credentials: whoever holds one inside a sandbox shall not use it here.
    {"authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie", "cookie2", "x-auth-token", "x-access-token"}
    # Who pays is decided by the key alone.
    | {"openai-organization", "openai-project", "anthropic-organization-id", "x-organization-id"}
    # Who asks, and how: neither is the sandbox's to claim.
    | {"host", "forwarded", "via", "x-real-ip", "origin", "referer", "x-http-method-override", "x-method-override"}
    | {"x-original-url", "x-rewrite-url", "x-should-retry", "cloudclaw-error"}
    # Compressed answers could not be counted.
    | {"accept-encoding"}
)
_NEVER_OUT_PREFIXES: Final = ("proxy-", "x-forwarded-", "sec-", "cf-", "x-amz-", "x-envoy-")

_KEY: Final = {
    Kind.ANTHROPIC: ("x-api-key", ""),
    Kind.OPENAI: ("Authorization", "Bearer "),
    Kind.GEMINI: ("x-goog-api-key", ""),
}
"""Where each protocol has its key: the header, and what stands before the key."""

_NEVER_IN: Final = frozenset(
    # What tells whose key it is, or the key.
    {"set-cookie", "set-cookie2", "authorization", "x-api-key", "api-key", "www-authenticate"}
    | {"anthropic-organization-id", "openai-organization", "openai-project", "x-organization-id"}
    # Of the way between gateway and upstream.
    | {"alt-svc", "strict-transport-security", "nel", "report-to", "reporting-endpoints", "server", "via", "location"}
    | {"public-key-pins", "expect-ct", "clear-site-data", "refresh", "date", "cloudclaw-error"}
)
_NEVER_IN_PREFIXES: Final = ("proxy-", "cf-", "x-envoy-", "x-amz-", "access-control-")


def outgoing(headers: Iterable[tuple[str, str]], kind: Kind, key: str | None, extra: Mapping[str, str]) -> Headers:
    """What is sent to an upstream: the request's own headers that may pass, then `extra`, then the key."""
    headers = list(headers)
    added = {name.lower() for name in extra}
    passing = [
        (name, value)
        for name, value in _end_to_end(headers)
        if name.lower() not in _NEVER_OUT
        and not name.lower().startswith(_NEVER_OUT_PREFIXES)
        and name.lower() not in added
    ]
    passing += [("Accept-Encoding", "identity"), *extra.items()]
    if key is not None:
        name, before = _KEY[kind]
        passing.append((name, before + key))
    return passing


def incoming(headers: Iterable[tuple[str, str]]) -> Headers:
    """What a sandbox sees of an upstream's answer."""
    return [
        (name, value)
        for name, value in _end_to_end(list(headers))
        if name.lower() not in _NEVER_IN and not name.lower().startswith(_NEVER_IN_PREFIXES)
    ]


def _end_to_end(headers: Headers) -> Headers:
    """Without those of one connection, and without those that `Connection` names."""
    named = {
        part.strip().lower() for name, value in headers if name.lower() == "connection" for part in value.split(",")
    }
    return [(n, v) for n, v in headers if n.lower() not in _HOP_BY_HOP and n.lower() not in named]
