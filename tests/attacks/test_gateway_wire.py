"""A hostile task's HTTP: what follows a request on its connection, what never ends, what asks for more than HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web

from tests.support.gateway import DEADLINE, GatewayRig

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = b'{"model": "m-1"}'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayRig]:
    made = GatewayRig(tmp_path_factory.mktemp("gateway"), CLIENT_TIMEOUT="1", BODY_TIMEOUT="5")
    await made.start()
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def rig(running: GatewayRig) -> AsyncIterator[GatewayRig]:
    yield running
    await running.reset()


def request(target: str, *headers: str, method: str = "POST", body: bytes = BODY, close: bool = False) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: x", *headers, *(["Connection: close"] if close else [])]
    if not any(h.lower().startswith(("content-length", "transfer-encoding")) for h in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def statuses(answers: bytes) -> list[int]:
    """Of all answers on one connection; of ones whose bodies hold no status line."""
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]


async def test_pipelined_requests_are_judged_one_by_one_and_answered_in_order(rig: GatewayRig) -> None:
    sandbox = await rig.sandbox()
    answers = await sandbox.raw(
        request("/anthropic/v1/messages")
        + request("/anthropic/v1/organizations", method="GET", body=b"")
        + request("/openai/v1/responses", "Authorization: Bearer mine")
        + request("/anthropic/v1/models", method="GET", body=b"", close=True)
    )
    assert statuses(answers) == [200, 404, 200, 200]
    assert [r.path for r in rig.upstream.requests] == ["/v1/messages", "/v1/responses", "/v1/models"]
    assert "mine" not in str(rig.upstream.requests)
    assert (await rig.manager.use("u")).requests == 2


async def test_nothing_is_read_behind_a_body_that_was_refused(rig: GatewayRig) -> None:
    sandbox = await rig.sandbox()
    hidden = request("/anthropic/v1/messages")
    answers = await sandbox.raw(request("/anthropic/v1/organizations", body=hidden) + hidden)
    assert statuses(answers) == [404]
    assert rig.upstream.requests == []


async def test_trailers_are_no_headers(rig: GatewayRig) -> None:
    sandbox = await rig.sandbox()
    body = b"2\r\n{}\r\n0\r\nx-mine: 1\r\nauthorization: Bearer mine\r\n\r\n"
    answers = await sandbox.raw(
        request("/anthropic/v1/messages", "Transfer-Encoding: chunked", "Trailer: x-mine", body=body, close=True)
    )
    assert statuses(answers) == [200]
    (recorded,) = rig.upstream.requests
    assert recorded.body == b"{}"
    assert not recorded.header("x-mine")
    assert not recorded.header("trailer")
    assert "mine" not in str(recorded.headers)


@pytest.mark.parametrize("asked", ["before", ""])
async def test_a_head_that_drips_is_cut_off(rig: GatewayRig, asked: str) -> None:
    """On a fresh connection, and on one that was served: bytes that come are no reason to wait for longer."""
    sandbox = await rig.sandbox()
    reader, writer = await sandbox.namespace.connect()

    async def drip() -> None:
        head = b"POST /anthropic/v1/messages HTTP/1.1\r\nX: "
        while True:
            writer.write(head[:1] or b"y")
            head = head[1:]
            await writer.drain()
            await asyncio.sleep(0.05)

    async with asyncio.timeout(DEADLINE):
        if asked:
            writer.write(request("/nowhere", method="GET", body=b""))
            await reader.readuntil(b"}}")
        dripping = asyncio.create_task(drip())
        try:
            assert await reader.read() == b""
        except ConnectionResetError:
            pass  # what was on its way when it was closed
        finally:
            dripping.cancel()
            await asyncio.wait([dripping])
    writer.close()
    assert rig.upstream.requests == []


async def test_pipelining_without_end_is_not_kept(rig: GatewayRig) -> None:
    """While the first request is served, the sandbox is not read for long."""
    go = asyncio.Event()

    async def play(request: web.Request) -> web.StreamResponse:
        await go.wait()
        return web.json_response({})

    rig.upstream.play = play
    sandbox = await rig.sandbox()
    _, writer = await sandbox.namespace.connect()
    writer.write(request("/anthropic/v1/messages"))
    many = request("/anthropic/v1/models", method="GET", body=b"") * 5000
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 256 << 20:
            async with asyncio.timeout(2):
                writer.write(many)
                await writer.drain()
            sent += len(many)
    # What two sockets hold, and no more.
    assert sent < 64 << 20
    writer.transport.abort()
    go.set()


async def test_who_expects_to_be_told_to_go_on_is_told_so_only_when_it_may(rig: GatewayRig) -> None:
    sandbox = await rig.sandbox()
    expecting = "Expect: 100-continue"
    answers = await sandbox.raw(request("/anthropic/v1/messages", expecting, close=True))
    assert statuses(answers) == [100, 200]
    answers = await sandbox.raw(request("/anthropic/v1/organizations", expecting, body=b"", close=True))
    assert statuses(answers) == [404]
    assert [r.body for r in rig.upstream.requests] == [BODY]
    assert not rig.upstream.requests[0].header("expect")


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
async def test_no_connection_becomes_another_protocols(rig: GatewayRig, method: str, protocol: str) -> None:
    sandbox = await rig.sandbox()
    headers = (
        f"Upgrade: {protocol}",
        "Connection: Upgrade, HTTP2-Settings, close",
        "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    answers = await sandbox.raw(request("/openai/v1/responses", *headers, method=method))
    assert 101 not in statuses(answers)
    assert statuses(answers) == [200 if method == "POST" else 405]
    for recorded in rig.upstream.requests:
        assert not [name for name, _ in recorded.headers if name.lower().startswith(("upgrade", "sec-", "http2-"))]


async def test_an_answer_before_the_body_was_read_ends_the_connection(rig: GatewayRig) -> None:
    async def play(request: web.Request) -> web.StreamResponse:
        return web.json_response({"early": True}, status=400)

    rig.upstream.play = play
    sandbox = await rig.sandbox()
    answers = await sandbox.raw(request("/anthropic/v1/messages", body=b"x" * 20_000_000, close=True))
    assert statuses(answers)[:1] in ([400], [502], [])
    rig.upstream.reset()
    assert statuses(await sandbox.raw(request("/anthropic/v1/messages", close=True))) == [200]


@pytest.mark.parametrize(
    "call",
    [
        "POST /anthropic/v1/messages/batches",
        "POST /anthropic/v1/files",
        "POST /anthropic/v1/skills",
        "POST /anthropic/v1/complete",
        "GET /anthropic/v1/organizations/usage_report/messages",
        "POST /openai/v1/batches",
        "POST /openai/v1/files",
        "POST /openai/v1/uploads",
        "GET /openai/v1/responses/resp_1",
        "POST /openai/v1/responses/resp_1/cancel",
        "GET /openai/v1/responses/resp_1/input_items",
        "POST /openai/v1/conversations",
        "POST /openai/v1/images/generations",
        "POST /openai/v1/audio/speech",
        "POST /openai/v1/audio/transcriptions",
        "POST /openai/v1/videos",
        "POST /openai/v1/fine_tuning/jobs",
        "POST /openai/v1/vector_stores",
        "POST /openai/v1/containers",
        "POST /openai/v1/assistants",
        "POST /openai/v1/threads/runs",
        "POST /openai/v1/realtime/sessions",
        "POST /openai/v1/evals",
        "DELETE /openai/v1/models/ft:m",
        "GET /openai/v1/organization/costs",
    ],
)
async def test_what_costs_without_telling_is_not_allowed(rig: GatewayRig, call: str) -> None:
    method, _, target = call.partition(" ")
    sandbox = await rig.sandbox()
    answers = await sandbox.raw(request(target, method=method, close=True))
    assert statuses(answers) in ([404], [405])
    assert json.loads(answers.partition(b"\r\n\r\n")[2])["error"]
    assert rig.upstream.requests == []
    assert (await rig.manager.use("u")).requests == 0
