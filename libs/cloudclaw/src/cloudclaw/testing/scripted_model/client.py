"""Asks a scripted model that runs elsewhere what it was asked, and lets it go on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from http.client import HTTPConnection
from typing import Any, Final
from urllib.parse import urlencode

from cloudclaw.testing.scripted_model.record import Entry

_POLL: Final = 10.0
"""Seconds that the endpoint may let one question wait."""
_ANSWERS_WITHIN: Final = 10.0
"""Seconds beyond that."""


class ModelClient:
    """A client of the scripted model at `address` (`HOST:PORT`). Its calls block; it may be used by several threads.

    Every call raises `OSError` when the endpoint cannot be reached.
    """

    def __init__(self, address: str):
        self._address = address

    def requests(self, scenario: str) -> list[Entry]:
        """What was asked for turns of a scenario, in order, errors and repeats included (`README.md` has the fields).
        Side calls, such as titles and token counts, are not among them."""
        return self._read(scenario, {})[0]

    def wait_for(
        self, scenario: str, wanted: Callable[[Sequence[Entry]], bool], *, within: float = 60.0
    ) -> list[Entry]:
        """`requests(scenario)`, as soon as `wanted` says yes to them. It is asked whenever a request begins or ends.

        Raises:
            TimeoutError: not within so many seconds; the message says what was asked for until then.
        """
        deadline = time.monotonic() + within
        entries, version = self._read(scenario, {})
        while not wanted(entries):
            left = deadline - time.monotonic()
            if left <= 0:
                turns = [(entry["turn"], entry["status"]) for entry in entries]
                raise TimeoutError(f"not within {within:g} s; asked of {scenario} (turn, status): {turns}")
            entries, version = self._read(scenario, {"after": version, "wait": min(left, _POLL)})
        return entries

    def asked_for(
        self, scenario: str, turn: int, *, times: int = 1, gone: bool = False, within: float = 60.0
    ) -> list[Entry]:
        """Wait until that turn (from 0) was asked for so often; with `gone`, by clients that went away without the
        answer. `TimeoutError` as in `wait_for`."""

        def asked(entries: Sequence[Entry]) -> bool:
            turns = [entry["turn"] for entry in entries if entry["client_gone"] or not gone]
            return turns.count(turn) >= times

        return self.wait_for(scenario, asked, within=within)

    def release(self, name: str) -> None:
        """Let turns with `hold = name` go on, now and later."""
        self._ask("POST", "release", {"name": name})

    def _read(self, scenario: str, query: dict[str, Any]) -> tuple[list[Entry], int]:
        found = self._ask("GET", "requests", {"scenario": scenario, **query}, query.get("wait", 0.0))
        return [entry for entry in found["requests"] if entry["turn"] is not None], found["version"]

    def _ask(self, method: str, what: str, query: dict[str, Any], wait: float = 0.0) -> Any:
        with closing(HTTPConnection(self._address, timeout=wait + _ANSWERS_WITHIN)) as connection:
            connection.request(method, f"/scripted/{what}?{urlencode(query)}")
            return json.load(connection.getresponse())
