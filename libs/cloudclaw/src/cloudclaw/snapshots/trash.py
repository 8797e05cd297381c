"""Removing thrown-out trees behind everybody's back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import structlog

from cloudclaw.errors import CloudClawError
from cloudclaw.snapshots import safe
from cloudclaw.snapshots.fill import open_tree
from cloudclaw.snapshots.removal import remove
from cloudclaw.snapshots.threads import Stopped

_log = structlog.get_logger()
_WAITING: Final = 64


class Trash:
    """A directory whose entries are removed one after the other, in a thread of its own.

    A tree is out of the way once it was renamed in here, so nobody waits for the removal of a large one, and the
    threads that check trees out never do it. At most 64 trees wait: beyond that the thread that throws one away
    removes it itself, so that a host which makes rubbish faster than it can be removed slows down instead of filling
    its disk. What a crash leaves here goes at the next start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="trash")
        self._lock = threading.Lock()
        self._waiting: set[Future[None]] = set()
        self._stop = threading.Event()

    def throw(self, names: Iterable[bytes], stop: threading.Event) -> None:
        """Remove what lies here under `names`, later. `stop` ends early what is done at once, with `Stopped`."""
        for name in names:
            if not self._later(name):
                self._remove(name, stop)

    async def settled(self) -> None:
        """Return when all that was thrown in by now is gone."""
        with self._lock:
            waiting = [asyncio.wrap_future(future) for future in self._waiting]
        if waiting:
            await asyncio.wait(waiting)

    def close(self) -> None:
        """Stop; what is still here goes at the next start."""
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _later(self, name: bytes) -> bool:
        with self._lock:
            if len(self._waiting) >= _WAITING or self._stop.is_set():
                return False
            future = self._pool.submit(self._behind, name)
            self._waiting.add(future)
        future.add_done_callback(self._done)
        return True

    def _done(self, future: Future[None]) -> None:
        with self._lock:
            self._waiting.discard(future)

    def _behind(self, name: bytes) -> None:
        try:
            self._remove(name, self._stop)
        except Stopped:
            return  # the next start goes on with it
        except (OSError, CloudClawError) as error:
            # Nobody waits for it, so it is told here; the next start tries again.
            _log.error("a tree in the trash could not be removed", name=name.decode(), error=str(error))

    def _remove(self, name: bytes, stop: threading.Event) -> None:
        with safe.closing(open_tree(self._path)) as trash:
            remove(trash, name, trash, stop=stop)
