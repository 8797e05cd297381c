"""What the server does besides answering: pauses, failures, side calls, the record."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cloudclaw.testing.scripted_model import ScriptedModel, read_record

SCRIPT = {
    "scenarios": [
        {"name": "plain", "turns": [{"text": "Hello."}]},
        {
            "name": "flaky",
            "turns": [{"text": "At last.", "error": {"kind": "overloaded", "times": 2, "retry_after": 1}}],
        },
        {"name": "held", "turns": [{"text": "Now.", "hold": "go"}]},
        {"name": "stuck", "turns": [{"hang": "before"}]},
        {"name": "stuck-later", "turns": [{"text": "Half of it.", "chunk": 2, "hang": "during"}]},
        {"name": "broken", "turns": [{"text": "Half of it.", "chunk": 2, "cut": True}]},
        {"name": "tool", "turns": [{"tools": [{"bash": "ls"}]}]},
    ]
}


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


async def post(model: ScriptedModel, text: str, **more: Any) -> tuple[int, Any, dict[str, str]]:
    async with (
        aiohttp.ClientSession() as client,
        client.post(model.url + "/v1/messages", json=body(text, **more)) as response,
    ):
        return response.status, await response.json(), {k.lower(): v for k, v in response.headers.items()}


async def test_a_turn_fails_so_many_times_in_each_conversation_and_is_played_then() -> None:
    async with ScriptedModel(SCRIPT) as model:
        for session in ("a", "b"):
            metadata = {"user_id": session}
            seen = [await post(model, "[[scenario:flaky]]", metadata=metadata) for _ in range(3)]
            assert [status for status, _, _ in seen] == [529, 529, 200]
            assert seen[0][2]["retry-after"] == "1"
            assert seen[2][1]["content"][0]["text"] == "At last."


async def test_a_held_turn_waits_for_its_release_and_later_ones_do_not() -> None:
    async with ScriptedModel(SCRIPT) as model:
        waiting = asyncio.create_task(post(model, "[[scenario:held]]"))
        await model.wait_for(lambda entries: len(entries) == 1)
        assert not waiting.done()
        await model.release("go")
        assert (await waiting)[0] == 200
        assert (await post(model, "[[scenario:held]]"))[0] == 200


@pytest.mark.parametrize("name", ["stuck", "stuck-later"])
async def test_a_hanging_turn_is_recorded_when_its_client_goes_away(name: str) -> None:
    async with ScriptedModel(SCRIPT) as model:
        asking = asyncio.create_task(post(model, f"[[scenario:{name}]]", stream=True))
        await model.wait_for(lambda entries: any(entry["scenario"] == name for entry in entries))
        asking.cancel()
        (entry,) = await model.wait_for(lambda entries: entries[0]["ended"] is not None)
        assert entry["client_gone"]


async def test_a_cut_answer_ends_in_the_middle() -> None:
    async with ScriptedModel(SCRIPT) as model:
        with pytest.raises(aiohttp.ClientPayloadError):
            await post(model, "[[scenario:broken]]", stream=True)
        (entry,) = await model.wait_for(lambda entries: entries[0]["ended"] is not None)
        assert entry["bytes_sent"] > 0


async def test_a_call_for_a_title_takes_no_turn_though_it_quotes_the_prompt() -> None:
    async with ScriptedModel(SCRIPT) as model:
        system = "You are a title generator. You output only a thread title."
        _, answer, _ = await post(model, "Generate a title: [[scenario:plain]]", system=system)
        assert answer["content"][0]["text"] == "Scripted conversation"
        assert model.requests[0]["kind"] == "title"
        assert model.turns("plain") == []


async def test_a_summary_names_the_scenario_and_the_turn_to_go_on_with() -> None:
    async with ScriptedModel(SCRIPT) as model:
        _, answer, _ = await post(model, "[[scenario:plain]]", system="Summarize the conversation.")
        assert answer["content"][0]["text"].endswith("[[scenario:plain@0]]")


async def test_a_conversation_that_no_scenario_answers_is_an_error_where_tools_are_offered() -> None:
    async with ScriptedModel(SCRIPT) as model:
        status, answer, _ = await post(model, "hello", tools=[{"name": "Bash", "input_schema": {}}])
        assert status == 400
        assert "no scenario answers" in answer["error"]["message"]


async def test_a_tool_that_the_agent_does_not_offer_is_an_error_that_says_so() -> None:
    async with ScriptedModel(SCRIPT) as model:
        status, answer, _ = await post(model, "[[scenario:tool]]", tools=[{"name": "Read", "input_schema": {}}])
        assert status == 400
        assert "offers Read" in answer["error"]["message"]


async def test_requests_are_recorded_in_the_file_and_over_http(tmp_path: Path) -> None:
    file = tmp_path / "record.jsonl"
    for _ in range(2):  # a file goes on where it was
        async with ScriptedModel(SCRIPT, record=file) as model, aiohttp.ClientSession() as client:
            await post(model, "[[scenario:plain]]")
            url = f"{model.url}/scripted/requests?after=1&wait=10"
            async with client.get(url) as response:
                (entry,) = (await response.json())["requests"]
            assert entry["path"] == "/v1/messages"
            assert entry["scenario"] == "plain"
            assert entry["turn"] == 0
            assert entry["status"] == 200
            assert entry["body"]["messages"][0]["content"] == "[[scenario:plain]]"
            async with client.post(f"{model.url}/scripted/reset"):
                assert model.requests == []
    first, second = read_record(file)
    assert (first["id"], second["id"]) == (0, 1)
    assert first["bytes_sent"] == second["bytes_sent"] > 0
    assert not first["client_gone"]


async def test_the_command_says_what_it_is_and_serves(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps(SCRIPT))
    command = [sys.executable, "-m", "cloudclaw.testing.scripted_model", "--scenario", str(script)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout
        assert b"test support" in await process.stdout.readline()
        word, url = (await process.stdout.readline()).decode().split()
        assert word == "ready"
        async with aiohttp.ClientSession() as client, client.get(f"{url}/v1/models") as response:
            assert response.status == 200
    finally:
        process.terminate()
        assert await process.wait() == 0


async def test_the_command_refuses_a_bad_script_by_its_field(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text('{"scenarios": [{"name": "a", "turns": [{"texts": "b"}]}]}')
    command = [sys.executable, "-m", "cloudclaw.testing.scripted_model", "--scenario", str(script)]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, error = await process.communicate()
    assert process.returncode == 2
    assert b"`texts` - at `$.scenarios[0].turns[0]`" in error
