"""A real etcd for tests: one member in a temporary folder, which can be killed, stopped and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import grpc.aio
import pytest
from etcd3aio._protobuf import CompactionRequest, KVStub

from cloudclaw.clock import Clock, SystemClock
from cloudclaw.coordination.etcd import EtcdKeyValue
from tests.support.require import require_binary

READY_WITHIN = 20.0


class EtcdServer:
    """One etcd process on ephemeral loopback ports.

    Use it as an async context manager where a test kills or stops it, or by `start` and `stop` from a fixture.
    The data folder and the ports outlive the process, until `stop`.
    """

    def __init__(self, *, quota_bytes: int = 0, tls: tuple[Path, Path, Path] | None = None) -> None:
        """`tls`: CA, certificate and key; clients must then show a certificate of that CA too."""
        self._binary = require_binary("etcd")
        self._quota = quota_bytes
        self._tls = tls
        self._folder = tempfile.TemporaryDirectory(prefix="claw-etcd-")
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._client_port, self._peer_port = _free_ports(2)

    @property
    def endpoint(self) -> str:
        """host:port for clients."""
        return f"127.0.0.1:{self._client_port}"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None
        return self._process.pid

    def open(self, clock: Clock | None = None) -> EtcdKeyValue:
        """A store on this server; the caller closes it."""
        return EtcdKeyValue([self.endpoint], None, clock or SystemClock())

    def start(self) -> None:
        """Start, or start again, and wait until it serves."""
        self.launch()
        deadline = time.monotonic() + READY_WITHIN
        while not self._healthy():
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"etcd did not come up:\n{self.log()[-3000:]}")
            time.sleep(0.02)

    def launch(self) -> None:
        """Start the process and do not wait for it to serve."""
        folder = Path(self._folder.name)
        scheme = "https" if self._tls else "http"
        client, peer = f"{scheme}://{self.endpoint}", f"http://127.0.0.1:{self._peer_port}"
        command = [
            str(self._binary),
            *("--name", "test", "--data-dir", str(folder / "data")),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"test={peer}"),
            # Short elections let a lease of one second be one second.
            *("--heartbeat-interval", "50", "--election-timeout", "500"),
            *("--watch-progress-notify-interval", "500ms"),
            *("--quota-backend-bytes", str(self._quota), "--log-level", "warn"),
        ]
        if self._tls:
            ca, cert, key = map(str, self._tls)
            command += ["--trusted-ca-file", ca, "--cert-file", cert, "--key-file", key, "--client-cert-auth"]
        self._log = (folder / "log").open("ab")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, env={}, cwd=folder)

    def kill(self) -> None:
        """kill -9, and wait for its end."""
        self._signal(signal.SIGKILL)
        self._wait()

    def pause(self) -> None:
        """SIGSTOP: connections stay, nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End the process and remove its data."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._signal(signal.SIGCONT)
                self._signal(signal.SIGTERM)
            self._wait()
        self._folder.cleanup()

    def log(self) -> str:
        """What it wrote."""
        return (Path(self._folder.name) / "log").read_text(errors="replace")

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    async def compact(self, revision: int) -> None:
        """Forget what was overwritten or deleted at or before `revision`."""
        async with grpc.aio.insecure_channel(self.endpoint) as channel:
            await KVStub(channel).Compact(CompactionRequest(revision=revision, physical=True), timeout=10)

    def _healthy(self) -> bool:
        if self._tls:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self._client_port)) == 0
        try:
            with urllib.request.urlopen(f"http://{self.endpoint}/health", timeout=1) as answer:
                return bool(json.load(answer).get("health") == "true")
        except (OSError, urllib.error.URLError):
            return False

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)

    def _wait(self) -> None:
        assert self._process is not None
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None


def running_etcd() -> Iterator[EtcdServer]:
    """Body of a session's fixture: one server, kept for all its tests."""
    server = EtcdServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago. All are held until the last is found, so they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [int(held.getsockname()[1]) for held in sockets]
