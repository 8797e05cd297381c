"""Reading stored content back: manifests and parts of files."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Final

from cloudclaw.coordination.records import SnapshotPointer
from cloudclaw.errors import DataLossError, NotFoundError, OutOfRangeError, PreconditionError
from cloudclaw.objects.port import ObjectStore
from cloudclaw.snapshots import manifest as manifests
from cloudclaw.snapshots.manifest import Blob, Manifest
from cloudclaw.snapshots.packs import unpack
from cloudclaw.snapshots.port import FileType
from cloudclaw.snapshots.restore import fetch
from cloudclaw.snapshots.safe import brief
from cloudclaw.snapshots.shelf import check_digest, check_uid

PIECE: Final = 256 << 10
"""Bytes that `read` answers at once."""

_WINDOW: Final = 256 << 10
_WINDOWS: Final = 16
_KEPT_ITEMS: Final = 40_000


def manifest_name(tenant: str, pointer: SnapshotPointer) -> str:
    """The object that holds the manifest of a snapshot."""
    return f"tenants/{tenant}/manifests/{check_uid(pointer.uid, 'uid')}/{check_digest(pointer.manifest)}"


class SnapshotReader:
    """Manifests and contents out of the store. Keeps the latest manifests decoded, and the parts of packs last read:
    files that lie side by side in a tree do so in a pack."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._manifests: OrderedDict[tuple[str, str], Manifest] = OrderedDict()
        self._windows: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    async def manifest(self, tenant: str, pointer: SnapshotPointer) -> Manifest:
        """The manifest of `pointer`. Raises `DataLossError` naming it."""
        key = (tenant, pointer.manifest)
        found = self._manifests.get(key)
        if found is None:
            name = manifest_name(tenant, pointer)
            try:
                data = await self._store.get(name)
            except (NotFoundError, OutOfRangeError) as error:
                raise DataLossError(f"manifest {name} of snapshot {pointer.id} is missing") from error
            found = await asyncio.to_thread(manifests.decode, data, pointer.manifest, name)
        self.keep(tenant, pointer.manifest, found)
        return found

    def keep(self, tenant: str, digest: str, manifest: Manifest) -> None:
        """Remember a manifest that will be asked for soon; the latest one whatever its size."""
        self._manifests[tenant, digest] = manifest
        self._manifests.move_to_end((tenant, digest))
        while len(self._manifests) > 1 and sum(len(m.items) for m in self._manifests.values()) > _KEPT_ITEMS:
            self._manifests.popitem(last=False)

    def forget(self, tenant: str) -> None:
        """Let go of all that is a tenant's."""
        for key in [key for key in self._manifests if key[0] == tenant]:
            del self._manifests[key]
        for window in [window for window in self._windows if window[0].startswith(f"tenants/{tenant}/")]:
            del self._windows[window]

    async def read(
        self, tenant: str, pointer: SnapshotPointer, path: bytes, offset: int, length: int
    ) -> AsyncIterator[bytes]:
        """As `WorkspaceManager.read`."""
        item = (await self.manifest(tenant, pointer)).get(path)
        if item is None:
            raise NotFoundError(f"no file {brief(path)} in snapshot {pointer.id}", reason="NO_FILE")
        if item.entry.type is not FileType.REGULAR:
            raise PreconditionError(f"{brief(path)} is no regular file", subject="path", reason="NOT_A_FILE")
        if offset < 0 or offset > item.entry.size:
            raise OutOfRangeError(f"offset {offset} is outside of {brief(path)}, which has {item.entry.size} bytes")
        end = item.entry.size if length <= 0 else min(item.entry.size, offset + length)
        at = 0
        for blob in item.blobs:
            start, stop = max(offset - at, 0), min(end - at, blob.size)
            at += blob.size
            if start >= stop:
                continue
            content = memoryview(await self._content(blob))[start:stop]
            for step in range(0, len(content), PIECE):
                yield bytes(content[step : step + PIECE])

    async def _content(self, blob: Blob) -> bytes:
        if blob.stored > _WINDOW:
            frame = await fetch(self._store, blob.pack, blob.offset, blob.stored)
            return await asyncio.to_thread(unpack, blob, frame)
        first, last = blob.offset // _WINDOW, (blob.offset + blob.stored - 1) // _WINDOW
        windows = [await self._window(blob.pack, index) for index in range(first, last + 1)]
        start = blob.offset - first * _WINDOW
        frame = b"".join(windows)[start : start + blob.stored]
        return unpack(blob, frame) if blob.size <= PIECE else await asyncio.to_thread(unpack, blob, frame)

    async def _window(self, pack: str, index: int) -> bytes:
        window = self._windows.get((pack, index))
        if window is None:
            window = await fetch(self._store, pack, index * _WINDOW, _WINDOW)
            self._windows[pack, index] = window
            while len(self._windows) > _WINDOWS:
                self._windows.popitem(last=False)
        return window
