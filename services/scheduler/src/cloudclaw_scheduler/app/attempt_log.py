"""The log of one running attempt in the leader's memory: a window of the latest bytes.

The window always holds everything that is not durable yet, and of the durable bytes the latest, for tails. What
is older is read from the segments.
"""

from __future__ import annotations

import asyncio
import bisect
import enum
from typing import Final

from cloudclaw.v1.scheduler_pb2 import StreamLogsResponse
from cloudclaw_scheduler.app.outbox import Outbox
from cloudclaw_scheduler.domain.logs import Frame

KEPT: Final = 1024 * 1024
"""Durable bytes kept in memory for the tails of one attempt."""
SEGMENT: Final = 1024 * 1024
"""Bytes that make a segment at once, without waiting for its second."""
_OVERHEAD: Final = 128
"""What a frame costs beside its bytes."""


class Phase(enum.Enum):
    """Whether the log takes chunks."""

    LOADING = "loading"
    """Its durable end is being looked up; chunks are dropped and asked for again."""
    OPEN = "open"
    HELD = "held"
    """Its end is being fixed, because the attempt seems lost; chunks are dropped."""
    CLOSED = "closed"


class AttemptLog:
    """Offsets are bytes from the attempt's first. `durable` ≤ `end`; `final` is the last byte, once known."""

    def __init__(self, tenant: str, task: str, uid: str, token: int, durable: int | None) -> None:
        self.tenant = tenant
        self.task = task
        self.uid = uid
        self.token = token
        self.phase = Phase.LOADING if durable is None else Phase.OPEN
        self.base = self.durable = self.end = durable or 0
        self.final: int | None = None
        self.sink: Outbox[StreamLogsResponse] | None = None
        self.resend = False
        self.asked: int | None = None
        self.flushing = False
        self.flush_now = asyncio.Event()
        self._frames: list[Frame] = []
        self._starts: list[int] = []
        self._cost = 0

    @property
    def pending(self) -> int:
        """Bytes that are not durable yet."""
        return self.end - self.durable

    @property
    def complete(self) -> bool:
        """Every byte is there and durable."""
        return self.final is not None and self.durable >= self.final

    def start_at(self, durable: int) -> None:
        """Go on after what the store has."""
        self.base = self.durable = self.end = durable
        self._frames.clear()
        self._starts.clear()
        self._cost = 0
        self.phase = Phase.OPEN

    def append(self, frame: Frame) -> None:
        """Take in a frame that begins at or before `end`; what overlaps is dropped."""
        if frame.end <= self.end:
            return
        frame = frame.after(self.end)
        self._frames.append(frame)
        self._starts.append(frame.offset)
        self._cost += len(frame.data) + _OVERHEAD
        self.end = frame.end
        self._trim()

    def unstored(self) -> list[Frame]:
        """The frames of the next segment, from `durable` on: about `SEGMENT` bytes of them."""
        found: list[Frame] = []
        size = 0
        for frame in self._frames[self._index(self.durable) :]:
            if size >= SEGMENT:
                break
            frame = frame.after(self.durable)
            found.append(frame)
            size += len(frame.data)
        return found

    def stored(self, end: int) -> None:
        """Everything before `end` is durable."""
        self.durable = max(self.durable, end)
        self._trim()

    def read(self, offset: int, limit: int) -> list[Frame] | None:
        """Frames from `offset` on, about `limit` bytes; None when the window begins later."""
        if offset < self.base:
            return None
        found: list[Frame] = []
        size = 0
        if offset >= self.end:
            return found
        for index in range(self._index(offset), len(self._frames)):
            if size >= limit:
                break
            frame = self._frames[index].after(offset)
            found.append(frame)
            size += len(frame.data)
        return found

    def say(self, term: int, *, resend: bool = False, sealed: bool = False) -> None:
        """Tell the node how far the log is durable, and from where to send again."""
        if self.sink is not None:
            self.sink.put(
                StreamLogsResponse(
                    term=term,
                    task_id=self.task,
                    uid=self.uid,
                    durable_offset=self.durable,
                    resend_from=self.end if resend else None,
                    sealed=sealed,
                )
            )

    def _index(self, offset: int) -> int:
        return max(0, bisect.bisect_right(self._starts, offset) - 1)

    def _trim(self) -> None:
        """Let go of durable frames above what tails are given, half a window at a time."""
        if self._cost <= 2 * KEPT:
            return
        count = 0
        while count < len(self._frames) and self._cost > KEPT and self._frames[count].end <= self.durable:
            self._cost -= len(self._frames[count].data) + _OVERHEAD
            count += 1
        if count:
            self.base = self._frames[count - 1].end
            del self._frames[:count]
            del self._starts[:count]
