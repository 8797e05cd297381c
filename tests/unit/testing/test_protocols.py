"""Each protocol over real HTTP, streamed and not: shapes as the clients read them."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from cloudclaw.testing.scripted_model import ScriptedModel

SCRIPT = {
    "scenarios": [
        {
            "name": "one",
            "turns": [
                {
                    "text": "I look around, slowly.",
                    "tools": [{"bash": "ls -l"}, {"bash": "pwd"}],
                    "chunk": 8,
                    "usage": {"input_tokens": 100, "output_tokens": 20, "cache_read_tokens": 7},
                },
                {"text": "Done."},
            ],
        },
        {"name": "bad", "turns": [{"error": {"kind": "context_too_long"}}]},
    ]
}

SCHEMA = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
GO = "[[scenario:one]] go"


def anthropic(text: str, stream: bool) -> tuple[str, dict[str, Any]]:
    tools = [{"name": "Bash", "input_schema": SCHEMA}]
    messages = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    return "/v1/messages?beta=true", {"model": "m", "messages": messages, "tools": tools, "stream": stream}


def chat(text: str, stream: bool) -> tuple[str, dict[str, Any]]:
    tools = [{"type": "function", "function": {"name": "bash", "parameters": SCHEMA}}]
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": text}]
    return "/v1/chat/completions", {"model": "m", "messages": messages, "tools": tools, "stream": stream}


def responses(text: str, stream: bool) -> tuple[str, dict[str, Any]]:
    tools = [{"type": "function", "name": "shell", "parameters": SCHEMA}]
    items = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}]
    return "/v1/responses", {"model": "m", "input": items, "tools": tools, "stream": stream}


def gemini(text: str, stream: bool) -> tuple[str, dict[str, Any]]:
    verb = "streamGenerateContent?alt=sse" if stream else "generateContent"
    tools = [{"functionDeclarations": [{"name": "run_shell_command", "parametersJsonSchema": SCHEMA}]}]
    contents = [{"role": "user", "parts": [{"text": text}]}]
    return f"/v1beta/models/m:{verb}", {"contents": contents, "tools": tools}


async def ask(model: ScriptedModel, request: tuple[str, dict[str, Any]]) -> tuple[int, str]:
    path, body = request
    async with aiohttp.ClientSession() as client, client.post(model.url + path, json=body) as response:
        assert response.headers["x-scripted-model"] == "cloudclaw test support"
        return response.status, await response.text()


def events(text: str) -> list[dict[str, Any]]:
    """The data of server-sent events; where events are named, the name is the data's type."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        if fields["data"] == "[DONE]":
            found.append({"type": "[DONE]"})
            continue
        data = json.loads(fields["data"])
        assert fields.get("event", data.get("type")) == data.get("type")
        found.append(data)
    return found


async def test_anthropic_whole() -> None:
    async with ScriptedModel(SCRIPT) as model:
        answer = json.loads((await ask(model, anthropic(GO, False)))[1])
    assert [block["type"] for block in answer["content"]] == ["text", "tool_use", "tool_use"]
    assert answer["content"][1]["input"] == {"command": "ls -l"}
    assert answer["stop_reason"] == "tool_use"
    assert (answer["usage"]["input_tokens"], answer["usage"]["cache_read_input_tokens"]) == (100, 7)
    assert len({block.get("id") for block in answer["content"]}) == 3


async def test_anthropic_stream() -> None:
    async with ScriptedModel(SCRIPT) as model:
        found = events((await ask(model, anthropic(GO, True)))[1])
    assert found[0]["type"] == "message_start"
    assert found[0]["message"]["content"] == []
    assert [one["content_block"]["type"] for one in found if one["type"] == "content_block_start"] == [
        "text",
        "tool_use",
        "tool_use",
    ]
    deltas = [one for one in found if one["type"] == "content_block_delta"]
    assert "".join(one["delta"].get("text", "") for one in deltas) == "I look around, slowly."
    parts = [one["delta"]["partial_json"] for one in deltas if one["index"] == 1]
    assert json.loads("".join(parts)) == {"command": "ls -l"}
    assert found[-2]["delta"]["stop_reason"] == "tool_use"
    assert found[-2]["usage"]["output_tokens"] == 20
    assert found[-1]["type"] == "message_stop"


async def test_chat_whole() -> None:
    async with ScriptedModel(SCRIPT) as model:
        answer = json.loads((await ask(model, chat(GO, False)))[1])
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "I look around, slowly."
    assert json.loads(choice["message"]["tool_calls"][1]["function"]["arguments"]) == {"command": "pwd"}
    assert answer["usage"]["prompt_tokens"] == 107


async def test_chat_stream() -> None:
    async with ScriptedModel(SCRIPT) as model:
        found = events((await ask(model, chat(GO, True)))[1])
    assert found[-1] == {"type": "[DONE]"}
    assert found[-2]["choices"] == []
    assert found[-2]["usage"]["completion_tokens"] == 20
    deltas = [one["choices"][0]["delta"] for one in found[:-2]]
    assert "".join(delta.get("content", "") for delta in deltas) == "I look around, slowly."
    second = [call for delta in deltas for call in delta.get("tool_calls", []) if call["index"] == 1]
    assert second[0]["function"]["name"] == "bash"
    assert json.loads("".join(call["function"]["arguments"] for call in second)) == {"command": "pwd"}
    assert found[-3]["choices"][0]["finish_reason"] == "tool_calls"


async def test_responses_whole() -> None:
    async with ScriptedModel(SCRIPT) as model:
        answer = json.loads((await ask(model, responses(GO, False)))[1])
    assert [item["type"] for item in answer["output"]] == ["message", "function_call", "function_call"]
    assert json.loads(answer["output"][1]["arguments"]) == {"command": "ls -l"}
    assert answer["usage"]["total_tokens"] == 127


async def test_responses_stream() -> None:
    async with ScriptedModel(SCRIPT) as model:
        found = events((await ask(model, responses(GO, True)))[1])
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    assert found[0]["type"] == "response.created"
    text = [one["delta"] for one in found if one["type"] == "response.output_text.delta"]
    assert "".join(text) == "I look around, slowly."
    arguments = [
        one["delta"]
        for one in found
        if one["type"] == "response.function_call_arguments.delta" and one["output_index"] == 2
    ]
    assert json.loads("".join(arguments)) == {"command": "pwd"}
    assert found[-1]["type"] == "response.completed"
    assert len(found[-1]["response"]["output"]) == 3


async def test_gemini_whole_and_stream() -> None:
    async with ScriptedModel(SCRIPT) as model:
        whole = json.loads((await ask(model, gemini(GO, False)))[1])
        stream = events((await ask(model, gemini(GO, True)))[1])
    parts = whole["candidates"][0]["content"]["parts"]
    assert parts[1]["functionCall"]["args"] == {"command": "ls -l"}
    streamed = [part for chunk in stream for part in chunk["candidates"][0]["content"]["parts"]]
    assert "".join(part.get("text", "") for part in streamed) == "I look around, slowly."
    assert [part["functionCall"]["name"] for part in streamed if "functionCall" in part] == ["run_shell_command"] * 2
    assert [chunk["candidates"][0].get("finishReason") for chunk in stream][-2:] == [None, "STOP"]


@pytest.mark.parametrize(
    ("of", "status", "says"),
    [
        (anthropic, 400, ("error", "message", "prompt is too long")),
        (chat, 400, ("error", "code", "context_length_exceeded")),
        (responses, 400, ("error", "code", "context_length_exceeded")),
        (gemini, 400, ("error", "status", "INVALID_ARGUMENT")),
    ],
)
async def test_errors_have_the_form_of_their_protocol(of: Any, status: int, says: tuple[str, str, str]) -> None:
    async with ScriptedModel(SCRIPT) as model:
        found, text = await ask(model, of("[[scenario:bad]]", True))
    assert found == status
    assert says[2] in json.loads(text)[says[0]][says[1]]


@pytest.mark.parametrize(
    ("of", "call", "result"),
    [
        (
            anthropic,
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "Bash", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "[[scenario:bad]]"}]},
        ),
        (
            chat,
            {"role": "assistant", "tool_calls": [{"id": "t", "function": {"name": "bash", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "t", "content": "[[scenario:bad]]"},
        ),
        (
            responses,
            {"type": "function_call", "call_id": "t", "name": "shell", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "t", "output": "[[scenario:bad]]"},
        ),
        (
            gemini,
            {"role": "model", "parts": [{"functionCall": {"name": "run_shell_command", "args": {}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "run_shell_command", "response": {}}}]},
        ),
    ],
)
async def test_the_conversation_itself_says_which_turn_is_next(of: Any, call: Any, result: Any) -> None:
    path, body = of(GO, False)
    key = next(name for name in ("messages", "input", "contents") if name in body)
    body[key] = [*body[key], call, result]
    async with ScriptedModel(SCRIPT) as model:
        _, text = await ask(model, (path, body))
        _, again = await ask(model, (path, body))
        assert model.turns("one") == [1, 1]
    assert "Done." in text
    assert "Done." in again


async def test_counting_tokens_and_listing_models_take_no_turn() -> None:
    async with ScriptedModel(SCRIPT) as model, aiohttp.ClientSession() as client:
        path, body = anthropic(GO, False)
        async with client.post(model.url + "/v1/messages/count_tokens", json=body) as response:
            assert (await response.json())["input_tokens"] > 0
        async with client.get(model.url + "/v1/models") as response:
            assert [one["id"] for one in (await response.json())["data"]] == ["scripted", "scripted-small"]
        await ask(model, (path, body))
        assert model.turns("one") == [0]
        assert [entry["kind"] for entry in model.requests] == ["count_tokens", "models", "turn"]
