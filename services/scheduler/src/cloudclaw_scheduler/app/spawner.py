"""Tasks of the leader's term, each in the term's task group."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any

import structlog

from cloudclaw.errors import CloudClawError

_log = structlog.get_logger()


class Spawner:
    """Starts work that nobody waits for. A failure of it is logged, and ends neither its siblings nor the term:
    what it left undone is found by the next sweep."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group

    def spawn(self, work: Coroutine[Any, Any, object]) -> None:
        """Run `work` to its end, or until the term's."""
        # An empty context: the work is the term's, not the call's in which it happened to be started.
        runner = self._run(work)
        try:
            task = self._group.create_task(runner, context=Context())
        except RuntimeError:
            # The term is over, and with it what was to be done.
            runner.close()
            work.close()
            return
        # Cancelled before its first step, a task never reaches the work it was made for.
        task.add_done_callback(lambda _: work.close())

    async def _run(self, work: Coroutine[Any, Any, object]) -> None:
        name = getattr(work, "__qualname__", "")
        try:
            await work
        except CloudClawError as error:
            _log.warning("left undone", work=name, error=error.message, reason=error.reason)
        except Exception:  # noqa: BLE001 - the outermost frame of this task; the traceback goes to the log
            _log.exception("failed", work=name)
