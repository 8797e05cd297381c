"""A hostile task against the gateway, from inside its sandbox's network namespace."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web

from tests.support.gateway import DEADLINE, GatewayRig, Sandbox

BODY = b'{"model": "m-1"}'


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayRig]:
    made = GatewayRig(
        tmp_path_factory.mktemp("gateway"),
        MAX_BODY="2048",
        MAX_CONNECTIONS="4",
        CLIENT_TIMEOUT="1",
        BODY_TIMEOUT="1",
    )
    await made.start()
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def rig(running: GatewayRig) -> AsyncIterator[GatewayRig]:
    yield running
    await running.reset()


def request(target: str, *headers: str, method: str = "POST", body: bytes = BODY) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: x", "Connection: close", *headers]
    if not any(h.lower().startswith(("content-length", "transfer-encoding")) for h in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


@pytest.mark.parametrize(
    "target",
    [
        "http://evil.example/anthropic/v1/messages",
        "https://127.0.0.1:1/anthropic/v1/messages",
        "//evil.example/v1/messages",
        "/anthropic//evil.example/v1/messages",
        "/anthropic/../openai/v1/chat/completions",
        "/anthropic/./v1/messages",
        "/anthropic/v1/messages/..",
        "/anthropic/%2e%2e/openai/v1/chat/completions",
        "/anthropic/v1%2fmessages",
        "/anthropic/v1/messages%00",
        "/anthropic%2fv1/messages",
        "/anthropic/v1\\messages",
        "/anthropic/v1/messages;x",
        "/anthropic/v1/messages#f",
        "/@evil.example/v1/messages",
        "/anthropic@evil.example/v1/messages",
        "/anthropic:80@evil.example/v1/messages",
        "/anthropic/@evil.example/v1/messages",
        "/anthropic/v1/messages?x=\x7f",
        "/anthropic/v1/messages?a=%zz",
        "/ANTHROPIC/v1/messages",
        "/anthropic/v1/MESSAGES",
        "/anthropic/v1/messages/",
        "/anthropic/v1/organizations",
        "/anthropic/v1/messages/batches",
        "/anthropic/v2x/../v1/messages",
        "/openai/v1/files",
        "/local/base/v1/responses",
        "/anthropic",
        "/",
        "*",
        "anthropic/v1/messages",
        "/anthropic/v1/" + "m" * 5000,
    ],
)
async def test_no_target_leaves_what_is_allowed(rig: GatewayRig, target: str) -> None:
    sandbox = await rig.sandbox()
    answer = await sandbox.raw(request(target))
    assert status(answer) in (400, 404), answer
    assert rig.upstream.requests == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "PATCH", "BREW"])
async def test_no_other_method_passes(rig: GatewayRig, method: str) -> None:
    sandbox = await rig.sandbox()
    answer = await sandbox.raw(request("/anthropic/v1/messages", method=method))
    assert status(answer) in (400, 405), answer
    assert rig.upstream.requests == []


async def test_connect_opens_no_tunnel(rig: GatewayRig) -> None:
    sandbox = await rig.sandbox()
    host = rig.upstream.url.removeprefix("http://")
    smuggled = request("/v1/messages")
    answer = await sandbox.raw(f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode() + smuggled)
    assert status(answer) == 400
    assert rig.upstream.requests == []


async def test_an_upgrade_is_not_passed_on(rig: GatewayRig) -> None:
    sandbox = await rig.sandbox()
    headers = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eA==")
    await sandbox.raw(request("/anthropic/v1/messages", *headers))
    for recorded in rig.upstream.requests:
        assert not recorded.header("upgrade")
        assert not recorded.header("sec-websocket-key")


@pytest.mark.parametrize(
    "headers",
    [
        ("Host: evil.example",),
        ("Host: x", "Host: evil.example"),
        ("X-Forwarded-Host: evil.example", "X-Forwarded-For: 1.2.3.4", "Forwarded: host=evil.example"),
        ("X-Original-URL: /v1/organizations", "X-Rewrite-URL: /v1/organizations"),
        ("X-HTTP-Method-Override: DELETE",),
    ],
)
async def test_headers_choose_neither_host_nor_path(rig: GatewayRig, headers: tuple[str, ...]) -> None:
    sandbox = await rig.sandbox()
    await sandbox.raw(request("/anthropic/v1/messages", *headers))
    for recorded in rig.upstream.requests:
        assert recorded.path == "/v1/messages"
        assert recorded.method == "POST"
        assert "evil" not in str(recorded.headers)
        assert "organizations" not in str(recorded.headers)
        assert recorded.header("host") == [rig.upstream.url.removeprefix("http://")]


@pytest.mark.parametrize(
    "name", ["x-api-key", "X-API-KEY", "authorization", "api-key", "Proxy-Authorization", "cookie", "x-goog-api-key"]
)
@pytest.mark.parametrize("upstream", ["anthropic/v1/messages", "openai/v1/responses", "local/responses"])
async def test_no_credential_of_a_sandbox_gets_out(rig: GatewayRig, name: str, upstream: str) -> None:
    sandbox = await rig.sandbox()
    answer = await sandbox.raw(
        request(f"/{upstream}?api_key=mine&%6Bey=mine&KEY=mine&access-token=mine", f"{name}: mine", f"{name}: mine")
    )
    assert status(answer) == 200
    assert "mine" not in str(rig.upstream.requests[-1])


async def test_naming_the_key_as_a_header_of_the_connection_does_not_remove_it(rig: GatewayRig) -> None:
    sandbox = await rig.sandbox()
    await sandbox.raw(request("/anthropic/v1/messages", "Connection: x-api-key, authorization, content-length, host"))
    assert rig.upstream.requests[-1].header("x-api-key") == ["key-of-acme-anthropic"]
    assert rig.upstream.requests[-1].body == BODY


SMUGGLED = b"POST /v1/organizations HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (("Content-Length: 4", "Transfer-Encoding: chunked"), b"0\r\n\r\n" + SMUGGLED),
        (("Transfer-Encoding: chunked", "Content-Length: 200"), b"0\r\n\r\n" + SMUGGLED),
        (("Content-Length: 0", "Content-Length: 90"), SMUGGLED),
        (("Content-Length: +5",), SMUGGLED),
        (("Content-Length: 5, 6",), SMUGGLED),
        (("Content-Length : 5",), SMUGGLED),
        (("Transfer-Encoding: xchunked",), b"0\r\n\r\n" + SMUGGLED),
        (("Transfer-Encoding: chunked, identity",), b"0\r\n\r\n" + SMUGGLED),
        (("Transfer-Encoding:\x0bchunked",), b"0\r\n\r\n" + SMUGGLED),
        (("Transfer-Encoding: chunked",), b"5;\n0\r\n\r\n" + SMUGGLED),
        (("Transfer-Encoding: chunked",), b"-1\r\n\r\n" + SMUGGLED),
        (("Transfer-Encoding: chunked",), b"0\n\n" + SMUGGLED),
        (("X: y\nx-smuggled: 1",), BODY),
        (("X: y\rx-smuggled: 1",), BODY),
        (("X\x00: y",), BODY),
        ((" folded: y",), BODY),
    ],
)
async def test_nothing_is_smuggled_past_the_path_rules(rig: GatewayRig, headers: tuple[str, ...], body: bytes) -> None:
    sandbox = await rig.sandbox()
    await sandbox.raw(request("/anthropic/v1/messages", *headers, body=body))
    # Most are refused; what passes is one plain request to what was allowed.
    for recorded in rig.upstream.requests:
        assert recorded.path == "/v1/messages"
        assert not recorded.header("x-smuggled")
        assert b"organizations" not in recorded.body


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
        b"GET / HTTP/3.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /anthropic/v1/messages HTTP/1.1\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        b"POST /anthropic/v1/messages HTTP/1.1\r\n" + b"X: y\r\n" * 2000 + b"\r\n",
        b"\x00" * 1000 + b"\r\n\r\n",
    ],
)
async def test_what_is_no_decent_request_is_refused(rig: GatewayRig, raw: bytes) -> None:
    sandbox = await rig.sandbox()
    assert status(await sandbox.raw(raw)) in (0, 400, 404, 431, 505)
    assert rig.upstream.requests == []
    assert status(await sandbox.raw(request("/anthropic/v1/messages"))) == 200
    # Nor does it fill the log.
    assert "Traceback" not in rig.gateway.log.read_text()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large_is_refused(rig: GatewayRig, chunked: bool) -> None:
    sandbox = await rig.sandbox()
    body = b"x" * 4096
    if chunked:
        data = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        answer = await sandbox.raw(request("/anthropic/v1/messages", "Transfer-Encoding: chunked", body=data))
    else:
        answer = await sandbox.raw(request("/anthropic/v1/messages", body=body))
    assert status(answer) == 413
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "request_too_large"
    assert rig.upstream.requests == []


@pytest.mark.parametrize("sent", [b"", b"POST /anthropic/v1/mess", b"POST / HTTP/1.1\r\nX: y\r\n"])
async def test_a_slow_head_is_cut_off(rig: GatewayRig, sent: bytes) -> None:
    sandbox = await rig.sandbox()
    assert await sandbox.raw(sent) == b""


async def test_a_slow_body_is_cut_off(rig: GatewayRig) -> None:
    sandbox = await rig.sandbox()
    answer = await sandbox.raw(request("/anthropic/v1/messages", "Content-Length: 100", body=b"{"))
    assert status(answer) == 408
    assert rig.upstream.requests == []


async def test_one_sandbox_takes_no_connection_from_another(rig: GatewayRig) -> None:
    hostile, other = await rig.sandbox("h", tenant="evil"), await rig.sandbox("o")
    hold = asyncio.Event()

    async def play(request: web.Request) -> web.StreamResponse:
        if request.headers["x-api-key"].startswith("key-of-evil"):
            await hold.wait()
        return web.json_response({})

    rig.upstream.play = play
    # Four are served at once, the others wait in its own backlog.
    calls = [asyncio.create_task(hostile.raw(request("/anthropic/v1/messages"))) for _ in range(20)]
    assert status(await other.raw(request("/anthropic/v1/messages"))) == 200
    use = await rig.manager.use("h")
    assert use.requests <= 4
    hold.set()
    assert [status(answer) for answer in await asyncio.gather(*calls)] == [200] * 20


async def test_a_reader_that_stands_still_holds_little_memory(rig: GatewayRig) -> None:
    """The upstream is slowed to the pace of the sandbox, and detaching it does not wait for that."""
    sent = 0
    blocked = asyncio.Event()

    async def play(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while sent < 1 << 28:
            try:
                async with asyncio.timeout(2):
                    await response.write(b"x" * 65536)
            except TimeoutError:
                blocked.set()
                raise ConnectionResetError from None
            sent += 65536
        return response

    rig.upstream.play = play
    sandbox = await rig.sandbox()
    _, writer = await sandbox.namespace.connect()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(request("/anthropic/v1/messages"))
    async with asyncio.timeout(DEADLINE):
        await blocked.wait()
        await rig.manager.detach("u")
    assert sent < 64 << 20
    writer.close()


async def test_two_sandboxes_have_nothing_in_common_but_the_node(rig: GatewayRig) -> None:
    """The same port in both; whose key is added is decided by the door alone."""
    await rig.sandbox("a")
    evil = await rig.sandbox("e", tenant="evil")
    claims = ("x-claw-tenant: acme", "x-claw-task-id: task-a", "x-claw-attempt: 1")
    await evil.raw(request("/anthropic/v1/messages", *claims))
    assert rig.upstream.requests[-1].header("x-api-key") == ["key-of-evil-anthropic"]
    assert (await rig.manager.use("a")).requests == 0


async def test_the_control_socket_is_not_reachable_from_a_door(rig: GatewayRig) -> None:
    sandbox: Sandbox = await rig.sandbox()
    answer = await sandbox.raw(b'{"op": "hello", "incarnation": 9}\n\r\n\r\n')
    assert status(answer) in (0, 400)
    assert (await rig.manager.use("u")).requests == 0
