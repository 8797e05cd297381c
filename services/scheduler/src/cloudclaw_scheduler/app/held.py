"""Lines that are not complete yet, which those who watch events keep in memory."""

from __future__ import annotations

from typing import Final, Self

from cloudclaw.agents.parser import MAX_LINE, STDOUT
from cloudclaw.errors import QuotaExceededError
from cloudclaw.v1.task_pb2 import LogChunk

MOST: Final = 256 << 20
"""Bytes of one tenant's watches together, on one replica: many that watch a task amid a large line are fine, and those
that watch a line without end fill no memory."""


class Held:
    """Of one replica, by tenant."""

    def __init__(self) -> None:
        self._bytes: dict[str, int] = {}

    def line(self, tenant: str) -> Line:
        """Of one more watch."""
        return Line(self, tenant)

    def change(self, tenant: str, by: int) -> None:
        """`QuotaExceededError(reason="TOO_MUCH_WATCHED")` when that is too much; then nothing is changed."""
        now = self._bytes.get(tenant, 0) + by
        if by > 0 and now > MOST:
            raise QuotaExceededError(
                f"watches of this tenant hold {now - by} bytes of lines that are not complete: end some of them",
                subject="watches",
                reason="TOO_MUCH_WATCHED",
            )
        self._bytes.pop(tenant, None)
        if now:
            self._bytes[tenant] = now


class Line:
    """The incomplete line of one watch, which its parser holds."""

    def __init__(self, held: Held, tenant: str) -> None:
        self._held = held
        self._tenant = tenant
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()

    def take(self, chunk: LogChunk) -> None:
        """Before a parser is fed. Raises as `Held.change` does."""
        if chunk.stream != STDOUT:
            return
        end = chunk.data.rfind(b"\n")
        size = self._size + len(chunk.data) if end < 0 else len(chunk.data) - end - 1
        self._become(size if size <= MAX_LINE else 0)  # a longer one is no line for any parser

    def drop(self) -> None:
        """Its parser is gone."""
        self._become(0)

    def _become(self, size: int) -> None:
        self._held.change(self._tenant, size - self._size)
        self._size = size
