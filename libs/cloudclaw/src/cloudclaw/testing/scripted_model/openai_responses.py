"""OpenAI Responses: requests read, answers written as the API writes them."""

from __future__ import annotations

import json
from typing import Any

from cloudclaw.testing.scripted_model.conversation import Answer, Call, Message, Request, Tool, text_of
from cloudclaw.testing.scripted_model.openai_errors import error
from cloudclaw.testing.scripted_model.sse import event

__all__ = ["PROTOCOL", "error", "read", "stream", "whole"]

PROTOCOL = "openai-responses"


def read(body: dict[str, Any], headers: dict[str, str], size: int) -> Request:
    """The request without its protocol."""
    given = body.get("input", [])
    items = (
        [{"role": "user", "content": given}] if isinstance(given, str) else [i for i in given if isinstance(i, dict)]
    )
    instructions = [text_of(body.get("instructions"))]
    instructions += [text_of(item.get("content")) for item in items if item.get("role") in ("system", "developer")]
    functions = [one for one in body.get("tools") or [] if one.get("type") == "function" and one.get("name")]
    return Request(
        protocol=PROTOCOL,
        model=str(body.get("model", "")),
        stream=bool(body.get("stream")),
        system="\n".join(part for part in instructions if part),
        messages=[message for item in items if (message := _message(item)) is not None],
        tools=[Tool(one["name"], one.get("parameters") or {}) for one in functions],
        size=size,
        session=headers.get("session_id", "") or str(body.get("prompt_cache_key") or ""),
        max_tokens=body.get("max_output_tokens"),
    )


def _message(item: dict[str, Any]) -> Message | None:
    kind = str(item.get("type") or "message")
    if kind.endswith("_call_output"):
        return Message(role="user", results=1)
    if kind.endswith("_call"):
        return Message(role="assistant", calls=1)
    if kind == "message" and item.get("role") in ("user", "assistant"):
        return Message(role=str(item["role"]), text=text_of(item.get("content")))
    return None


def _text_item(answer: Answer, ident: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": answer.text, "annotations": []}
    return {"id": f"msg_{ident}", "type": "message", "role": "assistant", "status": "completed", "content": [part]}


def _call_item(call: Call) -> dict[str, Any]:
    arguments = json.dumps(call.arguments)
    return {
        "id": f"fc_{call.id}",
        "type": "function_call",
        "status": "completed",
        "call_id": call.id,
        "name": call.name,
        "arguments": arguments,
    }


def whole(answer: Answer, request: Request, ident: str) -> dict[str, Any]:
    """The answer as one JSON body."""
    output = [_text_item(answer, ident)] if answer.text else []
    output += [_call_item(call) for call in answer.calls]
    prompt = answer.input_tokens + answer.cache_read_tokens + answer.cache_write_tokens
    return {
        "id": f"resp_{ident}",
        "object": "response",
        "created_at": 1700000000,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": request.model,
        "output": output,
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": answer.cache_read_tokens},
            "output_tokens": answer.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + answer.output_tokens,
        },
    }


def stream(answer: Answer, request: Request, ident: str) -> list[bytes]:
    """The answer as server-sent events."""
    out: list[bytes] = []

    def send(kind: str, **data: Any) -> None:
        out.append(event({"type": kind, "sequence_number": len(out), **data}, kind))

    complete = whole(answer, request, ident)
    begun = complete | {"status": "in_progress", "output": [], "usage": None}
    send("response.created", response=begun)
    send("response.in_progress", response=begun)
    for index, item in enumerate(complete["output"]):
        at = {"item_id": item["id"], "output_index": index}
        if item["type"] == "message":
            send("response.output_item.added", output_index=index, item=item | {"status": "in_progress", "content": []})
            part = item["content"][0]
            send("response.content_part.added", **at, content_index=0, part=part | {"text": ""})
            for piece in answer.pieces(answer.text):
                send("response.output_text.delta", **at, content_index=0, delta=piece)
            send("response.output_text.done", **at, content_index=0, text=answer.text)
            send("response.content_part.done", **at, content_index=0, part=part)
        else:
            send(
                "response.output_item.added", output_index=index, item=item | {"status": "in_progress", "arguments": ""}
            )
            for piece in answer.pieces(item["arguments"]):
                send("response.function_call_arguments.delta", **at, delta=piece)
            send("response.function_call_arguments.done", **at, arguments=item["arguments"])
        send("response.output_item.done", output_index=index, item=item)
    send("response.completed", response=complete)
    return out
