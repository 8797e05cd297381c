"""What passes through a real gateway, and how: keys, headers, streams, counts."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest
from aiohttp import web

from cloudclaw_pool_manager.ports.gateway import Egress
from tests.support.gateway import GatewayRig

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGE = {"model": "m-1", "max_tokens": 10, "messages": [{"role": "user", "content": "hello"}]}

STREAM: dict[str, Any] = {"url": "/anthropic/v1/messages", "json": MESSAGE | {"stream": True}}


async def test_a_request_gets_the_tenants_key_and_none_of_its_own(shared: GatewayRig) -> None:
    sandbox = await shared.sandbox()
    async with sandbox.session() as session:
        for path, expected in (
            ("/anthropic/v1/messages?beta=true&key=stolen", ("x-api-key", "key-of-acme-anthropic")),
            ("/openai/v1/chat/completions", ("authorization", "Bearer key-of-acme-openai")),
        ):
            headers = {
                "Authorization": "Bearer stolen",
                "x-api-key": "stolen",
                "api-key": "stolen",
                "Cookie": "stolen=1",
                "Proxy-Authorization": "Basic stolen",
                "anthropic-version": "2023-06-01",
                "User-Agent": "agent/1",
                "Connection": "keep-alive, x-secret-hop",
                "x-secret-hop": "stolen",
            }
            async with session.post(path, json=MESSAGE, headers=headers) as response:
                assert response.status == 200
                assert (await response.json())["id"] == "x"
            recorded = shared.upstream.requests[-1]
            assert "stolen" not in str(recorded)
            assert recorded.header(expected[0]) == [expected[1]]
            assert recorded.header("anthropic-version") == ["2023-06-01"]
            assert recorded.header("user-agent") == ["agent/1"]
            assert recorded.header("host") == [shared.upstream.url.removeprefix("http://")]
            assert json.loads(recorded.body) == MESSAGE
    assert [r.path for r in shared.upstream.requests] == ["/v1/messages?beta=true", "/v1/chat/completions"]


async def test_a_local_endpoint_gets_no_key_at_all(shared: GatewayRig) -> None:
    sandbox = await shared.sandbox()
    async with sandbox.session() as session:
        # Its url ends in /v1: with and without that in the path it is the same.
        for path in ("/local/v1/chat/completions", "/local/chat/completions"):
            async with session.post(path, json=MESSAGE, headers={"Authorization": "Bearer x"}) as response:
                assert response.status == 200
    assert [r.path for r in shared.upstream.requests] == ["/base/v1/chat/completions"] * 2
    assert all(not r.header("authorization") and not r.header("x-api-key") for r in shared.upstream.requests)


async def test_each_door_has_its_own_tenants_key(shared: GatewayRig) -> None:
    acme, evil = await shared.sandbox("a", tenant="acme"), await shared.sandbox("e", tenant="evil")
    for sandbox in (acme, evil):
        async with sandbox.session() as session, session.post("/anthropic/v1/messages", json=MESSAGE) as response:
            assert response.status == 200
    assert [r.header("x-api-key") for r in shared.upstream.requests] == [
        ["key-of-acme-anthropic"],
        ["key-of-evil-anthropic"],
    ]
    assert (await shared.manager.use("a")).requests == (await shared.manager.use("e")).requests == 1


async def test_without_a_key_the_error_says_how_to_set_one(shared: GatewayRig) -> None:
    sandbox = await shared.sandbox()
    # Attached again, without keys.
    await shared.manager.attach(Egress("u", "acme", "t", 1, {}), sandbox.listener.fileno())
    async with sandbox.session() as session:
        async with session.post("/anthropic/v1/messages", json=MESSAGE) as response:
            assert response.status == 401
            assert response.headers["x-should-retry"] == "false"
            document = await response.json()
            assert document["type"] == "error"
            assert document["error"]["type"] == "authentication_error"
            assert document["error"]["message"] == (
                "no key for upstream anthropic: set one with claw tenant set-key anthropic"
            )
        async with session.post("/openai/v1/responses", json=MESSAGE) as response:
            assert response.status == 401
            assert (await response.json())["error"]["code"] == "invalid_api_key"
        stolen = shared.gateway.sealer.seal("evil", "anthropic", "key-of-evil")
        await shared.manager.attach(Egress("u", "acme", "t", 1, {"anthropic": stolen}), sandbox.listener.fileno())
        async with session.post("/anthropic/v1/messages", json=MESSAGE) as response:
            assert response.status == 401
            assert response.headers["cloudclaw-error"] == "bad-key"
    assert shared.upstream.requests == []
    assert "key-of-" not in shared.gateway.log.read_text()


async def test_a_stream_passes_event_by_event(shared: GatewayRig) -> None:
    """The upstream sends the next event only when the client has the one before: with a buffer it would hang."""
    arrived = asyncio.Semaphore(0)
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"model": "m-1", "usage": {"input_tokens": 100, "output_tokens": 1}}},
        {"type": "content_block_delta", "delta": {"text": "hi"}},
        {"type": "message_delta", "usage": {"output_tokens": 7}},
        {"type": "message_stop"},
    ]

    async def play(request: web.Request) -> web.StreamResponse:
        await shared.upstream.record(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await arrived.acquire()
        for event in events:
            await response.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            await arrived.acquire()
        return response

    shared.upstream.play = play
    sandbox = await shared.sandbox()
    async with sandbox.session() as session, asyncio.timeout(30), session.post(**STREAM) as response:
        # The head is there before the first event is.
        assert response.headers["Content-Type"] == "text/event-stream"
        arrived.release()
        for event in events:
            name = await response.content.readline()
            assert name == f"event: {event['type']}\n".encode()
            assert json.loads((await response.content.readline())[6:]) == event
            assert await response.content.readline() == b"\n"
            arrived.release()
        assert await response.content.read() == b""
    await shared.told(lambda: "u" in shared.uses and shared.uses["u"].output_tokens == 7)
    use = shared.uses["u"]
    assert (use.requests, use.input_tokens, use.output_tokens) == (1, 100, 7)
    assert use.spend_usd == pytest.approx((100 * 1.0 + 7 * 10.0) / 1e6)


async def test_a_request_passes_piece_by_piece(shared: GatewayRig) -> None:
    """The client sends the next piece only when the upstream has the one before."""
    arrived = asyncio.Semaphore(0)
    pieces = [b'{"model": "m-1", ', b'"x": 1, ', b'"y": 2}']

    async def play(request: web.Request) -> web.StreamResponse:
        for piece in pieces:
            assert await request.content.readexactly(len(piece)) == piece
            arrived.release()
        return web.json_response({})

    async def body() -> Any:
        for piece in pieces:
            yield piece
            await arrived.acquire()

    shared.upstream.play = play
    sandbox = await shared.sandbox()
    async with sandbox.session() as session, asyncio.timeout(30):
        response = await session.post("/anthropic/v1/messages", data=body())
        assert response.status == 200
        await response.read()


async def test_a_hang_up_inside_ends_the_call_outside(shared: GatewayRig) -> None:
    ended = asyncio.Event()

    async def play(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"type": "message_start", "message": {"usage": {"input_tokens": 9}}}\n\n')
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return response

    shared.upstream.play = play
    sandbox = await shared.sandbox()
    async with sandbox.session() as session, asyncio.timeout(30):
        async with session.post("/anthropic/v1/messages", json=MESSAGE) as response:
            await response.content.readline()
        await ended.wait()
    # What was written until then is counted by the events.
    await shared.told(lambda: "u" in shared.uses and shared.uses["u"].output_tokens == 1)
    assert shared.uses["u"].input_tokens == 9


async def test_half_an_answer_is_not_taken_for_a_whole_one(shared: GatewayRig) -> None:
    async def play(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: {}\n\n")
        assert request.transport is not None
        request.transport.close()
        return response

    shared.upstream.play = play
    sandbox = await shared.sandbox()
    reader, writer = await sandbox.namespace.connect()
    writer.write(b"POST /anthropic/v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
    async with asyncio.timeout(30):
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readuntil(b"0\r\n\r\n")
    writer.close()


async def test_an_upstream_that_cannot_be_reached_is_a_gateway_error(shared: GatewayRig) -> None:
    sandbox = await shared.sandbox()
    async with sandbox.session() as session:
        async with session.post("/gone/v1/messages", json=MESSAGE) as response:
            assert response.status == 502
            assert response.headers["cloudclaw-error"] == "upstream-unreachable"
            assert "x-should-retry" not in response.headers
            document = await response.json()
            assert document["error"]["type"] == "api_error"
            assert "127.0.0.1" not in document["error"]["message"]
        async with session.post("/gone-too/v1/responses", json=MESSAGE) as response:
            assert (await response.json())["error"]["type"] == "server_error"
    # It was never asked, so nothing is counted.
    assert (await shared.manager.use("u")).requests == 0


@pytest.mark.parametrize("status", [400, 401, 429, 500, 529])
async def test_the_upstreams_own_errors_pass_unchanged(shared: GatewayRig, status: int) -> None:
    document = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
    shared.upstream.answer(document, status=status, headers={"retry-after": "7", "request-id": "r"})
    sandbox = await shared.sandbox()
    async with sandbox.session() as session, session.post("/anthropic/v1/messages", json=MESSAGE) as response:
        assert response.status == status
        assert await response.json() == document
        assert (response.headers["retry-after"], response.headers["request-id"]) == ("7", "r")
        assert "cloudclaw-error" not in response.headers
    # Nothing was tried again, and no token is counted.
    assert len(shared.upstream.requests) == 1
    use = await shared.manager.use("u")
    assert (use.requests, use.input_tokens, use.output_tokens) == (1, 0, 0)


async def test_a_redirect_is_not_followed(shared: GatewayRig) -> None:
    shared.upstream.answer({}, status=307, headers={"Location": shared.upstream.url + "/v1/elsewhere"})
    sandbox = await shared.sandbox()
    async with sandbox.session() as session, session.post("/anthropic/v1/messages", json=MESSAGE) as response:
        assert response.status == 502
        assert response.headers["cloudclaw-error"] == "upstream-redirect"
        assert "Location" not in response.headers
    assert len(shared.upstream.requests) == 1


async def test_what_would_tell_whose_key_it_is_stays_outside(shared: GatewayRig) -> None:
    hidden = {
        "Set-Cookie": "a=b",
        "anthropic-organization-id": "org",
        "openai-organization": "org",
        "x-api-key": "echo",
        "Server": "upstream",
        "alt-svc": "h3",
    }
    shared.upstream.answer({}, headers={**hidden, "anthropic-ratelimit-requests-remaining": "4"})
    sandbox = await shared.sandbox()
    async with sandbox.session() as session, session.post("/anthropic/v1/messages", json=MESSAGE) as response:
        assert response.headers["anthropic-ratelimit-requests-remaining"] == "4"
        assert response.headers["Server"] == "cloudclaw-gateway"
        assert not {name.lower() for name in hidden if name != "Server"} & {n.lower() for n in response.headers}


async def test_compressed_answers_pass_as_they_are(shared: GatewayRig) -> None:
    data = gzip.compress(b'{"usage": {"input_tokens": 5, "output_tokens": 6}}')

    async def play(request: web.Request) -> web.StreamResponse:
        recorded = await shared.upstream.record(request)
        assert recorded.header("accept-encoding") == ["identity"]
        return web.Response(body=data, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})

    shared.upstream.play = play
    sandbox = await shared.sandbox()
    async with (
        sandbox.session() as session,
        session.post("/anthropic/v1/messages", json=MESSAGE, headers={"Accept-Encoding": "gzip, br"}) as response,
    ):
        # aiohttp's client decompresses it again.
        assert (await response.json())["usage"]["input_tokens"] == 5
        assert response.headers["Content-Length"] == str(len(data))
