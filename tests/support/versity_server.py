"""Another S3 server than MinIO, of another make: the Versity gateway over a directory of the test's own."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.support.minio_server import free_port
from tests.support.require import require_binary


class VersityServer:
    """One gateway process. All methods block.

    Skips the test, or fails it in CI, when there is no `versitygw`.
    """

    def __init__(self, directory: Path) -> None:
        self._binary = require_binary("versitygw")
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint = f"127.0.0.1:{free_port()}"
        self.access_key = "tests"
        self.secret_key = secrets.token_hex(16)

    def start(self, deadline: float = 60.0) -> None:
        """Return when it serves; fail with its log when it does not within `deadline` seconds."""
        data, sidecar = self._directory / "data", self._directory / "meta"
        for path in (data, sidecar):
            path.mkdir(parents=True, exist_ok=True)
        log = self._directory / "versity.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                # Metadata beside the files: not every file system has extended attributes.
                [self._binary, "--quiet", "--port", self.endpoint, "--health", "/health",
                 "posix", "--sidecar", sidecar, data],
                env={
                    "PATH": os.environ.get("PATH", ""),
                    "HOME": str(self._directory),
                    "ROOT_ACCESS_KEY": self.access_key,
                    "ROOT_SECRET_KEY": self.secret_key,
                    "GOMAXPROCS": "2",
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + deadline
        while not self._serves():
            if self._process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise AssertionError(f"versitygw did not come up:\n{log.read_text()[-2000:]}")
            time.sleep(0.02)  # there is no event to wait for in a foreign process's socket

    def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _serves(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.endpoint}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
