"""One question about cancellation that gRPC's calls make necessary."""

from __future__ import annotations

import asyncio


def cancelling() -> bool:
    """The running task was asked to end.

    A call that ends with an error just as its task is cancelled raises the error, and the cancellation is lost: a loop
    that retries on such errors would never end. So whoever translates errors of calls asks this first, and raises
    `CancelledError` instead.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
