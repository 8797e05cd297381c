"""Upstreams, and which of their paths a request may reach.

A request's target is judged as it was sent. Nothing is decoded or normalised: what would need it is refused, so that
the upstream cannot read it in another way than it was judged.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cloudclaw_gateway.domain.prices import PriceList
from cloudclaw_gateway.domain.refusal import Kind, Mark, Refusal

MAX_TARGET: Final = 4096
"""Characters of a request's target at most."""

PATHS: Final[Mapping[Kind, Sequence[str]]] = {
    Kind.ANTHROPIC: ("POST messages", "POST messages/count_tokens", "GET models", "GET models/*"),
    Kind.OPENAI: (
        "POST chat/completions",
        "POST responses",
        "POST responses/input_tokens",
        "POST responses/compact",
        "POST completions",
        "POST embeddings",
        "GET models",
        "GET models/*",
    ),
    Kind.GEMINI: (
        "POST models/*:generateContent",
        "POST models/*:streamGenerateContent",
        "POST models/*:embedContent",
        "POST models/*:countTokens",
        "GET models",
        "GET models/*",
    ),
}
"""What each protocol's agents need. `*` is anything within one step; a version such as `v1` may stand before it."""

FREE: Final = ("messages/count_tokens", "responses/input_tokens", "models/*:countTokens")
"""Operations that no upstream charges for, though they are POST."""

_SILENT: Final = ("embeddings", "models/*:embedContent")
"""Operations that read only."""

_STEP: Final = re.compile(r"[A-Za-z0-9._~:@+=,-]+")
_QUERY: Final = re.compile(r"(?:[A-Za-z0-9._~:/?@!$&'()*+,;=\[\]-]|%[0-9A-Fa-f]{2})*")
_VERSION: Final = re.compile(r"v[0-9]+[a-z0-9]*")
_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_CREDENTIALS: Final = frozenset(
    {"key", "apikey", "xapikey", "accesstoken", "authtoken", "token", "authorization", "auth", "password", "secret"}
    | {"subscriptionkey", "bearer", "idtoken"}
)
"""Query parameters that carry credentials, without `-`, `_` and case."""


@dataclass(frozen=True, slots=True)
class Target:
    """A request's target, taken apart.

    Attributes:
        upstream: the first step.
        steps: the others; no empty one, no `.` and no `..`.
        query: without credentials and `?`; may be empty.
    """

    upstream: str
    steps: tuple[str, ...]
    query: str


def parse_target(target: str) -> Target:
    """Take a request's target apart. Raises `Refusal` for what is no plain path of an upstream."""
    if len(target) > MAX_TARGET:
        raise Refusal(400, Mark.BAD_REQUEST, f"the path is longer than {MAX_TARGET} characters")
    path, _, query = target.partition("?")
    if not path.startswith("/"):
        # Absolute and authority forms would name a host of their own.
        raise Refusal(400, Mark.BAD_REQUEST, "give a path such as /anthropic/v1/messages, not a URL")
    steps = path[1:].split("/")
    for step in steps:
        if not _STEP.fullmatch(step) or step in (".", ".."):
            raise Refusal(400, Mark.BAD_REQUEST, "the path has an empty, relative or encoded step")
    if not _QUERY.fullmatch(query):
        raise Refusal(400, Mark.BAD_REQUEST, "the query has characters that no query may have")
    return Target(steps[0], tuple(steps[1:]), _without_credentials(query))


def _without_credentials(query: str) -> str:
    return "&".join(part for part in query.split("&") if part and _name(part) not in _CREDENTIALS)


def _name(parameter: str) -> str:
    name = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), parameter.partition("=")[0])
    return re.sub(r"[-_+ .]", "", name).lower()


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes.

    Attributes:
        url: whole, on the upstream's own scheme, host and base path.
        operation: the path without the version.
        metered: it may cost something, so it is counted and limited.
        writes: its answer counts as output.
        model: when the path names it; otherwise the body does.
    """

    url: str
    operation: str
    metered: bool
    writes: bool = True
    model: str = ""


@dataclass(frozen=True, slots=True)
class Upstream:
    """One endpoint that sandboxes may call.

    Attributes:
        name: first step of the path inside sandboxes.
        kind: protocol.
        url: scheme, host, and maybe port and base path; no `/` at its end, no query.
        anonymous: it wants no key.
        paths: `METHOD path` of what may be called.
        headers: added to every request.
        prices: of its models.
    """

    name: str
    kind: Kind
    url: str
    anonymous: bool = False
    paths: Sequence[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    prices: PriceList = field(default_factory=lambda: PriceList({}))

    def route(self, method: str, target: Target) -> Route:
        """Where `target` leads. Raises `Refusal` for what is not allowed."""
        steps = target.steps
        versioned = bool(steps) and _VERSION.fullmatch(steps[0]) is not None
        operation = steps[1:] if versioned else steps
        methods = {
            allowed
            for allowed, _, pattern in (entry.partition(" ") for entry in self.paths or PATHS[self.kind])
            if _matches(pattern.split("/"), operation)
        }
        if not methods:
            raise Refusal(404, Mark.NOT_ALLOWED, f"this path of upstream {self.name} is not among those allowed")
        if method not in methods:
            raise Refusal(405, Mark.NOT_ALLOWED, f"this path of upstream {self.name} takes {' and '.join(methods)}")
        if versioned and self.url.endswith(f"/{steps[0]}"):
            # Endpoints are known with and without their version: it stands once.
            steps = operation
        name = "/".join(operation)
        url = f"{self.url}/{'/'.join(steps)}" + (f"?{target.query}" if target.query else "")
        free, silent = (any(fnmatch.fnmatchcase(name, pattern) for pattern in group) for group in (FREE, _SILENT))
        model = operation[-1].rpartition(":")[0] if self.kind is Kind.GEMINI else ""
        return Route(url, name, method == "POST" and not free, not silent, model)


def _matches(pattern: Sequence[str], steps: Sequence[str]) -> bool:
    return len(pattern) == len(steps) and all(map(fnmatch.fnmatchcase, steps, pattern))
