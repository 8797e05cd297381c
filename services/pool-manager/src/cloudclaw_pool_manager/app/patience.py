"""Waiting for an object store that is away or full, so that no attempt's work is done again for its sake.

A step that needs the store (checkout, artifacts, snapshot) is tried again, with growing pauses, for as long as the
operator grants. The first try runs to its end as it always does; from then on whoever wants the attempt to end
interrupts pauses and tries at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import structlog
from prometheus_client import Counter

from cloudclaw.clock import Clock
from cloudclaw.errors import CloudClawError, QuotaExceededError, UnavailableError
from cloudclaw_pool_manager.app.timing import wait_until

_log = structlog.get_logger()

FIRST_PAUSE: Final = 0.2
"""Seconds between the first try and the second; each pause is twice the one before."""
LONGEST_PAUSE: Final = 5.0

FULL: Final = "OBJECT_STORE_FULL"
_HOST: Final = frozenset({"DISK_FULL", "DISK_FAILED"})

T = TypeVar("T")


class InterruptedStepError(Exception):
    """The step was given up while it waited for the store: somebody wants the attempt to end."""


def of_the_store(error: BaseException) -> bool:
    """The object store is out of reach or full: the fault is neither the task's nor this host's."""
    if isinstance(error, QuotaExceededError):
        return error.reason == FULL
    return isinstance(error, UnavailableError) and error.reason not in _HOST


class Patience:
    """One attempt's.

    Args:
        seconds: granted to each step from its begin; 0 for none.
        pressed: whether somebody wants the attempt to end.
        changed: set whenever `pressed` may answer something else.
        retries: counts tries after the first, by step.

    Attributes:
        waiting: what is waited for and why, for people; empty while nothing is.
    """

    def __init__(
        self, clock: Clock, seconds: float, pressed: Callable[[], bool], changed: asyncio.Event, retries: Counter
    ):
        self.waiting = ""
        self._clock = clock
        self._seconds = seconds
        self._pressed = pressed
        self._changed = changed
        self._retries = retries

    async def run(self, name: str, step: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `step` answers. Errors that are not the store's pass through at once, the store's when patience is over:
        with what was the matter with it, and for how long. Raises `InterruptedStepError`."""
        begun, tries, pause = self._clock.boottime(), 0, FIRST_PAUSE
        try:
            while True:
                tries += 1
                try:
                    return await (step() if tries == 1 else self._again(step()))
                except (UnavailableError, QuotaExceededError) as error:
                    if not of_the_store(error) or not self._seconds:
                        raise
                    waited = self._clock.boottime() - begun
                    if waited >= self._seconds:
                        raise _over(error, tries, waited) from error
                    if not self.waiting:
                        _log.warning("waiting for the object store", step=name, error=error.message)
                    self.waiting = f"{name}: waiting for the object store: {error.message}"
                except InterruptedStepError:
                    if self._pressed():
                        raise
                    continue  # while the try was given up, that was called off
                await self._pause(min(pause, self._seconds - waited))
                self._retries.labels(name).inc()
                pause = min(2 * pause, LONGEST_PAUSE)
        finally:
            if self.waiting:
                _log.info("no longer waiting for the object store", step=name, tries=tries)
            self.waiting = ""

    async def _pause(self, seconds: float) -> None:
        end = self._clock.boottime() + seconds
        while (left := end - self._clock.boottime()) > 0:
            self._changed.clear()
            if self._pressed():
                raise InterruptedStepError
            await wait_until(self._changed, self._clock, left)
        if self._pressed():
            raise InterruptedStepError

    async def _again(self, step: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(step)
        try:
            while True:
                self._changed.clear()
                changed = asyncio.ensure_future(self._changed.wait())
                try:
                    await asyncio.wait((task, changed), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                if task.done():
                    return task.result()
                if self._pressed():
                    raise InterruptedStepError
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))  # it cleans up; and nobody works beneath a tree that is released next
                if not task.cancelled():
                    task.exception()


def _over(error: UnavailableError | QuotaExceededError, tries: int, waited: float) -> CloudClawError:
    """`error`, with what was tried."""
    if isinstance(error, QuotaExceededError):
        message = f"the object store was full for {waited:.1f} s ({tries} tries): {error.message}"
        return QuotaExceededError(message, subject=error.subject, reason=error.reason)
    message = f"the object store was out of reach for {waited:.1f} s ({tries} tries): {error.message}"
    return UnavailableError(message, reason=error.reason, retry_after=error.retry_after)
