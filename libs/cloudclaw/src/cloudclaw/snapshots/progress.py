"""Telling a watcher how far a restore or a snapshot has come."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Final

from cloudclaw.clock import Clock
from cloudclaw.snapshots.port import Progress, Watcher

EVERY: Final = 0.5
"""Seconds between two reports."""


class Meter:
    """Counts what threads have done. Totals are 0 while unknown."""

    def __init__(self, total_files: int = 0, total_bytes: int = 0) -> None:
        self._lock = threading.Lock()
        self._files = 0
        self._bytes = 0
        self._totals = (total_files, total_bytes)

    def add(self, files: int, size: int) -> None:
        """Count `files` more that are done, and `size` more bytes. From any thread."""
        with self._lock:
            self._files += files
            self._bytes += size

    def read(self) -> Progress:
        """How far it has come by now."""
        with self._lock:
            return Progress(self._files, self._bytes, *self._totals)


@contextlib.asynccontextmanager
async def reported(meter: Meter, watcher: Watcher | None, clock: Clock) -> AsyncIterator[None]:
    """Tell `watcher` every half second within the block, and once more when the block ends well."""
    if watcher is None:
        yield
        return
    ticking = asyncio.create_task(_tick(meter, watcher, clock))
    try:
        yield
    finally:
        ticking.cancel()
        await asyncio.wait([ticking])
    watcher(meter.read())


async def _tick(meter: Meter, watcher: Watcher, clock: Clock) -> None:
    while True:
        await clock.sleep(EVERY)
        watcher(meter.read())
