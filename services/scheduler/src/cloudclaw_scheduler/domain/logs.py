"""Logs as bytes at offsets: frames, and the segments that hold them in the object store.

A segment `logs/{tenant}/{uid}/{start:020d}-{end:020d}` is frames without gaps from `start` to `end`, each
`!QBQI` (offset, stream, time in unix microseconds, length) and its payload. Two leaders may have written
overlapping segments of one attempt; their bytes are the same, so readers slice by offset (design §8).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from cloudclaw.errors import DataLossError

HEADER: Final = struct.Struct("!QBQI")
_NAME: Final = re.compile(r"(\d{20})-(\d{20})")


@dataclass(frozen=True, slots=True)
class Frame:
    """`data` begins at byte `offset` of its attempt's log; `time` is unix microseconds of the supervisor's read."""

    offset: int
    stream: int
    time: int
    data: bytes

    @property
    def end(self) -> int:
        """Offset after its last byte."""
        return self.offset + len(self.data)

    def after(self, offset: int) -> Frame:
        """The part of it from `offset` on, which lies within it."""
        if offset <= self.offset:
            return self
        return Frame(offset, self.stream, self.time, self.data[offset - self.offset :])

    def until(self, offset: int) -> Frame:
        """The part of it before `offset`."""
        if offset >= self.end:
            return self
        return Frame(self.offset, self.stream, self.time, self.data[: max(0, offset - self.offset)])


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """One segment by its range."""

    start: int
    end: int

    def name(self, tenant: str, uid: str) -> str:
        """Its object's name."""
        return f"{prefix(tenant, uid)}{self.start:020d}-{self.end:020d}"


def prefix(tenant: str, uid: str) -> str:
    """Where the segments of an attempt are."""
    return f"logs/{tenant}/{uid}/"


def parse_name(name: str) -> Segment | None:
    """The segment of an object's name, None when it is not one."""
    found = _NAME.fullmatch(name.rpartition("/")[2])
    return Segment(int(found[1]), int(found[2])) if found else None


def encode(frames: Iterable[Frame]) -> bytes:
    """The bytes of a segment."""
    parts: list[bytes] = []
    for frame in frames:
        parts.append(HEADER.pack(frame.offset, frame.stream, frame.time, len(frame.data)))
        parts.append(frame.data)
    return b"".join(parts)


def decode(data: bytes, name: str) -> Iterator[Frame]:
    """The frames of a segment. Raises `DataLossError` naming the object when it is cut off."""
    position = 0
    while position < len(data):
        if position + HEADER.size > len(data):
            raise DataLossError(f"the log segment {name} is cut off at byte {position}")
        offset, stream, time, length = HEADER.unpack_from(data, position)
        position += HEADER.size
        if position + length > len(data):
            raise DataLossError(f"the log segment {name} is cut off at byte {len(data)}")
        yield Frame(offset, stream, time, data[position : position + length])
        position += length


LAST_WORDS: Final = 64 * 1024
"""What an attempt may write although its task has used up its log."""


def room_left(limit: int, ends: Iterable[int]) -> int:
    """Bytes that the next attempt of a task may write, after attempts that ended at `ends`; 0 stands for no limit."""
    return max(limit - sum(ends), LAST_WORDS) if limit else 0


def durable_end(segments: Iterable[Segment]) -> int:
    """How far the segments cover the log from its first byte without a gap."""
    end = 0
    for segment in sorted(segments):
        if segment.start > end:
            break
        end = max(end, segment.end)
    return end


def covering(segments: Iterable[Segment], offset: int) -> Segment | None:
    """The segment with byte `offset` that reaches furthest, or None."""
    found = [s for s in segments if s.start <= offset < s.end]
    return max(found, key=lambda s: s.end) if found else None


def coalesce(frames: Iterable[Frame], limit: int) -> Iterator[Frame]:
    """The same bytes in fewer frames: neighbours of one stream are joined while they stay within `limit` bytes."""
    held: list[Frame] = []
    size = 0
    for frame in frames:
        if held and (frame.stream != held[0].stream or size + len(frame.data) > limit):
            yield _joined(held)
            held, size = [], 0
        held.append(frame)
        size += len(frame.data)
    if held:
        yield _joined(held)


def _joined(frames: list[Frame]) -> Frame:
    first = frames[0]
    if len(frames) == 1:
        return first
    return Frame(first.offset, first.stream, first.time, b"".join(f.data for f in frames))
