"""Who ends an attempt, and how its program ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from cloudclaw_pool_manager.app.berth import Berth
from cloudclaw_pool_manager.app.runner import NotOursError, NotStartedError
from cloudclaw_pool_manager.domain.attempt import Exit, KillReason
from cloudclaw_pool_manager.ports.backend import SlotFailedError


class Ending:
    """The end of one attempt: wanted by somebody, or come by itself.

    Attributes:
        why: why its program is to be ended; NONE while nobody ends it. The first who does counts, and a fence.
        exit: how its program ended; None before that.
        canceled: its user wants it to end.
        unwanted: its node is drained: unless it has started, it goes on elsewhere.
        fence_reason: why it is not ours any more; empty while it is.
        processes_gone: set while no process of the attempt can be alive.
        wake: set when any of this, or the slot, is different.
    """

    def __init__(self, berth: Berth, *, canceled: bool):
        self.why = KillReason.NONE
        self.exit: Exit | None = None
        self.canceled = canceled
        self.unwanted = False
        self.fence_reason = ""
        self.processes_gone = asyncio.Event()
        self.processes_gone.set()
        self.wake = asyncio.Event()
        self._berth = berth

    @property
    def fenced(self) -> bool:
        """It is not ours any more."""
        return self.why is KillReason.FENCED

    @property
    def may_go_on(self) -> bool:
        """When its program stands still, it may run again, at least to end in peace."""
        return self.why not in (KillReason.FENCED, KillReason.DRAINED)

    def cancel(self) -> None:
        """Its user wants it to end."""
        self.canceled = True
        self.wake.set()

    def drain(self, wanted: bool) -> None:
        """Its node is drained, or not after all."""
        self.unwanted = wanted
        self.wake.set()

    def want(self, why: KillReason) -> None:
        """End its program, unless somebody does already."""
        if self.why is KillReason.NONE:
            self.why = why
        self.wake.set()

    def fence(self, reason: str) -> None:
        """Kill it, whoever ended it before."""
        self.why, self.fence_reason = KillReason.FENCED, reason
        self.wake.set()

    def exited(self, exit: Exit) -> bool:
        """Its program ended. False when that was known."""
        if self.exit is not None:
            return False
        self.exit = exit
        self.processes_gone.set()
        self.wake.set()
        return True

    async def come(self, stop: Callable[[], Awaitable[None]]) -> Exit:
        """How its program ended, once it has; from the moment that somebody wants it to, `stop` is called until then.
        Raises `SlotFailedError` when its slot failed first."""
        while True:
            if self._berth.failure is not None:
                raise SlotFailedError(self._berth.failure)
            if self.exit is not None:
                if self.exit.failed:
                    raise SlotFailedError(self.exit.failed)
                return self.exit
            if self.why is not KillReason.NONE:
                await stop()
                continue
            await self.wake.wait()
            self.wake.clear()

    def pressed(self, *, preparing: bool) -> bool:
        """There is no sense in waiting for the store any more. What its program left needs neither slot nor node."""
        elsewhere = self.unwanted or self._berth.failure is not None
        return self.fenced or self.canceled or (elsewhere and preparing)

    def before_start(self) -> bool:
        """Whether it was canceled before its program was started. Raises `NotOursError`, `SlotFailedError` or
        `NotStartedError` when it cannot be started here any more for another reason."""
        if self.fenced:
            raise NotOursError
        if self._berth.failure is not None:
            raise SlotFailedError(self._berth.failure)
        if self.unwanted and not self.canceled:
            raise NotStartedError("the node is being drained, and it has not started")
        return self.canceled
