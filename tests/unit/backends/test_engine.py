"""The engine's client against an engine that a test plays."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudclaw.errors import UnavailableError
from cloudclaw_pool_manager.backends.containers.engine import Engine
from cloudclaw_pool_manager.ports.backend import SlotFailedError


class Played:
    """Answers `GET /version`, and `GET /vN/info` for its own N alone."""

    def __init__(self, path: Path):
        self.path = path
        self.version = "1.41"
        self.answer: tuple[int, dict[str, Any]] = (200, {"Name": "played"})
        self.start()

    def start(self) -> None:
        played = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/version":
                    self.tell(200, {"ApiVersion": played.version})
                elif self.path.startswith(f"/v{played.version}/"):
                    self.tell(*played.answer)
                else:
                    self.tell(400, {"message": f"the client is too old; this is {played.version}"})

            def tell(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *arguments: object) -> None:
                """Nobody reads it."""

            def address_string(self) -> str:
                return "test"

        self._server = socketserver.ThreadingUnixStreamServer(str(self.path), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.path.unlink()


@pytest.fixture
def played(tmp_path: Path) -> Iterator[Played]:
    made = Played(tmp_path / "sock")
    yield made
    made.stop()


async def test_an_engine_that_comes_back_in_another_release_is_spoken_to_in_its_own_version(played: Played) -> None:
    engine = Engine(f"unix://{played.path}", 5.0)
    assert (await engine.info())["Name"] == "played"
    played.stop()
    with pytest.raises(UnavailableError, match="does not answer: No such file"):
        await engine.info()
    played.version = "1.52"
    played.start()
    assert (await engine.info())["Name"] == "played"
    await engine.close()


@pytest.mark.parametrize("status", [409, 500])
async def test_a_refusal_is_told_in_the_engines_words(played: Played, status: int) -> None:
    engine = Engine(f"unix://{played.path}", 5.0)
    played.answer = (status, {"message": "write /var/lib/docker/x: no space left on device"})
    with pytest.raises(SlotFailedError, match="refuses: write /var/lib/docker/x: no space left on device"):
        await engine.info()
    await engine.close()
