"""Errors as OpenAI's two APIs write them."""

from __future__ import annotations

from typing import Any

_KINDS: dict[str, tuple[int, str, str | None, str]] = {
    "authentication": (401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    "permission": (
        403,
        "invalid_request_error",
        "unsupported_country_region_territory",
        "You are not allowed to do this.",
    ),
    "billing": (
        429,
        "insufficient_quota",
        "insufficient_quota",
        "You exceeded your current quota, please check your plan and billing details.",
    ),
    "not_found": (
        404,
        "invalid_request_error",
        "model_not_found",
        "The model `{model}` does not exist or you do not have access to it.",
    ),
    "context_too_long": (
        400,
        "invalid_request_error",
        "context_length_exceeded",
        (
            "This model's maximum context length is 200000 tokens. However, your messages resulted in 250000 tokens. "
            "Please reduce the length of the messages."
        ),
    ),
    "invalid_request": (400, "invalid_request_error", None, "The request is invalid."),
    "rate_limit": (429, "requests", "rate_limit_exceeded", "Rate limit reached for requests."),
    "overloaded": (
        503,
        "server_error",
        "server_is_overloaded",
        "The engine is currently overloaded, please try again later.",
    ),
    "server_error": (500, "server_error", None, "The server had an error while processing your request."),
}


def error(kind: str, message: str, model: str, ident: str) -> tuple[int, dict[str, Any]]:
    """Status and body of an error; an empty `message` is the API's own for its kind."""
    status, name, code, default = _KINDS[kind]
    return status, {
        "error": {"message": message or default.format(model=model), "type": name, "param": None, "code": code}
    }
