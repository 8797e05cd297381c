"""Fetching a listener from whoever is behind the slot's socket."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cloudclaw.errors import PreconditionError
from cloudclaw_pool_manager.backends import egress
from cloudclaw_pool_manager.ports.backend import FencedIncarnationError, SlotFailedError

Answer = Callable[[socket.socket, dict[str, object]], None]


@contextmanager
def supervisor(directory: Path, answer: Answer) -> Iterator[None]:
    """Somebody who answers one request."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "egress"))
        listener.listen()

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                answer(sock, json.loads(sock.recv(4096)))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join()


def fetch(directory: Path, timeout: float = 5.0) -> int:
    return egress.fetch(directory, "u1", 3, timeout)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_listener_is_taken_as_it_is(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer(sock: socket.socket, request: dict[str, object]) -> None:
            assert request == {"uid": "u1", "incarnation": 3}
            socket.send_fds(sock, [b"{}\n"], [listener.fileno()])

        with supervisor(tmp_path, answer):
            fd = fetch(tmp_path)
        assert not os.get_inheritable(fd)
        with socket.socket(fileno=fd) as found:
            assert found.getsockname() == listener.getsockname()


@contextmanager
def given(kind: str) -> Iterator[list[int]]:
    """Descriptors that are not one TCP listener."""
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.create_connection(tcp.getsockname()) as connected,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as unix,
        open(os.devnull) as file,
    ):
        kinds: dict[str, list[Any]] = {
            "file": [file],
            "connected": [connected],
            "udp": [udp],
            "unix": [unix],
            "two": [tcp, tcp],
            "none": [],
        }
        yield [each.fileno() for each in kinds[kind]]


@pytest.mark.parametrize("kind", ["file", "connected", "udp", "unix", "two", "none"])
def test_anything_else_is_refused_and_closed(tmp_path: Path, kind: str) -> None:
    def answer(sock: socket.socket, _: dict[str, object]) -> None:
        socket.send_fds(sock, [b"{}\n"], fds)

    with given(kind) as fds:
        before = descriptors()
        with supervisor(tmp_path, answer), pytest.raises(SlotFailedError, match="no listener"):
            fetch(tmp_path)
        assert descriptors() == before


@pytest.mark.parametrize("text", [b"", b"nonsense\n", b"[]\n", b'"x"\n', b"\xff\n"])
def test_nonsense_is_a_failed_slot(tmp_path: Path, text: bytes) -> None:
    with supervisor(tmp_path, lambda sock, _: sock.sendall(text)), pytest.raises(SlotFailedError):
        fetch(tmp_path)


def test_its_reasons_are_told_apart(tmp_path: Path) -> None:
    def saying(kind: str) -> Answer:
        return lambda sock, _: sock.sendall(json.dumps({"error": kind, "message": "because"}).encode() + b"\n")

    for kind, error in (
        ("no_egress", PreconditionError),
        ("fenced", FencedIncarnationError),
        ("failed", SlotFailedError),
    ):
        with supervisor(tmp_path, saying(kind)), pytest.raises(error, match="because"):
            fetch(tmp_path)
        (tmp_path / "egress").unlink()


def test_a_slot_without_the_socket_has_no_listener(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError) as caught:
        fetch(tmp_path)
    assert caught.value.reason == "NO_EGRESS"
    with pytest.raises(SlotFailedError):
        fetch(tmp_path / "gone")


def test_who_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    release = threading.Event()

    def answer(sock: socket.socket, _: dict[str, object]) -> None:
        release.wait(10)

    with supervisor(tmp_path, answer):
        with pytest.raises(SlotFailedError, match="timed out"):
            fetch(tmp_path, timeout=0.05)
        release.set()
