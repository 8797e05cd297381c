"""Handing out a listener, by real sockets and the real loop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudclaw_supervisor import egress, protocol, server
from cloudclaw_supervisor.loop import Loop

Lookup = Callable[[dict[str, object]], int]


@pytest.fixture
def loop() -> Iterator[Loop]:
    before = signal.getsignal(signal.SIGCHLD)
    yield Loop(lambda: None)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, before)


@pytest.fixture
def serving(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Lookup], egress.Egress]]:
    monkeypatch.chdir(tmp_path)
    listener = egress.bound()
    made: list[egress.Egress] = []

    def serve(lookup: Lookup) -> egress.Egress:
        made.append(egress.Egress(loop, listener, lookup))
        return made[0]

    yield serve
    for sock in [*made[0]._connections, listener]:
        sock.close()


def asked(request: bytes = b'{"uid": "u1", "incarnation": 1}\n') -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    sock.connect(protocol.EGRESS_SOCKET)
    sock.sendall(request)
    return sock


def rounds(loop: Loop, number: int = 5) -> None:
    """Let the loop serve what is there."""

    def look(left: int) -> None:
        if left:
            loop.call_in(0.001, lambda: look(left - 1))
        else:
            loop.stop()

    loop._stopped = False
    look(number)
    loop.run()


def answer(sock: socket.socket) -> tuple[dict[str, object], list[int]]:
    data, fds, _, _ = socket.recv_fds(sock, 4096, 4)
    sock.close()
    return json.loads(data), fds


def test_a_duplicate_of_the_descriptor_is_sent(loop: Loop, serving: Callable[[Lookup], egress.Egress]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        requests = []

        def lookup(request: dict[str, object]) -> int:
            requests.append(request)
            return listener.fileno()

        serving(lookup)
        sock = asked()
        rounds(loop)
        said, (fd,) = answer(sock)
        assert said == {}
        assert requests == [{"uid": "u1", "incarnation": 1}]
        with socket.socket(fileno=fd) as found:
            assert found.getsockname() == listener.getsockname()


def test_a_refusal_carries_no_descriptor(loop: Loop, serving: Callable[[Lookup], egress.Egress]) -> None:
    def lookup(request: dict[str, object]) -> int:
        raise server.RequestError("a newer one is obeyed", protocol.FENCED)

    serving(lookup)
    sock = asked()
    rounds(loop)
    assert answer(sock) == ({"error": "fenced", "message": "a newer one is obeyed"}, [])


def test_who_asks_before_it_is_made_is_answered_then(loop: Loop, serving: Callable[[Lookup], egress.Egress]) -> None:
    made = [-1]
    served = serving(lambda request: made[0])
    sock, gone = asked(), asked()
    rounds(loop)
    gone.close()
    rounds(loop)
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    with open(os.devnull) as file:
        made[0] = file.fileno()
        served.look_again()
        sock.setblocking(True)
        said, (fd,) = answer(sock)
    os.close(fd)
    assert said == {}


@pytest.mark.parametrize("request_", [b"nonsense\n", b"[]\n", b"x" * 10_000])
def test_nonsense_ends_the_connection_and_nothing_else(
    loop: Loop, serving: Callable[[Lookup], egress.Egress], request_: bytes
) -> None:
    serving(lambda request: 1 / 0)  # type: ignore[arg-type, return-value]
    sock = asked(request_)
    rounds(loop, 20)
    with contextlib.suppress(ConnectionResetError):
        assert sock.recv(10) == b""
    sock.close()


def test_those_who_connect_and_say_nothing_are_dropped_for_those_who_ask(
    loop: Loop, serving: Callable[[Lookup], egress.Egress]
) -> None:
    with open(os.devnull) as file:
        serving(lambda request: file.fileno())
        silent = []
        for _ in range(20):
            silent.append(asked(b""))
            rounds(loop, 1)
        sock = asked()
        rounds(loop)
        said, (fd,) = answer(sock)
        os.close(fd)
        assert said == {}
    for each in silent:
        each.close()
