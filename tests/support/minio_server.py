"""A real MinIO on a loopback port, in a directory of the test's own."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.support.require import require_binary


class MinioServer:
    """One MinIO process; `async with` starts and stops it, `kill` and `start` break and mend it.

    Port, keys and data survive a restart. All methods but the context manager's block.
    """

    def __init__(self, directory: Path, *, certs: Path | None = None) -> None:
        """Data and log go below `directory`; with `certs` (public.crt, private.key) it speaks TLS.

        Skips the test, or fails it in CI, when there is no `minio`.
        """
        self._binary = require_binary("minio")
        self._directory = directory
        self._certs = certs
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint = f"127.0.0.1:{free_port()}"
        self.access_key = "tests"
        self.secret_key = secrets.token_hex(16)

    async def __aenter__(self) -> MinioServer:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.to_thread(self.stop)

    def start(self, deadline: float = 60.0) -> None:
        """Return when it serves; fail with its log when it does not within `deadline` seconds."""
        data = self._directory / "data"
        certs = self._certs or self._directory / "no-certs"
        for path in (data, certs):
            path.mkdir(parents=True, exist_ok=True)
        log = self._directory / "minio.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [self._binary, "server", "--quiet", "--address", self.endpoint, "--certs-dir", certs, data],
                env={
                    "PATH": os.environ.get("PATH", ""),
                    "HOME": str(self._directory),
                    "MINIO_ROOT_USER": self.access_key,
                    "MINIO_ROOT_PASSWORD": self.secret_key,
                    "MINIO_BROWSER": "off",
                    "MINIO_UPDATE": "off",
                    "GOMAXPROCS": "2",
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end = time.monotonic() + deadline
        while not self._serves():
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise AssertionError(f"MinIO did not come up:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)  # there is no event to wait for in a foreign process's socket

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM; SIGKILL when it is still there after ten seconds."""
        self._end(signal.SIGTERM)

    def _end(self, signum: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signum)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _serves(self) -> bool:
        scheme = "https" if self._certs else "http"
        context = ssl._create_unverified_context() if self._certs else None
        try:
            with urllib.request.urlopen(
                f"{scheme}://{self.endpoint}/minio/health/cluster", timeout=1, context=context
            ) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port
