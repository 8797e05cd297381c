"""What happens to a pool's containers, as the engine tells it; followed in a thread for as long as the pool lives."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from cloudclaw.errors import UnavailableError
from cloudclaw_pool_manager.backends.containers.engine import Engine, Events
from cloudclaw_pool_manager.ports.backend import SlotFailedError

_log = structlog.get_logger()

AGAIN: Final = 0.5
"""Seconds between two tries to reach an engine that is away."""

SICK: Final = {"pause": "was paused", "die": "died", "destroy": "was removed"}
"""Events that mean that a slot is lost, in words."""


class Watcher:
    """Follows the events of containers with a label.

    Args:
        on_sick: called on the event loop with a container's id, its name, and what became of it.
        on_connected: called on the event loop whenever the stream begins: look what was missed.
    """

    def __init__(
        self,
        engine: Engine,
        label: str,
        on_sick: Callable[[str, str, str], None],
        on_connected: Callable[[], None],
    ):
        self._engine = engine
        self._label = label
        self._on_sick = on_sick
        self._on_connected = on_connected
        self._stopping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stream: Events | None = None
        self._thread = threading.Thread(target=self._run, name="docker events", daemon=True)

    def start(self) -> None:
        """Begin; call it on the event loop, once."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """End, and return when nothing will be called any more."""
        if self._loop is None:
            return
        self._stopping.set()
        await asyncio.to_thread(self._hang_up)
        await asyncio.to_thread(self._thread.join, 5.0)

    def _hang_up(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _run(self) -> None:
        away = False
        while not self._stopping.is_set():
            try:
                self._stream = stream = self._engine.events(self._label)
                if self._stopping.is_set():  # and `close` saw no stream yet
                    break
                self._call(self._on_connected)
                if away:
                    _log.info("docker.back")
                away = False
                for event in stream:
                    self._tell(event)
            except Exception as error:  # noqa: BLE001 - see below
                # Whatever the stream ends with: it is taken up again, or the pool is closing.
                if not away and not self._stopping.is_set():
                    known = isinstance(error, UnavailableError | SlotFailedError)
                    _log.warning("docker.away", error=str(error) if known else repr(error))
                away = True
            finally:
                self._hang_up()
            self._stopping.wait(AGAIN)

    def _tell(self, event: Mapping[str, Any]) -> None:
        actor = event.get("Actor", {})
        what = SICK.get(str(event.get("Action")), "")
        if what:
            about = actor.get("Attributes", {})
            what = f"{what} (code {about['exitCode']})" if about.get("exitCode") else what
            self._call(self._on_sick, str(actor.get("ID", "")), str(about.get("name", "")), what)

    def _call(self, call: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(call, *arguments)
