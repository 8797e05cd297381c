"""A bounded pool of threads for blocking calls, so that one slow store cannot starve the process's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from cloudclaw.errors import UnavailableError

P = ParamSpec("P")
R = TypeVar("R")


class Threads:
    """Runs blocking functions off the event loop, at most `size` at a time."""

    def __init__(self, size: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=size, thread_name_prefix=name)
        self._closed = False

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """What `function` returns or raises. `UnavailableError` after `close`.

        When the caller is cancelled the function still runs to its end, in its thread.
        """
        if self._closed:
            raise UnavailableError("the object store is closed", reason="OBJECT_STORE_CLOSED")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))

    async def settle(self, release: Callable[[], None]) -> None:
        """Run `release` to its end, also when the caller is cancelled meanwhile, and after `close`."""
        if self._closed:
            release()
        else:
            await asyncio.shield(self.run(release))

    async def close(self) -> None:
        """Wait for the calls under way; refuse new ones. Idempotent."""
        self._closed = True
        await asyncio.to_thread(self._executor.shutdown)
