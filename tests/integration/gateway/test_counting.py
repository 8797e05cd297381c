"""What is counted of answers that do not end, and of many at once, over a real gateway."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from cloudclaw_pool_manager.ports.gateway import ModelLimits
from tests.support.gateway import DEADLINE, GatewayRig, Sandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = {"model": "m-1", "stream": True, "messages": [{"role": "user", "content": "x" * 4000}]}
INPUT = len(json.dumps(CHAT)) // 4
CHUNK = b'data: {"model": "m-1", "choices": [{"delta": {"content": "a word of forty characters, more or less.."}}]}\n\n'


def play_stream(rig: GatewayRig, after: Any, **headers: str) -> None:
    """Chat streams without any usage: ten chunks of ten tokens, then `after(request)`."""

    async def play(request: web.Request) -> web.StreamResponse:
        await rig.upstream.record(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **headers})
        await response.prepare(request)
        await response.write(gzip.compress(CHUNK * 10) if headers else CHUNK * 10)
        await after(request)
        return response

    rig.upstream.play = play


async def for_ever(_: web.Request) -> None:
    await asyncio.Event().wait()


async def break_off(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()


@asynccontextmanager
async def under_way(sandbox: Sandbox) -> AsyncIterator[aiohttp.ClientResponse]:
    """A stream whose ten chunks have come."""
    async with (
        asyncio.timeout(DEADLINE),
        sandbox.session() as session,
        session.post("/openai/v1/chat/completions", json=CHAT) as response,
    ):
        assert await response.content.readexactly(len(CHUNK) * 10) == CHUNK * 10
        yield response


async def test_an_attempt_that_ends_in_a_stream_has_used_what_came(shared: GatewayRig) -> None:
    """Otherwise an agent that is killed, or kills itself, before its upstream tells would have used nothing."""
    play_stream(shared, for_ever)
    sandbox = await shared.sandbox()
    async with under_way(sandbox):
        use = await shared.manager.detach("u")
    assert (use.requests, use.input_tokens, use.output_tokens) == (1, INPUT, 100)
    assert use.spend_usd == pytest.approx((INPUT + 100 * 10) / 1e6)


async def test_a_stream_that_the_upstream_breaks_off_is_counted_as_far_as_it_came(shared: GatewayRig) -> None:
    play_stream(shared, break_off)
    sandbox = await shared.sandbox()
    async with under_way(sandbox) as response:
        with pytest.raises(aiohttp.ClientError):
            await response.content.read()
    await shared.told(lambda: "u" in shared.uses and shared.uses["u"].output_tokens > 0)
    assert (shared.uses["u"].input_tokens, shared.uses["u"].output_tokens) == (INPUT, 100)


async def test_a_compressed_stream_is_not_free(shared: GatewayRig) -> None:
    """Of an upstream that compresses although it was asked not to."""

    async def at_once(_: web.Request) -> None:
        return None

    play_stream(shared, at_once, **{"Content-Encoding": "gzip"})
    sandbox = await shared.sandbox()
    async with sandbox.session() as session, session.post("/openai/v1/chat/completions", json=CHAT) as response:
        assert await response.read() == CHUNK * 10
    use = await shared.manager.use("u")
    assert use.input_tokens == INPUT
    assert use.output_tokens == len(gzip.compress(CHUNK * 10)) // 4


async def test_two_sandboxes_of_one_attempt_count_together(shared: GatewayRig) -> None:
    play_stream(shared, for_ever)
    sandbox = await shared.sandbox()
    async with under_way(sandbox):
        # Its program was started anew in another sandbox, which breaks the stream of the first.
        await shared.sandbox()
        await shared.told(lambda: "u" in shared.uses and shared.uses["u"].output_tokens == 100)
        assert (await shared.manager.use("u")).requests == 1


async def test_a_gateway_that_stops_tells_what_it_broke_off(tmp_path: Path) -> None:
    rig = GatewayRig(tmp_path, STOP_GRACE="0.1")
    await rig.start()
    try:
        play_stream(rig, for_ever)
        sandbox = await rig.sandbox()
        async with under_way(sandbox):
            assert await rig.gateway.stop() == 0
        await rig.told(lambda: "u" in rig.uses and rig.uses["u"].output_tokens == 100)
    finally:
        await rig.close()


async def test_many_at_once_pass_a_limit_on_tokens_by_one_of_them_at_most(shared: GatewayRig) -> None:
    """Each may use 400 tokens and uses 300, and thirty come together."""
    body = {"model": "m-1", "max_tokens": 300, "pad": ""}
    body["pad"] = "x" * (100 - len(json.dumps(body)))
    now = most = 0

    async def play(request: web.Request) -> web.StreamResponse:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await shared.upstream.record(request)
        now -= 1
        return web.json_response({"model": "m-1", "usage": {"input_tokens": 20, "output_tokens": 280}})

    shared.upstream.play = play
    sandbox = await shared.sandbox(limits=ModelLimits(tokens=1000))
    async with sandbox.session() as session:

        async def one() -> int:
            async with session.post("/anthropic/v1/messages", json=body) as response:
                return response.status

        async with asyncio.timeout(DEADLINE):
            statuses = sorted(await asyncio.gather(*(one() for _ in range(30))))
    # Three leave 100, the fourth goes alone.
    assert statuses == [200] * 4 + [403] * 26
    assert most <= 2
    use = await shared.manager.use("u")
    assert (use.requests, use.input_tokens + use.output_tokens) == (4, 1200)
