"""Remembers every request: in memory for queries, as JSON lines in a file for afterwards.

A request is written when it arrives (`"event": "request"`) and again when it ended (`"event": "response"`), so that
one that hangs is in the file too. Bodies and headers are kept as they came, keys included: it is test support.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

Entry = dict[str, Any]


class Recorder:
    """The requests so far; `file` gets them as JSON lines, None keeps them in memory only."""

    def __init__(self, file: str | Path | None = None):
        self._file: TextIO | None = Path(file).open("a") if file else None  # noqa: SIM115
        self._changed = asyncio.Event()
        # A file that is continued keeps its numbers apart from the new ones.
        self._next = len(read_record(file)) if file else 0
        self.entries: list[Entry] = []
        self.version = 0
        """Grows with every change: a request that begins, one that ends, a reset."""

    def begin(self, entry: Entry) -> Entry:
        """Remember a request that arrived; its `id` counts from 0."""
        entry = {"id": self._next, **entry, "status": None, "bytes_sent": 0, "client_gone": False, "ended": None}
        self._next += 1
        self.entries.append(entry)
        self._write({"event": "request", **{key: entry[key] for key in entry if key not in _OF_THE_END}})
        return entry

    def end(self, entry: Entry, ended: float) -> None:
        """Note that its answer ended, well or not; `ended` is a time like the entry's own."""
        entry["ended"] = ended
        self._write({"event": "response", "id": entry["id"], **{key: entry[key] for key in _OF_THE_END}})

    def reset(self) -> None:
        """Forget all requests in memory; the file keeps them."""
        self.entries.clear()
        self.notify()

    def notify(self) -> None:
        """Wake those who wait for a change."""
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for(self, wanted: Callable[[list[Entry]], bool]) -> list[Entry]:
        """Return the entries as soon as `wanted` says that they are what the caller waits for."""
        while not wanted(self.entries):
            await self._changed.wait()
        return self.entries

    async def wait_after(self, version: int) -> None:
        """Return as soon as there was a change after `version`."""
        while self.version <= version:
            await self._changed.wait()

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()
            self._file = None

    def _write(self, line: Entry) -> None:
        if self._file:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        self.notify()


_OF_THE_END = ("status", "bytes_sent", "client_gone", "ended")


def read_record(path: str | Path) -> list[Entry]:
    """The entries of a record file, each request joined with its end."""
    entries: dict[int, Entry] = {}
    for line in Path(path).read_text().splitlines():
        part = json.loads(line)
        part.pop("event")
        entries.setdefault(part["id"], {}).update(part)
    return list(entries.values())
