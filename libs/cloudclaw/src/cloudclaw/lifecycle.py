"""From the first signal to the exit code of a service's process."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from cloudclaw.errors import CloudClawError

_log = structlog.get_logger()

ONE_SIGNAL: Final = 1.0
"""Seconds in which repeated signals count as one. A parent that dies by SIGKILL sends its `PR_SET_PDEATHSIG` once for
each of its threads, and a supervisor may signal a process and its group."""

ABORT_GRACE: Final = 5.0
"""Seconds that a service has to unwind after it was aborted; then the process ends where it stands."""


async def run_service(
    main: Callable[[asyncio.Event], Awaitable[None]],
    *,
    stop_timeout: float | None = 60.0,
    one_signal: float = ONE_SIGNAL,
) -> int:
    """Run a service until it returns, and answer the process's exit code.

    `main` gets an event that SIGTERM or SIGINT sets; it then stops intake, drains, releases its leases, closes its
    clients (in this order) and returns. A second signal, or `stop_timeout` seconds (None: no limit) without an end,
    cancels it; a third signal, or `ABORT_GRACE` more seconds, ends the process at once. Signals that come within
    `one_signal` seconds of each other are one.

    Returns 0 after an orderly end, 1 when `main` raised, 128 + n when the n-th signal aborted it, 124 when it did not
    stop in time.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    task = asyncio.ensure_future(main(stop))
    aborted: list[int] = []
    timers: list[asyncio.TimerHandle] = []

    def abort(code: int) -> None:
        if aborted:
            os._exit(aborted[0])
        aborted.append(code)
        task.cancel()
        timers.append(loop.call_later(ABORT_GRACE, os._exit, code))

    def give_up() -> None:
        _log.error("not stopped in time; aborting", seconds=stop_timeout)
        abort(124)

    last_signal = -math.inf

    def on_signal(number: signal.Signals) -> None:
        nonlocal last_signal
        repeated = loop.time() - last_signal < one_signal
        last_signal = loop.time()
        if repeated:
            return
        if stop.is_set():
            _log.warning("second signal; aborting", signal=number.name)
            abort(128 + number)
            return
        _log.info("stopping", signal=number.name)
        stop.set()
        if stop_timeout is not None:
            timers.append(loop.call_later(stop_timeout, give_up))

    handled = (signal.SIGTERM, signal.SIGINT)
    for number in handled:
        loop.add_signal_handler(number, on_signal, number)
    try:
        await task
    except asyncio.CancelledError:
        if not aborted:
            raise
        return aborted[0]
    except CloudClawError as e:
        # Expected refusals (a busy port, a locked directory) speak for themselves.
        _log.error("failed", error=e.message, reason=e.reason)
        return 1
    except Exception:  # noqa: BLE001 - the outermost frame: whatever it is, it becomes a log line and exit code 1
        _log.exception("failed")
        return 1
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
        for timer in timers:
            timer.cancel()
    return 0


class Stack:
    """Ordered shutdown: what was pushed last is released first, each step even if an earlier one failed.

    Unlike `contextlib.AsyncExitStack`, it names its steps in the log and bounds each of them in time.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], Awaitable[object]], float]] = []

    def push(self, name: str, release: Callable[[], Awaitable[object]], *, timeout: float = 10.0) -> None:
        """Release `name` by `release()` at `close`, waiting at most `timeout` seconds for it."""
        self._steps.append((name, release, timeout))

    async def close(self) -> None:
        """Release everything, newest first. Raises the errors of the steps as one `ExceptionGroup`."""
        errors: list[Exception] = []
        while self._steps:
            name, release, timeout = self._steps.pop()
            try:
                async with asyncio.timeout(timeout):
                    await release()
            except Exception as e:  # noqa: BLE001 - raised below, after the other steps had their turn
                _log.error("release failed", step=name, error=repr(e))
                errors.append(e)
        if errors:
            raise ExceptionGroup("shutdown", errors)

    async def __aenter__(self) -> Stack:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
