"""File work off the event loop: never abandoned half-way, so that nobody cleans up beneath a running thread."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from cloudclaw.errors import UnavailableError

_log = structlog.get_logger()

T = TypeVar("T")


class Stopped(Exception):
    """The caller was cancelled and the thread noticed."""


class TreeThreads:
    """A few threads for work on trees."""

    def __init__(self, workers: int = 4) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="trees")

    async def run(self, work: Callable[[threading.Event], T], *, on_cancel: Callable[[], None] | None = None) -> T:
        """What `work` answers or raises.

        On cancellation it sets the event given to `work`, calls `on_cancel`, and waits for the thread before the
        cancellation goes on, unless it has not begun; `work` looks at the event where it can and raises `Stopped`.
        An `OSError` that `work` lets through is the host's trouble (a full disk, a broken one) and becomes
        `UnavailableError`.
        """
        stop = threading.Event()
        submitted = self._pool.submit(work, stop)
        running = asyncio.wrap_future(submitted)
        try:
            return await asyncio.shield(running)
        except OSError as error:
            reason = "DISK_FULL" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "DISK_FAILED"
            _log.warning("work on a tree failed", error=str(error), reason=reason)
            raise UnavailableError(f"this host's disk: {error.strerror}", reason=reason) from error
        except asyncio.CancelledError:
            stop.set()
            if submitted.cancel():
                raise
            if on_cancel is not None:
                on_cancel()
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()  # what the thread ended with has nobody left to tell
            raise

    def close(self) -> None:
        """Let the threads end when their work is done."""
        self._pool.shutdown(wait=False)
