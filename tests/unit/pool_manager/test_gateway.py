"""The manager's end of the gateway's control socket, against a gateway that a test plays."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cloudclaw.clock import SystemClock
from cloudclaw.errors import FencedError, InvalidArgumentError, UnavailableError
from cloudclaw.linesocket import LineSocket, Message
from cloudclaw_pool_manager.adapters.gateway import UnixModelGateway
from cloudclaw_pool_manager.ports.gateway import (
    Egress,
    GatewayConnected,
    GatewayEvent,
    GatewayLimit,
    GatewayLost,
    GatewayUse,
    LimitKind,
    ModelLimits,
    ModelUse,
)
from tests.support.require import require_root

USE = {
    "requests": 3,
    "input_tokens": 10,
    "output_tokens": 20,
    "cache_read_tokens": 1,
    "cache_write_tokens": 2,
    "spend_usd": 0.5,
}


class Played:
    """A gateway of one connection at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listen()

    def listen(self) -> None:
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._listener.setblocking(False)

    async def accept(self, *, greet: bool = True) -> LineSocket:
        sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        lines = LineSocket(sock)
        if greet:
            hello = await self.expect(lines, "hello")
            assert hello.fields["incarnation"] == 7
            await self.answer(lines, hello, {"version": 1, "attempts": ["a-1"]})
        return lines

    async def expect(self, lines: LineSocket, op: str) -> Message:
        message = await lines.receive()
        assert message is not None
        assert message.fields["op"] == op
        return message

    async def answer(self, lines: LineSocket, message: Message, ok: Any) -> None:
        await lines.send({"id": message.fields["id"], "ok": ok})

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
async def played(tmp_path: Path) -> AsyncIterator[Played]:
    made = Played(tmp_path / "gateway.sock")
    yield made
    made.close()


@pytest.fixture
async def client(played: Played) -> AsyncIterator[UnixModelGateway]:
    made = UnixModelGateway(played.path, lambda: 7, SystemClock(), patience=5.0)
    yield made
    await made.close()


async def _next(events: AsyncIterator[GatewayEvent]) -> GatewayEvent:
    async with asyncio.timeout(20):
        return await anext(events)


async def _connect(played: Played, events: AsyncIterator[GatewayEvent]) -> LineSocket:
    accepting = asyncio.create_task(played.accept())
    assert await _next(events) == GatewayConnected(frozenset({"a-1"}))
    return await accepting


async def test_an_attempt_is_handed_over_with_its_listener(played: Played, client: UnixModelGateway) -> None:
    events = client.events()
    lines = await _connect(played, events)
    listener = socket.create_server(("127.0.0.1", 0))
    egress = Egress("u", "acme", "t", 2, {"anthropic": "v1:x"}, ModelLimits(tokens=5), ModelUse(requests=1))
    attaching = asyncio.create_task(client.attach(egress, listener.fileno()))
    message = await played.expect(lines, "attach")
    assert message.fields["keys"] == {"anthropic": "v1:x"}
    assert message.fields["limits"] == {"requests": 0, "tokens": 5, "spend_usd": 0.0}
    assert message.fields["used"]["requests"] == 1
    (descriptor,) = message.descriptors
    assert os.fstat(descriptor).st_ino == os.fstat(listener.fileno()).st_ino
    message.close()
    await played.answer(lines, message, {})
    await attaching
    listener.close()

    detaching = asyncio.create_task(client.detach("u"))
    await played.answer(lines, await played.expect(lines, "detach"), USE)
    assert await detaching == ModelUse(3, 10, 20, 1, 2, 0.5)
    lines.close()


async def test_a_gateway_of_another_user_gets_keys_only_when_the_settings_name_him(played: Played) -> None:
    require_root()
    os.seteuid(65_534)
    try:
        played._listener.listen()  # whose socket it is, the kernel takes from here
    finally:
        os.seteuid(0)
    stranger = UnixModelGateway(played.path, lambda: 7, SystemClock(), patience=5.0)
    refusing = asyncio.ensure_future(anext(stranger.events()))
    sock, _ = await asyncio.get_running_loop().sock_accept(played._listener)
    assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"", "it hangs up without a word"
    sock.close()
    refusing.cancel()
    await stranger.close()
    named = UnixModelGateway(played.path, lambda: 7, SystemClock(), uid=65_534, patience=5.0)
    (await _connect(played, named.events())).close()
    await named.close()


async def test_uses_and_limits_are_told_as_they_come(played: Played, client: UnixModelGateway) -> None:
    events = client.events()
    lines = await _connect(played, events)
    await lines.send({"use": {"uid": "u", **USE}})
    await lines.send({"limit": {"uid": "u", "kind": "spend", "message": "enough"}})
    assert await _next(events) == GatewayUse("u", ModelUse(3, 10, 20, 1, 2, 0.5))
    assert await _next(events) == GatewayLimit("u", LimitKind.SPEND, "enough")
    lines.close()


async def test_after_a_loss_it_connects_again_and_says_so(played: Played, client: UnixModelGateway) -> None:
    events = client.events()
    lines = await _connect(played, events)
    using = asyncio.create_task(client.use("u"))
    await played.expect(lines, "use")
    played.close()
    lines.close()
    with pytest.raises(UnavailableError):
        await using
    assert await _next(events) == GatewayLost()
    # A call that is made meanwhile waits for the next gateway.
    waiting = asyncio.create_task(client.sync({"b", "a"}))
    coming = asyncio.ensure_future(anext(events))
    played.listen()
    lines = await played.accept()
    assert isinstance(await coming, GatewayConnected)
    message = await played.expect(lines, "sync")
    assert message.fields["uids"] == ["a", "b"]
    await played.answer(lines, message, {})
    await waiting
    lines.close()


async def test_a_newer_manager_ends_it_for_good(played: Played, client: UnixModelGateway) -> None:
    events = client.events()
    lines = await _connect(played, events)
    await lines.send({"fenced": True})
    lines.close()
    with pytest.raises(FencedError):
        await _next(events)
    with pytest.raises(FencedError):
        await client.use("u")


async def test_a_refused_hello_ends_it_for_good(played: Played, client: UnixModelGateway) -> None:
    coming = asyncio.ensure_future(anext(client.events()))
    lines = await played.accept(greet=False)
    hello = await played.expect(lines, "hello")
    await lines.send({"id": hello.fields["id"], "error": "fenced", "message": "9 is newer"})
    with pytest.raises(FencedError):
        await coming
    lines.close()


async def test_what_the_gateway_refuses_is_said(played: Played, client: UnixModelGateway) -> None:
    events = client.events()
    lines = await _connect(played, events)
    detaching = asyncio.create_task(client.detach("u"))
    message = await played.expect(lines, "detach")
    await lines.send({"id": message.fields["id"], "error": "invalid", "message": "no such upstream"})
    with pytest.raises(InvalidArgumentError, match="no such upstream"):
        await detaching
    lines.close()


async def test_nonsense_breaks_the_connection_and_not_the_manager(played: Played, client: UnixModelGateway) -> None:
    events = client.events()
    lines = await _connect(played, events)
    await lines.send({"use": {"uid": "u"}})
    assert await _next(events) == GatewayLost()
    lines.close()


async def test_without_a_gateway_calls_say_so_in_time(tmp_path: Path) -> None:
    client = UnixModelGateway(tmp_path / "gateway.sock", lambda: 7, SystemClock(), patience=0.05)
    with pytest.raises(UnavailableError, match="does not answer"):
        await client.use("u")
    await client.close()


async def test_closing_ends_the_iteration(played: Played, client: UnixModelGateway) -> None:
    events = client.events()
    lines = await _connect(played, events)
    ending = asyncio.ensure_future(anext(events))
    await client.close()
    with pytest.raises(StopAsyncIteration):
        await ending
    lines.close()
