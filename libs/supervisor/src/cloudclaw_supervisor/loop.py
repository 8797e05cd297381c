"""The event loop of a supervisor: one thread, descriptors, timers by boot time, children."""

from __future__ import annotations

import heapq
import os
import selectors
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_WAIT = 60.0


def boottime() -> float:
    """Seconds of CLOCK_BOOTTIME, the clock of every deadline (design rule 3)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Timer:
    """A call at a boot time, once."""

    def __init__(self, when: float, call: Callable[[], None]):
        self.when = when
        self.call: Callable[[], None] | None = call

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when

    def cancel(self) -> None:
        self.call = None


class Loop:
    """Runs callbacks. Timers that are due come before descriptors, so that a supervisor which was
    itself stopped past a deadline freezes its sandbox before it does anything else.

    Args:
        on_child: called after SIGCHLD.
    """

    def __init__(self, on_child: Callable[[], None]):
        self._selector = selectors.DefaultSelector()
        self._timers: list[Timer] = []
        self._stopped = False
        self._on_child = on_child
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self.watch(reader, selectors.EVENT_READ, lambda: self._children(reader))

    def watch(self, fd: int, events: int, call: Callable[[], None]) -> None:
        """Call `call` while `fd` is ready for `events`; replaces an earlier watch of `fd`."""
        try:
            self._selector.modify(fd, events, call)
        except KeyError:
            self._selector.register(fd, events, call)

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`; harmless when it is not watched."""
        try:
            self._selector.unregister(fd)
        except KeyError:
            return

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        """Call `call` once at boot time `when`."""
        timer = Timer(when, call)
        heapq.heappush(self._timers, timer)
        return timer

    def call_in(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call `call` once after `seconds`."""
        return self.call_at(boottime() + seconds, call)

    def stop(self) -> None:
        """Return from `run` after the present callbacks."""
        self._stopped = True

    def run(self) -> None:
        """Serve until `stop`."""
        while not self._stopped:
            ready = self._selector.select(self._wait())
            self._run_due()
            for key, _ in ready:
                # An earlier callback of this round may have closed the descriptor.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()

    def _wait(self) -> float:
        while self._timers and self._timers[0].call is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return LONGEST_WAIT
        # Boot time goes on while the machine sleeps and the selector's clock does not; the wake-up
        # itself ends the wait, and the next look at the clock is right again.
        return min(max(self._timers[0].when - boottime(), 0.0), LONGEST_WAIT)

    def _run_due(self) -> None:
        now = boottime()
        while self._timers and (self._timers[0].call is None or self._timers[0].when <= now):
            call = heapq.heappop(self._timers).call
            if call is not None:
                call()

    def _children(self, reader: int) -> None:
        while True:
            try:
                if len(os.read(reader, 512)) < 512:
                    break
            except BlockingIOError:
                break
        self._on_child()
