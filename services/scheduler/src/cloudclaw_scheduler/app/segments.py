"""Log segments in the object store."""

from __future__ import annotations

from collections.abc import Sequence

from cloudclaw.objects.port import ObjectStore
from cloudclaw_scheduler.domain import logs
from cloudclaw_scheduler.domain.logs import Frame, Segment


class Segments:
    """Reads and writes the segments of attempts. All methods raise what the store raises."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    async def ranges(self, tenant: str, uid: str) -> list[Segment]:
        """The segments of an attempt, by start."""
        found = [logs.parse_name(info.name) async for info in self._objects.list(logs.prefix(tenant, uid))]
        return sorted(segment for segment in found if segment is not None)

    async def write(self, tenant: str, uid: str, frames: Sequence[Frame]) -> Segment:
        """Store `frames`, which have no gaps, as one segment. Writing the same range again does no harm."""
        segment = Segment(frames[0].offset, frames[-1].end)
        await self._objects.put(segment.name(tenant, uid), logs.encode(frames))
        return segment

    async def read(self, tenant: str, uid: str, segment: Segment) -> list[Frame]:
        """The frames of one segment. `DataLossError` when it is not whole."""
        name = segment.name(tenant, uid)
        return list(logs.decode(await self._objects.get(name), name))
