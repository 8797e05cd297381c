"""When a call is made again: only after `UnavailableError`, only where twice does no harm, and not for ever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Final, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay

from cloudclaw.errors import UnavailableError

T = TypeVar("T")
OnWait = Callable[[UnavailableError, float], None]
"""Told before each pause: what the service answered, and for how many seconds it has been away."""

_FIRST: Final = 0.1
_LONGEST: Final = 2.0


class Patience:
    """How long a client goes on trying while a service is away.

    Attributes:
        seconds: from the first failure to giving up; 0 gives up at once. A stream that made progress starts anew.
    """

    def __init__(self, seconds: float, on_wait: OnWait | None = None):
        self.seconds = seconds
        self._on_wait = on_wait

    async def call(self, make: Callable[[], Awaitable[T]]) -> T:
        """What `make()` answers, made anew while it raises `UnavailableError`."""

        async def once() -> T:
            return await make()

        def waits(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome is not None else None
            if isinstance(error, UnavailableError):
                self._tell(error, state.seconds_since_start or 0.0)

        attempts = AsyncRetrying(
            retry=retry_if_exception_type(UnavailableError),
            stop=stop_after_delay(self.seconds),
            wait=_wait,
            before_sleep=waits,
            reraise=True,
        )
        return await attempts(once)

    async def stream(self, open_stream: Callable[[], AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
        """The stream's messages; after a break it is opened again, and `open_stream` knows where to go on."""
        loop = asyncio.get_running_loop()
        failing_since: float | None = None
        failures = 0
        while True:
            try:
                async with aclosing(open_stream()) as messages:
                    async for message in messages:
                        failing_since, failures = None, 0
                        yield message
                return
            except UnavailableError as error:
                now = loop.time()
                failing_since = now if failing_since is None else failing_since
                if now - failing_since >= self.seconds:
                    raise
                self._tell(error, now - failing_since)
            failures += 1
            await asyncio.sleep(_pause(failures))

    def _tell(self, error: UnavailableError, seconds: float) -> None:
        if self._on_wait is not None:
            self._on_wait(error, seconds)


def _wait(state: RetryCallState) -> float:
    return _pause(state.attempt_number)


def _pause(failures: int) -> float:
    """Seconds until the next attempt: doubling from 0.1 to 2, with jitter so that clients do not come in step."""
    return min(_LONGEST, _FIRST * 2.0 ** (failures - 1)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter is no secret
