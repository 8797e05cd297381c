"""The writing end of a pipe: takes everything at once and writes it as the reader takes it."""

from __future__ import annotations

import os
import selectors
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudclaw_supervisor.loop import Loop


class Outlet:
    """Writes in order and never blocks.

    Args:
        loop: tells when the pipe has room.
        fd: the writing end, not blocking; owned from now on.

    Attributes:
        open: takes more.
        queued: bytes that are not in the pipe yet.
    """

    def __init__(self, loop: Loop, fd: int):
        self._loop = loop
        self._fd = fd
        self._queue: deque[memoryview] = deque()
        self._done: Callable[[], None] | None = None
        self.open = True
        self.queued = 0

    def write(self, data: bytes) -> None:
        """Take `data`; dropped when nothing is taken any more."""
        if not self.open or not data:
            return
        self._queue.append(memoryview(data))
        self.queued += len(data)
        if len(self._queue) == 1:
            self._flush()

    def finish(self, done: Callable[[], None] | None = None) -> None:
        """Take no more; close the pipe when everything was written, or the reader wants no more, and call `done`."""
        self.open = False
        self._done = done
        if not self._queue:
            self._end()

    def close(self) -> None:
        """Drop what was not written, and close."""
        self.open = False
        self.queued = 0
        self._queue.clear()
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _flush(self) -> None:
        try:
            while self._queue:
                view = self._queue[0]
                written = os.write(self._fd, view)
                self.queued -= written
                if written < len(view):
                    self._queue[0] = view[written:]
                else:
                    self._queue.popleft()
        except BlockingIOError:
            self._loop.watch(self._fd, selectors.EVENT_WRITE, self._flush)
            return
        except BrokenPipeError:  # the reader wants no more: a program may ignore its input
            self._end()
            return
        self._loop.unwatch(self._fd)
        if not self.open:
            self._end()

    def _end(self) -> None:
        done, self._done = self._done, None
        self.close()
        if done is not None:
            done()
