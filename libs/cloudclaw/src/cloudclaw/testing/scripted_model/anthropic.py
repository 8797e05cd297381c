"""Anthropic Messages: requests read, answers and errors written as the API writes them."""

from __future__ import annotations

import json
from typing import Any

from cloudclaw.testing.scripted_model.conversation import Answer, Message, Request, Tool, text_of
from cloudclaw.testing.scripted_model.sse import event

PROTOCOL = "anthropic"

ERRORS = {
    "authentication": (401, "authentication_error", "invalid x-api-key"),
    "permission": (403, "permission_error", "Your API key does not have permission to use the specified resource."),
    "billing": (400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
    "not_found": (404, "not_found_error", "model: {model}"),
    "context_too_long": (400, "invalid_request_error", "prompt is too long: 250000 tokens > 200000 maximum"),
    "invalid_request": (400, "invalid_request_error", "messages: the request is invalid"),
    "rate_limit": (429, "rate_limit_error", "This request would exceed your organization's rate limit."),
    "overloaded": (529, "overloaded_error", "Overloaded"),
    "server_error": (500, "api_error", "Internal server error"),
}


def read(body: dict[str, Any], headers: dict[str, str], size: int) -> Request:
    """The request without its protocol."""
    metadata = body.get("metadata")
    user = metadata.get("user_id", "") if isinstance(metadata, dict) else ""
    return Request(
        protocol=PROTOCOL,
        model=str(body.get("model", "")),
        stream=bool(body.get("stream")),
        system=text_of(body.get("system")),
        messages=[_message(one) for one in body.get("messages", []) if isinstance(one, dict)],
        tools=[Tool(one["name"], one.get("input_schema") or {}) for one in body.get("tools") or [] if one.get("name")],
        size=size,
        session=headers.get("x-claude-code-session-id", "") or str(user),
        max_tokens=body.get("max_tokens"),
    )


def _message(message: dict[str, Any]) -> Message:
    content = message.get("content")
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    kinds = [block.get("type") for block in blocks]
    text = content if isinstance(content, str) else text_of([b for b in blocks if b.get("type") == "text"])
    return Message(
        role=str(message.get("role")), text=text, calls=kinds.count("tool_use"), results=kinds.count("tool_result")
    )


def _usage(answer: Answer, output: int) -> dict[str, int]:
    return {
        "input_tokens": answer.input_tokens,
        "cache_creation_input_tokens": answer.cache_write_tokens,
        "cache_read_input_tokens": answer.cache_read_tokens,
        "output_tokens": output,
    }


def whole(answer: Answer, request: Request, ident: str) -> dict[str, Any]:
    """The answer as one JSON body."""
    content: list[dict[str, Any]] = [{"type": "text", "text": answer.text}] if answer.text else []
    content += [{"type": "tool_use", "id": c.id, "name": c.name, "input": c.arguments} for c in answer.calls]
    return {
        "id": f"msg_{ident}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": content,
        "stop_reason": "tool_use" if answer.calls else "end_turn",
        "stop_sequence": None,
        "usage": _usage(answer, answer.output_tokens),
    }


def stream(answer: Answer, request: Request, ident: str) -> list[bytes]:
    """The answer as server-sent events."""
    start = whole(answer, request, ident) | {"content": [], "stop_reason": None, "usage": _usage(answer, 1)}
    out = [event({"type": "message_start", "message": start}, "message_start"), event({"type": "ping"}, "ping")]
    index = 0

    def block(begin: dict[str, Any], deltas: list[dict[str, Any]]) -> None:
        nonlocal index
        head = {"type": "content_block_start", "index": index, "content_block": begin}
        out.append(event(head, "content_block_start"))
        out.extend(
            event({"type": "content_block_delta", "index": index, "delta": delta}, "content_block_delta")
            for delta in deltas
        )
        out.append(event({"type": "content_block_stop", "index": index}, "content_block_stop"))
        index += 1

    if answer.text:
        block(
            {"type": "text", "text": ""},
            [{"type": "text_delta", "text": piece} for piece in answer.pieces(answer.text)],
        )
    for call in answer.calls:
        block(
            {"type": "tool_use", "id": call.id, "name": call.name, "input": {}},
            [
                {"type": "input_json_delta", "partial_json": piece}
                for piece in answer.pieces(json.dumps(call.arguments))
            ],
        )
    stop = {"stop_reason": "tool_use" if answer.calls else "end_turn", "stop_sequence": None}
    usage = {"output_tokens": answer.output_tokens}
    out.append(event({"type": "message_delta", "delta": stop, "usage": usage}, "message_delta"))
    out.append(event({"type": "message_stop"}, "message_stop"))
    return out


def error(kind: str, message: str, model: str, ident: str) -> tuple[int, dict[str, Any]]:
    """Status and body of an error; an empty `message` is the API's own for its kind."""
    status, name, default = ERRORS[kind]
    detail = {"type": name, "message": message or default.format(model=model)}
    return status, {"type": "error", "error": detail, "request_id": f"req_{ident}"}
