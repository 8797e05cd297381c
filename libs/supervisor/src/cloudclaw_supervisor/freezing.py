"""Stopping all processes of a sandbox, by the kernel's freezer or by SIGSTOP."""

from __future__ import annotations

import signal
import time

from cloudclaw_supervisor import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudclaw_supervisor.cgroup import Groups
    from cloudclaw_supervisor.loop import Loop, Timer
    from cloudclaw_supervisor.sandbox import Sandbox

_NAPS = (0.00005, 0.0001, 0.0001, 0.0002)
"""Seconds between the first looks: a quiet sandbox stands still sooner than the loop's timers can tell, which are no
finer than a millisecond."""
_LOOK_AGAIN = 0.0005
_THAW_EVERY = 50
_PATIENCE = 20
"""Rounds of SIGSTOP before an uninterruptible wait counts as standing still."""


class Freezer:
    """Freezes one sandbox and says when it stands still.

    With a cgroup the kernel stops everything, fork storms included. Without one SIGSTOP is sent round
    after round until a round finds every process stopped and no new one.
    """

    def __init__(self, loop: Loop, groups: Groups, sandbox: Sandbox):
        self._loop = loop
        self._groups = groups
        self._sandbox = sandbox
        self._timer: Timer | None = None
        self._rounds = 0
        self._callbacks: list[Callable[[], None]] = []
        self.engaged = False
        """A freeze was asked for and not taken back."""
        self.done = False
        """Everything stands still."""

    def freeze(self, on_done: Callable[[], None]) -> None:
        """Start freezing. `on_done` is called when everything stands still, or when a thaw or the
        sandbox's end made that pointless."""
        self._callbacks.append(on_done)
        if not self.engaged:
            self.engaged = True
            self._rounds = 0
            if self._groups.freezer:
                self._groups.freeze()
        if self._timer is None:
            self._look(_NAPS)

    def thaw(self) -> None:
        """Let everything go on."""
        if not self.engaged:
            return
        self.engaged = self.done = False
        if self._groups.freezer:
            self._groups.thaw()
        else:
            processes.send(self._sandbox.inside(), signal.SIGCONT)
        self._finish()

    def kill(self) -> None:
        """End the sandbox, frozen or not."""
        self._sandbox.kill()
        if self.engaged and self._groups.freezer:
            # Bubblewrap is frozen too and has to see the end, and the v1 freezer holds back even SIGKILL. With the
            # signal pending a thawed process runs no more instruction of its own; so all get it, not the first alone:
            # what stood still at a checkpoint must do nothing after it.
            processes.send(self._sandbox.inside(), signal.SIGKILL)
            self._groups.thaw()

    def reset(self) -> None:
        """After the sandbox's end: leave the group thawed for the next one."""
        if self.engaged and self._groups.freezer:
            self._groups.thaw()
        self._finish()

    def _look(self, naps: tuple[float, ...] = ()) -> None:
        self._timer = None
        self._rounds += 1
        self.done = self._stands_still()
        for nap in naps:
            if self.done:
                break
            time.sleep(nap)
            self.done = self._stands_still()
        if self.done:
            self._finish()
        else:
            if self._groups.freezer:
                self._urge()
            self._timer = self._loop.call_in(_LOOK_AGAIN, self._look)

    def _stands_still(self) -> bool:
        if self._groups.freezer:
            return self._groups.frozen()
        return processes.stop_all(self._sandbox.pid, self._rounds > _PATIENCE)

    def _urge(self) -> None:
        """Ask again. The v1 freezer misses a process that goes to wait in vfork(2) at the very moment it
        is asked, and never asks again by itself; rarely only a thaw in between helps."""
        if self._groups.unified:
            return
        if self._rounds % _THAW_EVERY == 0:
            self._groups.thaw()
        self._groups.freeze()

    def _finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        callbacks, self._callbacks = self._callbacks, []
        for call in callbacks:
            call()
