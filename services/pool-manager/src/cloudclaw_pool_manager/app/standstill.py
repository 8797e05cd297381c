"""Holding an attempt's processes still while its files are copied, beside self-fencing (design rule 3).

Two may freeze a sandbox: a checkpoint, for a moment, and the supervisor, at its deadline. A checkpoint's end lets go
of its own freeze only: the supervisor refuses to `resume` what a deadline has frozen meanwhile, and then the sandbox
stays FROZEN until `Fencing` has read the token. Fencing in turn thaws nothing while a checkpoint needs it still. When
this process dies in between, the supervisor's deadline passes by itself, and the next manager finds a FROZEN attempt
like any other. What stands still though nobody here holds it is FROZEN too, whoever asked for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection

import structlog

from cloudclaw.clock import Clock
from cloudclaw_pool_manager.domain.timers import RunTimers
from cloudclaw_pool_manager.ports.backend import Slot, SlotFailedError

_log = structlog.get_logger()


class Standstill:
    """The pauses of one attempt, one at a time.

    Args:
        slot: holds the attempt.
        uid: the attempt's.
        timers: of the attempt; a pause counts for no timeout.
        deadline: the present self-fencing deadline.
        may_go_on: False when the attempt is to be killed instead.
        moving: set while nothing is held.

    Attributes:
        seconds: length of the last pause, until its processes went on or all was copied.
    """

    def __init__(
        self,
        slot: Slot,
        uid: str,
        *,
        timers: RunTimers,
        clock: Clock,
        deadline: Callable[[], float],
        may_go_on: Callable[[], bool],
        moving: asyncio.Event,
    ):
        self.seconds = 0.0
        self._slot = slot
        self._uid = uid
        self._timers = timers
        self._clock = clock
        self._deadline = deadline
        self._may_go_on = may_go_on
        self._moving = moving

    @contextlib.asynccontextmanager
    async def pause(self, *, keep: bool) -> AsyncIterator[Collection[int]]:
        """A `Pause` of `WorkspaceManager.checkpoint`. With `keep` the processes stand still beyond it, until `let_go`;
        never after an error or a cancellation. Raises as `Slot.freeze` does."""
        begun = self._clock.boottime()
        self._moving.clear()
        self._timers.freeze(begun)
        try:
            await self._slot.freeze(self._uid)
            yield await self._slot.mapped(self._uid)
        except BaseException:
            try:
                await self.let_go()
            except SlotFailedError as error:  # found by everybody who calls the slot; why the pause ended counts here
                _log.warning("a slot was lost in a pause", error=str(error))
            raise
        else:
            if not keep:
                await self.let_go()
        finally:
            self.seconds = self._clock.boottime() - begun

    async def let_go(self) -> None:
        """End what `pause` began, if it has not ended. Raises as `Slot.resume` does."""
        if self._moving.is_set():
            return
        try:
            if self._may_go_on() and await self._slot.resume(self._uid, self._deadline()):
                self._timers.thaw(self._clock.boottime())
        finally:
            self._moving.set()
