"""Gemini's generateContent: requests read, answers and errors written as the API writes them."""

from __future__ import annotations

from typing import Any

from cloudclaw.testing.scripted_model.conversation import Answer, Message, Request, Tool, text_of
from cloudclaw.testing.scripted_model.sse import event

PROTOCOL = "gemini"

_KINDS = {
    "authentication": (401, "UNAUTHENTICATED", "API key not valid. Please pass a valid API key."),
    "permission": (403, "PERMISSION_DENIED", "The caller does not have permission"),
    "billing": (
        429,
        "RESOURCE_EXHAUSTED",
        "You exceeded your current quota, please check your plan and billing details.",
    ),
    "not_found": (404, "NOT_FOUND", "models/{model} is not found for API version v1beta"),
    "context_too_long": (
        400,
        "INVALID_ARGUMENT",
        "The input token count (1250000) exceeds the maximum number of tokens allowed (1048576).",
    ),
    "invalid_request": (400, "INVALID_ARGUMENT", "Request contains an invalid argument."),
    "rate_limit": (429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
    "overloaded": (503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
    "server_error": (500, "INTERNAL", "An internal error has occurred."),
}


def read(body: dict[str, Any], headers: dict[str, str], size: int) -> Request:
    """The request without its protocol; model and streaming stand in the path and come as `x-scripted-*` headers."""
    declared = [
        one for group in body.get("tools") or [] for one in group.get("functionDeclarations") or [] if one.get("name")
    ]
    return Request(
        protocol=PROTOCOL,
        model=headers.get("x-scripted-model-name", ""),
        stream=bool(headers.get("x-scripted-stream")),
        system=text_of((body.get("systemInstruction") or {}).get("parts")),
        messages=[_message(one) for one in body.get("contents", []) if isinstance(one, dict)],
        tools=[Tool(one["name"], one.get("parametersJsonSchema") or one.get("parameters") or {}) for one in declared],
        size=size,
        max_tokens=(body.get("generationConfig") or {}).get("maxOutputTokens"),
    )


def _message(message: dict[str, Any]) -> Message:
    parts = [part for part in message.get("parts") or [] if isinstance(part, dict)]
    return Message(
        role="assistant" if message.get("role") == "model" else "user",
        text=text_of([part for part in parts if not part.get("thought")]),
        calls=sum("functionCall" in part for part in parts),
        results=sum("functionResponse" in part for part in parts),
    )


def _chunk(parts: list[dict[str, Any]], answer: Answer, request: Request, ident: str, *, last: bool) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
    if last:
        candidate["finishReason"] = "STOP"
    prompt = answer.input_tokens + answer.cache_read_tokens + answer.cache_write_tokens
    return {
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": prompt,
            "cachedContentTokenCount": answer.cache_read_tokens,
            "candidatesTokenCount": answer.output_tokens,
            "totalTokenCount": prompt + answer.output_tokens,
        },
        "modelVersion": request.model,
        "responseId": ident,
    }


def _calls(answer: Answer) -> list[dict[str, Any]]:
    return [{"functionCall": {"id": call.id, "name": call.name, "args": call.arguments}} for call in answer.calls]


def whole(answer: Answer, request: Request, ident: str) -> dict[str, Any]:
    """The answer as one JSON body."""
    texts = [{"text": answer.text}] if answer.text else []
    return _chunk([*texts, *_calls(answer)], answer, request, ident, last=True)


def stream(answer: Answer, request: Request, ident: str) -> list[bytes]:
    """The answer as server-sent events."""
    parts = [[{"text": piece}] for piece in answer.pieces(answer.text)] + [[call] for call in _calls(answer)]
    return [
        event(_chunk(part, answer, request, ident, last=number == len(parts))) for number, part in enumerate(parts, 1)
    ]


def error(kind: str, message: str, model: str, ident: str) -> tuple[int, dict[str, Any]]:
    """Status and body of an error; an empty `message` is the API's own for its kind."""
    status, name, default = _KINDS[kind]
    return status, {"error": {"code": status, "message": message or default.format(model=model), "status": name}}
