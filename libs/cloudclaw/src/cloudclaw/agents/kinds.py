"""What kind of trouble an endpoint's answer is, from its status, its error type and its words."""

from __future__ import annotations

import re
from typing import Final

from cloudclaw.agents.events import ErrorKind

_WORDS: Final = (
    # In order of precedence: an endpoint says 400 to a prompt that is too long, and 429 to an empty account.
    (
        ErrorKind.CONTEXT,
        (
            r"prompt is too long|context.{0,12}(length|window|limit)|maximum context|too many (input )?tokens"
            r"|input token count|exceeds the (maximum|limit)"
        ),
    ),
    (
        ErrorKind.AUTHENTICATION,
        (
            r"credit balance|insufficient.quota|exceeded your current quota|billing|invalid.{0,12}api.?key"
            r"|api.?key.{0,12}(invalid|missing|not valid)|not logged in|unauthori[sz]ed|authentication|unauthenticated"
        ),
    ),
    (ErrorKind.RATE_LIMIT, r"rate.?limit|too many requests|resource.?exhausted"),
    (ErrorKind.OVERLOADED, r"overloaded|at capacity|service unavailable"),
    (ErrorKind.NOT_FOUND, r"not_found_error|model.{0,60}(not exist|not found)|model_not_found|no such model"),
    (
        ErrorKind.UNREACHABLE,
        (
            r"econnrefused|econnreset|enotfound|etimedout|eai_again|connection.{0,9}(refused|reset|error|failed|closed)"
            r"|unable to connect|socket|fetch failed|timed? ?out|network|stream disconnected|error sending request"
        ),
    ),
    (ErrorKind.REJECTED, r"invalid_request_error"),  # OpenAI says so of refused keys and models too
)
_PATTERNS: Final = tuple((kind, re.compile(words, re.IGNORECASE)) for kind, words in _WORDS)
_LOOKED_AT: Final = 4096


def kind_of(status: int | None, *words: str) -> ErrorKind:
    """The kind of an error with this HTTP `status` (None when there was no answer) and what was said about it."""
    text = " ".join(word[:_LOOKED_AT] for word in words)
    said = next((kind for kind, pattern in _PATTERNS if pattern.search(text)), None)
    if status is None:
        return said or ErrorKind.UNKNOWN
    if said in (ErrorKind.CONTEXT, ErrorKind.AUTHENTICATION) and status in (400, 402, 403, 413, 422, 429):
        return said
    if status in (401, 402, 403, 407):
        return ErrorKind.AUTHENTICATION
    if status == 404:
        return ErrorKind.NOT_FOUND
    if status == 413:
        return ErrorKind.CONTEXT
    if status == 429:
        return ErrorKind.RATE_LIMIT
    if status in (503, 529):
        return ErrorKind.OVERLOADED
    if status >= 500 or status in (408, 425):
        return ErrorKind.SERVER
    return said or ErrorKind.REJECTED
