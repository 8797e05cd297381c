"""`StoredPackLists`: the packs of a snapshot, from the header of its manifest."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Collection
from typing import Final

import msgspec
import zstandard

from cloudclaw.coordination.records import SnapshotPointer
from cloudclaw.errors import DataLossError, NotFoundError, OutOfRangeError
from cloudclaw.objects.port import ObjectStore
from cloudclaw.snapshots import manifest as manifests
from cloudclaw.snapshots.reader import manifest_name

_KEPT_NAMES: Final = 100_000
_PIECE: Final = 64 << 10
_MAX_HEADER: Final = 64 << 20


class _Header(msgspec.Struct, frozen=True):
    format: str
    version: int
    packs: tuple[str, ...]


class StoredPackLists:
    """Reads a manifest whole, because only that can be compared with its digest, but decompresses no more than its
    first line. Keeps the lists last asked for, up to 100,000 names: a manifest never changes."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._kept: OrderedDict[tuple[str, str], tuple[str, ...]] = OrderedDict()
        self._kept_names = 0

    def name(self, tenant: str, pointer: SnapshotPointer) -> str:
        return manifest_name(tenant, pointer)

    async def packs(self, tenant: str, pointer: SnapshotPointer) -> Collection[str]:
        key = (tenant, pointer.manifest)
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found
        name = manifest_name(tenant, pointer)
        try:
            data = await self._store.get(name)
        except (NotFoundError, OutOfRangeError) as error:
            raise DataLossError(f"manifest {name} of snapshot {pointer.id} is missing") from error
        found = await asyncio.to_thread(_packs, data, pointer.manifest, name)
        # Two callers may have read it at once.
        if key not in self._kept:
            self._kept[key] = found
            self._kept_names += len(found)
        while self._kept_names > _KEPT_NAMES and len(self._kept) > 1:
            self._kept_names -= len(self._kept.popitem(last=False)[1])
        return found


def _packs(data: bytes, digest: str, name: str) -> tuple[str, ...]:
    if hashlib.sha256(data).hexdigest() != digest:
        raise DataLossError(f"manifest {name} does not match its digest: {len(data)} bytes came back")
    try:
        header = msgspec.json.decode(_first_line(data), type=_Header)
    except (zstandard.ZstdError, msgspec.DecodeError, ValueError) as error:
        raise DataLossError(f"manifest {name} cannot be read: {error}") from error
    if (header.format, header.version) != (manifests.FORMAT, manifests.VERSION):
        raise DataLossError(f"manifest {name} has format {header.format[:40]!r} {header.version}, which is not known")
    return header.packs


def _first_line(data: bytes) -> bytes:
    line = bytearray()
    with zstandard.ZstdDecompressor().stream_reader(data) as reader:
        while piece := reader.read(_PIECE):
            start = len(line)
            line += piece
            if (end := line.find(b"\n", start)) >= 0:
                return bytes(line[:end])
            if len(line) > _MAX_HEADER:
                break
    raise ValueError("it has no header")
