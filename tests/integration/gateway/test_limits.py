"""Limits on requests, tokens and spend, over a real gateway."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest
from aiohttp import web

from cloudclaw.agents.events import ErrorKind
from cloudclaw.agents.kinds import kind_of
from cloudclaw_pool_manager.ports.gateway import GatewayLimit, LimitKind, ModelLimits, ModelUse
from tests.support.gateway import GatewayRig, Sandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGE = {"model": "m-1", "messages": []}


async def call(sandbox: Sandbox, path: str = "/anthropic/v1/messages", **more: Any) -> tuple[int, Any, str]:
    """Status, document and the gateway's mark of one call."""
    async with sandbox.session() as session, session.post(path, **({"json": MESSAGE} | more)) as response:
        return response.status, await response.json(), response.headers.get("cloudclaw-error", "")


async def test_a_limit_on_requests_refuses_the_next_and_tells_the_manager(shared: GatewayRig) -> None:
    sandbox = await shared.sandbox(limits=ModelLimits(requests=2))
    assert [(await call(sandbox))[0] for _ in range(2)] == [200, 200]
    for _ in range(2):
        status, document, mark = await call(sandbox)
        assert (status, mark) == (403, "limit")
        assert document["error"] == {
            "type": "permission_error",
            "message": "the task's limit of 2 model requests is reached",
        }
    await shared.told(lambda: bool(shared.limits))
    assert shared.limits == [
        GatewayLimit("u", LimitKind.REQUESTS, "the task's limit of 2 model requests is reached"),
    ]
    assert len(shared.upstream.requests) == 2
    # What costs nothing is not held back by it.
    status, _, _ = await call(sandbox, "/anthropic/v1/messages/count_tokens")
    assert status == 200
    assert (await shared.manager.use("u")).requests == 2


async def test_many_at_once_cannot_pass_a_limit_on_requests_together(shared: GatewayRig) -> None:
    go = asyncio.Event()

    async def play(request: web.Request) -> web.StreamResponse:
        await shared.upstream.record(request)
        await go.wait()
        return web.json_response({})

    shared.upstream.play = play
    sandbox = await shared.sandbox(limits=ModelLimits(requests=3))
    calls = [asyncio.create_task(call(sandbox)) for _ in range(10)]
    done = 0
    async with asyncio.timeout(30):
        for refused in asyncio.as_completed(calls):
            status, _, _ = await refused
            done += 1
            if done <= 7:
                assert status == 403
            if done == 7:
                go.set()
    assert len(shared.upstream.requests) == 3


async def test_earlier_attempts_count_in(shared: GatewayRig) -> None:
    used = ModelUse(requests=5, output_tokens=95)
    sandbox = await shared.sandbox(limits=ModelLimits(tokens=100), used=used)
    assert (await call(sandbox))[0] == 200
    status, document, _ = await call(sandbox, "/openai/v1/chat/completions")
    assert status == 403
    assert document["error"]["message"] == "the task's limit of 100 model tokens is reached: 103 were used"
    assert document["error"]["code"] == "limit"
    use = await shared.manager.detach("u")
    assert (use.requests, use.input_tokens, use.output_tokens) == (6, 3, 100)
    assert use.spend_usd == pytest.approx((3 * 1.0 + 5 * 10.0) / 1e6)


async def test_tokens_of_a_stream_are_told_while_it_runs(shared: GatewayRig) -> None:
    go = asyncio.Event()

    async def play(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for usage in ({"prompt_tokens": 50, "completion_tokens": 1}, {"prompt_tokens": 50, "completion_tokens": 80}):
            await response.write(b"data: " + json.dumps({"model": "m-1", "usage": usage}).encode() + b"\n\n")
            await go.wait()
        return response

    shared.upstream.play = play
    sandbox = await shared.sandbox(limits=ModelLimits(tokens=60))
    async with sandbox.session() as session, session.post("/openai/v1/chat/completions", json=MESSAGE) as response:
        await shared.told(lambda: "u" in shared.uses and shared.uses["u"].input_tokens == 50)
        go.set()
        # It passes the limit and goes on to its end; the next one is refused.
        assert b'"completion_tokens": 80' in await response.read()
    status, _, _ = await call(sandbox)
    assert status == 403


async def test_a_limit_on_spend_counts_by_the_price_list(shared: GatewayRig) -> None:
    usage = {"input_tokens": 1000, "output_tokens": 100, "cache_read_input_tokens": 10_000}
    shared.upstream.answer({"model": "m-1", "usage": usage | {"cache_creation_input_tokens": 800}})
    cost = (1000 * 1.0 + 100 * 10.0 + 10_000 * 0.1 + 800 * 1.25) / 1e6
    sandbox = await shared.sandbox(limits=ModelLimits(spend_usd=cost * 1.5))
    assert (await call(sandbox))[0] == 200
    assert (await shared.manager.use("u")).spend_usd == pytest.approx(cost)
    assert (await call(sandbox))[0] == 200
    status, document, _ = await call(sandbox)
    assert status == 403
    assert "limit of $0.006 for models is reached: $0.008 were spent" in document["error"]["message"]
    await shared.told(lambda: bool(shared.limits))
    assert shared.limits[0].kind is LimitKind.SPEND


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        ({"json": {"model": "other"}}, 400, "model 'other' of upstream anthropic has no price"),
        ({"data": b'{"model": "m-1", "model": "other"}'}, 400, "a field twice"),
        ({"data": b'{"model": "other", "model": "m-1"}'}, 400, "a field twice"),
        ({"json": MESSAGE | {"background": True}}, 400, "in the background"),
        ({"json": MESSAGE | {"speed": "fast"}}, 400, "costs more than its price at speed fast"),
        ({"json": {"messages": []}}, 400, "names no model"),
        ({"json": {"model": 5}}, 400, "names no model"),
        ({"data": b"nonsense"}, 400, "no JSON object"),
        ({"data": b"[" * 100_000}, 400, "no JSON object"),
        ({"json": MESSAGE, "headers": {"Content-Encoding": "gzip"}}, 415, "must not be compressed"),
    ],
)
async def test_what_has_no_price_is_refused_under_a_limit_on_spend(
    shared: GatewayRig, sent: dict[str, Any], status: int, message: str
) -> None:
    sandbox = await shared.sandbox(limits=ModelLimits(spend_usd=1.0))
    answered, document, _ = await call(sandbox, **({"json": None} | sent))
    assert answered == status
    assert message in document["error"]["message"]
    assert shared.upstream.requests == []
    # Without such a limit prices do not matter.
    await shared.attach(sandbox, limits=ModelLimits())
    if "price" in message:
        assert kind_of(status, document["error"]["message"]) is ErrorKind.REJECTED, "nobody is to look at his key"
        assert (await call(sandbox, **({"json": None} | sent)))[0] == 200


async def test_a_held_request_arrives_byte_for_byte(shared: GatewayRig) -> None:
    sandbox = await shared.sandbox(limits=ModelLimits(spend_usd=1.0))
    body = json.dumps({"model": "m-1", "text": "x" * 3_000_000}).encode()
    statuses = await asyncio.gather(*(call(sandbox, json=None, data=io.BytesIO(body)) for _ in range(4)))
    assert [status for status, _, _ in statuses] == [200] * 4
    assert all(recorded.body == body for recorded in shared.upstream.requests)


async def test_new_limits_hold_at_once_and_a_limit_still_reached_is_told_again(shared: GatewayRig) -> None:
    sandbox = await shared.sandbox(limits=ModelLimits(requests=1))
    await call(sandbox)
    assert (await call(sandbox))[0] == 403
    await shared.told(lambda: len(shared.limits) == 1)
    # A manager that was started anew says the same again, and shall know.
    await shared.attach(sandbox, limits=ModelLimits(requests=1))
    await shared.told(lambda: len(shared.limits) == 2)
    await shared.attach(sandbox, limits=ModelLimits(requests=2))
    assert (await call(sandbox))[0] == 200
    assert (await call(sandbox))[0] == 403


async def test_a_stream_that_hides_its_usage_is_estimated(shared: GatewayRig) -> None:
    async def play(request: web.Request) -> web.StreamResponse:
        await shared.upstream.record(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(20):
            await response.write(b'data: {"model": "m-1", "choices": [{"delta": {"content": "w"}}]}\n\n')
        await response.write(b"data: [DONE]\n\n")
        return response

    shared.upstream.play = play
    sandbox = await shared.sandbox()
    body = json.dumps(MESSAGE | {"stream": True, "pad": "x" * 1000})
    async with sandbox.session() as session, session.post("/openai/v1/chat/completions", data=body) as response:
        await response.read()
    # Not a byte was added to ask for it.
    assert shared.upstream.requests[0].body == body.encode()
    use = await shared.manager.use("u")
    assert (use.input_tokens, use.output_tokens) == (len(body) // 4, 21)
