"""Answers that the gateway gives itself, in the shape of the upstream's own errors."""

from __future__ import annotations

import enum
import json
from typing import Final


class Kind(enum.StrEnum):
    """Which protocol an upstream speaks."""

    ANTHROPIC = "anthropic"
    OPENAI = "openai"
    GEMINI = "gemini"


class Mark(enum.StrEnum):
    """Why the gateway refused; sent as the header `cloudclaw-error`, so that nobody takes it for the upstream's."""

    BAD_REQUEST = "bad-request"
    NOT_ALLOWED = "not-allowed"
    NO_UPSTREAM = "no-upstream"
    NO_KEY = "no-key"
    BAD_KEY = "bad-key"
    TOO_LARGE = "too-large"
    TOO_SLOW = "too-slow"
    NO_PRICE = "no-price"
    LIMIT = "limit"
    TURN = "turn"
    UNREACHABLE = "upstream-unreachable"
    BROKEN = "upstream-broken"
    TIMEOUT = "upstream-timeout"
    REDIRECT = "upstream-redirect"
    FAULT = "gateway-fault"


class Refusal(Exception):
    """The request goes no further.

    Attributes:
        status: HTTP status of the answer.
        mark: why.
        message: for people.
        retry: asking again may help. The SDKs of these protocols ask again at 408, 409, 429 and from 500 on, unless
            `x-should-retry: false` tells them not to.
    """

    def __init__(self, status: int, mark: Mark, message: str, *, retry: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.mark = mark
        self.message = message
        self.retry = retry

    def headers(self) -> list[tuple[str, str]]:
        """Of the answer."""
        headers = [("Content-Type", "application/json"), ("cloudclaw-error", self.mark)]
        if not self.retry:
            headers.append(("x-should-retry", "false"))
        return headers

    def body(self, kind: Kind) -> bytes:
        """The answer as an error of `kind`."""
        if kind is Kind.OPENAI:
            error = {
                "message": self.message,
                "type": _OPENAI_TYPES.get(self.status, "invalid_request_error"),
                "param": None,
                "code": _OPENAI_CODES.get(self.mark, self.mark.replace("-", "_")),
            }
            return json.dumps({"error": error}).encode()
        if kind is Kind.GEMINI:
            status = _GEMINI_STATUSES.get(self.status, "INVALID_ARGUMENT")
            return json.dumps({"error": {"code": self.status, "message": self.message, "status": status}}).encode()
        error = {"type": _ANTHROPIC_TYPES.get(self.status, "invalid_request_error"), "message": self.message}
        return json.dumps({"type": "error", "error": error}).encode()


_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    504: "timeout_error",
}
_OPENAI_TYPES: Final = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    504: "server_error",
}
_OPENAI_CODES: Final = {Mark.NO_KEY: "invalid_api_key", Mark.BAD_KEY: "invalid_api_key"}
_GEMINI_STATUSES: Final = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
