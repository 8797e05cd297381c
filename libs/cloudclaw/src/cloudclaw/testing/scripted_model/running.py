"""The scripted model as a context manager, for tests and for the command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from cloudclaw.testing.scripted_model.record import Entry, Recorder
from cloudclaw.testing.scripted_model.scenario import Script, parse
from cloudclaw.testing.scripted_model.server import Server


class ScriptedModel:
    """A scripted model that listens while the context is open.

        async with ScriptedModel({"scenarios": [...]}) as model:
            run_an_agent(ANTHROPIC_BASE_URL=model.url)
            await model.wait_for(lambda requests: len(requests) == 2)

    Args:
        script: a script, or the plain data of one.
        listen: host and port; port 0 takes a free one.
        record: a file that gets every request as JSON lines.
        workdir: where relative paths of the script's actions are taken from.
    """

    def __init__(
        self,
        script: Script | dict[str, Any],
        *,
        listen: tuple[str, int] = ("127.0.0.1", 0),
        record: str | Path | None = None,
        workdir: str = "/workspace",
    ):
        self._script = script if isinstance(script, Script) else parse(script)
        self._listen = listen
        self._record = record
        self._workdir = workdir
        self.url = ""
        """Base URL without a path, once the context is open: `http://HOST:PORT`."""

    async def __aenter__(self) -> Self:
        self._recorder = Recorder(self._record)
        self._server = Server(self._script, self._recorder, workdir=self._workdir)
        # A client that goes away ends its handler, which is how that gets into the record.
        self._runner = web.AppRunner(
            self._server.app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, *self._listen)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()
        self._recorder.close()

    @property
    def requests(self) -> list[Entry]:
        """What was asked so far, in order; see `record` and `README.md` for the fields."""
        return self._recorder.entries

    def turns(self, scenario: str) -> list[int]:
        """The indices of the turns of `scenario` that were served, in order, errors and repeats included."""
        return [entry["turn"] for entry in self.requests if entry["scenario"] == scenario]

    async def wait_for(self, wanted: Callable[[list[Entry]], bool], timeout: float = 30.0) -> list[Entry]:
        """The requests, as soon as `wanted` says yes to them.

        Raises:
            TimeoutError: not within `timeout` seconds.
        """
        return await asyncio.wait_for(self._recorder.wait_for(wanted), timeout)

    async def release(self, name: str) -> None:
        """Let turns with `hold = name` go on, now and later."""
        await self._server.release(name)

    async def reset(self) -> None:
        """Forget requests, error counts and releases."""
        await self._server.reset()
