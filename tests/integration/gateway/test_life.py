"""A gateway's life: managers that come and go, its own death and upgrade, and who is forgotten."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from aiohttp import web

from cloudclaw.clock import SystemClock
from cloudclaw.errors import FencedError, InvalidArgumentError
from cloudclaw_pool_manager.adapters.gateway import UnixModelGateway
from cloudclaw_pool_manager.ports.gateway import Egress, GatewayConnected, GatewayEvent, ModelLimits, ModelUse
from tests.support.gateway import DEADLINE, GatewayProcess, GatewayRig, Sandbox

REQUEST = b"POST /local/v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


async def _post(sandbox: Sandbox) -> int:
    async with sandbox.session() as session, session.post("/local/v1/responses", json={}) as response:
        return response.status


async def _until_connected(manager: UnixModelGateway) -> AsyncGenerator[GatewayEvent]:
    """Its events from then on, to be kept: they keep the connection."""
    events = manager.events()
    assert isinstance(events, AsyncGenerator)
    async with asyncio.timeout(DEADLINE):
        while not isinstance(await anext(events), GatewayConnected):
            pass
    return events


async def test_attempts_go_on_while_the_manager_is_away_and_are_taken_over(rig: GatewayRig) -> None:
    sandbox = await rig.sandbox()
    assert await _post(sandbox) == 200
    await rig.manager.close()
    assert await _post(sandbox) == 200
    second = UnixModelGateway(rig.gateway.socket, lambda: 2, SystemClock())
    events = second.events()
    async with asyncio.timeout(DEADLINE):
        assert await anext(events) == GatewayConnected(frozenset({"u"}))
    # Attached again, its use stays, and what the manager knew less of does not take anything back.
    await second.attach(Egress("u", "acme", "t", 1, used=ModelUse(requests=1)), sandbox.listener.fileno())
    assert (await second.use("u")).requests == 2
    assert await _post(sandbox) == 200
    assert (await second.detach("u")).requests == 3
    await second.close()


async def test_a_newer_manager_is_obeyed_and_the_older_told(rig: GatewayRig) -> None:
    sandbox = await rig.sandbox()
    newer = UnixModelGateway(rig.gateway.socket, lambda: 5, SystemClock())
    events = await _until_connected(newer)
    with pytest.raises(FencedError):
        async with asyncio.timeout(DEADLINE):
            while True:
                await rig.manager.use("u")
    older = UnixModelGateway(rig.gateway.socket, lambda: 4, SystemClock())
    with pytest.raises(FencedError):
        await anext(older.events())
    # Who was fenced changed nothing.
    assert await _post(sandbox) == 200
    assert (await newer.use("u")).requests == 1
    await newer.close()
    await events.aclose()


async def test_what_nobody_claims_is_forgotten(rig: GatewayRig) -> None:
    mine, other = await rig.sandbox("mine"), await rig.sandbox("other")
    reader, writer = await other.namespace.connect()
    await rig.manager.sync({"mine", "unknown"})
    async with asyncio.timeout(DEADLINE):
        # Connections of the other one are broken.
        assert await reader.read() == b""
    writer.close()
    assert await _post(mine) == 200
    assert await rig.manager.use("other") == ModelUse()


async def test_without_any_manager_attempts_are_forgotten_in_time(tmp_path: Path) -> None:
    rig = GatewayRig(tmp_path, UNCLAIMED="0.2")
    await rig.start()
    sandbox = await rig.sandbox()
    reader, writer = await sandbox.namespace.connect()
    await rig.manager.close()
    async with asyncio.timeout(DEADLINE):
        assert await reader.read() == b""
    writer.close()
    await rig.close()


async def test_detaching_breaks_a_stream_at_once(rig: GatewayRig) -> None:
    ended = asyncio.Event()

    async def play(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return response

    rig.upstream.play = play
    sandbox = await rig.sandbox()
    reader, writer = await sandbox.namespace.connect()
    writer.write(REQUEST)
    async with asyncio.timeout(DEADLINE):
        await reader.readuntil(b"data: 1\n\n")
        assert (await rig.manager.detach("u")).requests == 1
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readuntil(b"0\r\n\r\n")
        await ended.wait()
    writer.close()
    assert await rig.manager.detach("u") == ModelUse()


async def test_a_request_made_while_no_gateway_runs_is_answered_by_the_next(rig: GatewayRig) -> None:
    sandbox = await rig.sandbox()
    assert await _post(sandbox) == 200
    before = rig.uses
    assert await rig.gateway.stop() == 0
    # It told the last count before it went.
    assert before["u"].requests == 1
    waiting = asyncio.create_task(sandbox.raw(REQUEST))
    await rig.gateway.start()
    await rig.attach(sandbox, used=before["u"])
    assert (await waiting).startswith(b"HTTP/1.1 200")
    assert (await rig.manager.use("u")).requests == 2


async def test_after_sigkill_the_next_one_serves_what_waits(rig: GatewayRig) -> None:
    sandbox = await rig.sandbox()
    held = asyncio.Event()

    async def play(request: web.Request) -> web.StreamResponse:
        held.set()
        await asyncio.Event().wait()
        raise AssertionError

    rig.upstream.play, before = play, rig.upstream.play
    broken = asyncio.create_task(sandbox.raw(REQUEST))
    await held.wait()
    await rig.gateway.kill()
    # The one under way is lost, visibly; the agent asks again.
    assert await broken == b""
    rig.upstream.play = before
    waiting = asyncio.create_task(sandbox.raw(REQUEST))
    await rig.gateway.start()
    await rig.attach(sandbox)
    assert (await waiting).startswith(b"HTTP/1.1 200")


async def test_after_sigkill_a_limit_on_requests_holds_exactly(rig: GatewayRig) -> None:
    limits = ModelLimits(requests=3)
    sandbox = await rig.sandbox(limits=limits)
    assert [await _post(sandbox) for _ in range(2)] == [200, 200]
    await rig.told(lambda: "u" in rig.uses and rig.uses["u"].requests == 2)
    await rig.gateway.kill()
    waiting = [asyncio.create_task(sandbox.raw(REQUEST)) for _ in range(3)]
    await rig.gateway.start()
    await rig.attach(sandbox, limits=limits, used=rig.uses["u"])
    answers = sorted(answer[9:12] for answer in await asyncio.gather(*waiting))
    assert answers == [b"200", b"403", b"403"]
    assert len(rig.upstream.requests) == 3


async def test_an_upgrade_ends_streams_in_peace_and_leaves_the_rest_to_the_next(rig: GatewayRig) -> None:
    go = asyncio.Event()

    async def play(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await go.wait()
        await response.write(b"data: 2\n\n")
        return response

    rig.upstream.play, before = play, rig.upstream.play
    sandbox = await rig.sandbox()
    idle, idle_writer = await sandbox.namespace.connect()
    idle_writer.write(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(DEADLINE):
        await idle.readuntil(b"}}")
    async with sandbox.session() as session, session.post("/local/v1/responses", json={}) as response:
        async with asyncio.timeout(DEADLINE):
            assert await response.content.readuntil(b"\n\n") == b"data: 1\n\n"
            # The next process is there already, and waits.
            await rig.follower()
            rig.gateway.terminate()
            # Idle connections are closed, which shows that nothing new is accepted: the next one waits.
            assert await idle.read() == b""
            waiting = asyncio.create_task(sandbox.raw(REQUEST))
            go.set()
            assert await response.content.read() == b"data: 2\n\n"
    idle_writer.close()
    assert rig.gateway.process is not None
    assert await rig.gateway.process.wait() == 0
    rig.upstream.play = before
    await rig.attach(sandbox)
    assert (await waiting).startswith(b"HTTP/1.1 200")


async def test_what_is_no_listener_is_refused(rig: GatewayRig) -> None:
    left, right = socket.socketpair()
    unbound = socket.socket()
    reader, writer = os.pipe()
    for descriptor in (left.fileno(), unbound.fileno(), reader):
        with pytest.raises(InvalidArgumentError, match=r"listening TCP socket|no socket"):
            await rig.manager.attach(Egress("u", "acme", "t", 1), descriptor)
    for sock in (left, right, unbound):
        sock.close()
    os.close(reader)
    os.close(writer)


async def test_the_socket_is_for_its_owner_alone(rig: GatewayRig) -> None:
    facts = rig.gateway.socket.stat()
    assert stat.S_ISSOCK(facts.st_mode)
    assert stat.S_IMODE(facts.st_mode) == 0o600
    assert stat.S_IMODE(rig.gateway.socket.parent.stat().st_mode) == 0o700
    # Even somebody who gets at the path is turned away by uid.
    rig.gateway.socket.chmod(0o666)
    rig.gateway.socket.parent.chmod(0o755)
    script = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); os.chdir('/proc/self/fd/3');"
        's.connect(\'control.sock\'); s.sendall(b\'{"op": "hello", "incarnation": 9}\\n\'); print(s.recv(100))'
    )
    directory = os.open(rig.gateway.socket.parent, os.O_RDONLY)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script.replace("/proc/self/fd/3", f"/proc/self/fd/{directory}"),
        pass_fds=[directory], stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    os.close(directory)
    # Hung up on before or after it spoke; never answered.
    assert out.strip() in (b"", b"b''"), (out, err)
    assert process.returncode == 0 or b"BrokenPipeError" in err or b"ConnectionResetError" in err, err


async def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path, {"local": {"kind": "openai", "url": "http://127.0.0.1:1", "anonymous": True}})
    gateway.socket.parent.mkdir(mode=0o777)
    gateway.socket.parent.chmod(0o777)
    await gateway.start()
    assert gateway.process is not None
    assert await gateway.process.wait() == 1
    assert "others may write there" in gateway.log.read_text()


async def test_who_is_connected_when_it_stops_is_still_answered(rig: GatewayRig) -> None:
    sandbox = await rig.sandbox()
    reader, writer = await sandbox.namespace.connect()
    # Answered on another connection: the first one is accepted by then.
    assert await _post(sandbox) == 200
    rig.gateway.terminate()
    writer.write(REQUEST)
    async with asyncio.timeout(DEADLINE):
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
    writer.close()
    assert rig.gateway.process is not None
    assert await rig.gateway.process.wait() == 0
