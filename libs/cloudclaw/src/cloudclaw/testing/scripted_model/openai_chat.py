"""OpenAI Chat Completions: requests read, answers written as the API writes them."""

from __future__ import annotations

import json
from typing import Any

from cloudclaw.testing.scripted_model.conversation import Answer, Message, Request, Tool, text_of
from cloudclaw.testing.scripted_model.openai_errors import error
from cloudclaw.testing.scripted_model.sse import event

__all__ = ["PROTOCOL", "error", "read", "stream", "whole"]

PROTOCOL = "openai-chat"


def read(body: dict[str, Any], headers: dict[str, str], size: int) -> Request:
    """The request without its protocol."""
    messages = [one for one in body.get("messages", []) if isinstance(one, dict)]
    functions = [one.get("function", {}) for one in body.get("tools") or [] if one.get("type") == "function"]
    return Request(
        protocol=PROTOCOL,
        model=str(body.get("model", "")),
        stream=bool(body.get("stream")),
        system="\n".join(text_of(one.get("content")) for one in messages if one.get("role") in ("system", "developer")),
        messages=[_message(one) for one in messages if one.get("role") not in ("system", "developer")],
        tools=[Tool(one["name"], one.get("parameters") or {}) for one in functions if one.get("name")],
        size=size,
        session=headers.get("x-session-affinity", "") or str(body.get("prompt_cache_key") or body.get("user") or ""),
        max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
    )


def _message(message: dict[str, Any]) -> Message:
    if message.get("role") == "tool":
        return Message(role="user", results=1)
    return Message(
        role=str(message.get("role")),
        text=text_of(message.get("content")),
        calls=len(message.get("tool_calls") or []),
    )


def _usage(answer: Answer) -> dict[str, Any]:
    prompt = answer.input_tokens + answer.cache_read_tokens + answer.cache_write_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer.output_tokens,
        "total_tokens": prompt + answer.output_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cache_read_tokens},
    }


def whole(answer: Answer, request: Request, ident: str) -> dict[str, Any]:
    """The answer as one JSON body."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
    if answer.calls:
        message["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": json.dumps(c.arguments)}}
            for c in answer.calls
        ]
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if answer.calls else "stop"}
    return _frame(request, ident, "chat.completion") | {"choices": [choice], "usage": _usage(answer)}


def _frame(request: Request, ident: str, kind: str) -> dict[str, Any]:
    # A fixed time: nothing reads it, and recordings stay the same.
    return {"id": f"chatcmpl-{ident}", "object": kind, "created": 1700000000, "model": request.model}


def stream(answer: Answer, request: Request, ident: str) -> list[bytes]:
    """The answer as server-sent events; the last carries the usage, asked for or not."""
    frame = _frame(request, ident, "chat.completion.chunk")

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return event(frame | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    out = [chunk({"role": "assistant", "content": ""})]
    out += [chunk({"content": piece}) for piece in answer.pieces(answer.text)]
    for index, call in enumerate(answer.calls):
        head = {"index": index, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        out.append(chunk({"tool_calls": [head]}))
        for piece in answer.pieces(json.dumps(call.arguments)):
            out.append(chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}))
    out.append(chunk({}, "tool_calls" if answer.calls else "stop"))
    out.append(event(frame | {"choices": [], "usage": _usage(answer)}))
    out.append(b"data: [DONE]\n\n")
    return out
