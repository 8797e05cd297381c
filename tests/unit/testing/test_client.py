"""The scripted model, asked from elsewhere."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from cloudclaw.testing.scripted_model import ModelClient, ScriptedModel

SCRIPT = {
    "scenarios": [
        {"name": "held", "turns": [{"text": "Now.", "hold": "go & on"}]},
        {"name": "other", "turns": [{"text": "Hello."}]},
    ]
}


async def post(model: ScriptedModel, scenario: str) -> int:
    body = {"model": "m", "messages": [{"role": "user", "content": f"[[scenario:{scenario}]]"}]}
    async with (
        aiohttp.ClientSession() as client,
        client.post(model.url + "/v1/messages", json=body) as answer,
    ):
        return answer.status


def client_of(model: ScriptedModel) -> ModelClient:
    return ModelClient(model.url.removeprefix("http://"))


async def test_it_reads_the_turns_of_one_scenario() -> None:
    async with ScriptedModel(SCRIPT) as model:
        await post(model, "other")
        assert await asyncio.to_thread(client_of(model).requests, "held") == []
        (entry,) = await asyncio.to_thread(client_of(model).requests, "other")
        assert (entry["turn"], entry["status"]) == (0, 200)


async def test_it_waits_for_a_turn_and_lets_it_go_on() -> None:
    async with ScriptedModel(SCRIPT) as model:
        client = client_of(model)
        waiting = asyncio.create_task(asyncio.to_thread(client.asked_for, "held", 0, within=30))
        twice = asyncio.create_task(asyncio.to_thread(client.asked_for, "held", 0, times=2, within=30))
        first = asyncio.create_task(post(model, "held"))
        assert [entry["ended"] for entry in await waiting] == [None]
        assert not twice.done()
        second = asyncio.create_task(post(model, "held"))
        assert len(await twice) == 2
        await asyncio.to_thread(client.release, "go & on")
        assert [await first, await second] == [200, 200]


async def test_it_waits_for_clients_to_go_away() -> None:
    async with ScriptedModel(SCRIPT) as model:
        client = client_of(model)
        asking = asyncio.create_task(post(model, "held"))
        await asyncio.to_thread(client.asked_for, "held", 0, within=30)
        waiting = asyncio.create_task(asyncio.to_thread(client.asked_for, "held", 0, gone=True, within=30))
        assert not waiting.done()
        asking.cancel()
        assert (await waiting)[0]["client_gone"]


async def test_what_does_not_come_is_an_error_that_says_what_came() -> None:
    async with ScriptedModel(SCRIPT) as model:
        await post(model, "other")
        with pytest.raises(TimeoutError, match=r"0\.2 s; asked of other .turn, status.: \[.0, 200.\]"):
            await asyncio.to_thread(client_of(model).asked_for, "other", 1, within=0.2)
