"""Objects as files of one directory tree: the embedded default, shared by the processes of one machine."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from cloudclaw.errors import OutOfRangeError, QuotaExceededError, UnavailableError
from cloudclaw.objects.blockfile import payload_size
from cloudclaw.objects.filehandle import NewObject, OpenObject
from cloudclaw.objects.filetree import FileTree, file_errors
from cloudclaw.objects.names import check_object_name, check_prefix, check_range
from cloudclaw.objects.port import ObjectInfo
from cloudclaw.objects.threads import Threads

_CHUNK: Final = 1024 * 1024
_PAGE: Final = 500


class FilesystemObjects:
    """An `ObjectStore` below `root`, which must be on one file system.

    Each object is one file with its own checksums (`blockfile`); it is written under a temporary name,
    synced, and then linked or renamed to its place, whose directory is synced too, so after `put` an
    object survives a power cut as far as the disk keeps its promises. Several processes may use one
    `root` at once. Blocking calls run in threads of this store's own.

    Altered and truncated files are found on read (`DataLossError`), by block: a ranged read checks only
    the blocks it touches.
    """

    def __init__(self, root: Path, *, threads: int = 8) -> None:
        """Create `root` and its parts where they are missing. Raises `UnavailableError`."""
        self._tree = FileTree(root)
        self._threads = Threads(threads, "objects-fs")

    async def put(self, name: str, data: bytes, *, if_absent: bool = False) -> bool:
        check_object_name(name)
        return await self._threads.run(self._put, name, data, if_absent)

    def _put(self, name: str, data: bytes, if_absent: bool) -> bool:
        with file_errors(name):
            if if_absent and self._tree.exists(name):
                return False
            with closing(NewObject(self._tree, name)) as file:
                file.write((data,))
                return file.publish(replace=not if_absent)

    async def put_stream(self, name: str, chunks: AsyncIterator[bytes]) -> int:
        check_object_name(name)
        file = NewObject(self._tree, name)
        try:
            # Each write is a short call of its own: a slow producer holds no thread.
            buffered: list[bytes] = []
            waiting = 0
            async for chunk in chunks:
                buffered.append(chunk)
                waiting += len(chunk)
                if waiting >= _CHUNK:
                    await self._threads.run(file.write, buffered)
                    buffered, waiting = [], 0
            await self._threads.run(file.write, buffered)
            await self._threads.run(file.publish, replace=True)
            return file.size
        finally:
            await self._threads.settle(file.close)

    async def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        check_object_name(name)
        check_range(offset, length)
        return await self._threads.run(self._get, name, offset, length)

    def _get(self, name: str, offset: int, length: int | None) -> bytes:
        with closing(OpenObject(self._tree, name)) as file:
            size = file.open().size
            if offset > size:
                raise OutOfRangeError(f"object {name} has {size} bytes; offset {offset} is beyond its end")
            return file.read(offset, size if length is None else length)

    async def stream(self, name: str) -> AsyncIterator[bytes]:
        check_object_name(name)
        file = OpenObject(self._tree, name)
        try:
            info = await self._threads.run(file.open)
            for offset in range(0, info.size, _CHUNK):
                yield await self._threads.run(file.read, offset, _CHUNK)
        finally:
            await self._threads.settle(file.close)

    async def head(self, name: str) -> ObjectInfo:
        check_object_name(name)
        return await self._threads.run(self._head, name)

    def _head(self, name: str) -> ObjectInfo:
        with closing(OpenObject(self._tree, name)) as file:
            return file.open()

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        check_prefix(prefix)
        found = self._tree.walk(prefix, start_after)
        while page := await self._threads.run(self._page, found):
            for info in page:
                yield info

    def _page(self, found: Iterator[tuple[str, os.stat_result]]) -> Sequence[ObjectInfo]:
        with file_errors("(listing)"):
            return [
                ObjectInfo(name, payload_size(status.st_size), status.st_mtime)
                for name, status in itertools.islice(found, _PAGE)
            ]

    async def delete(self, name: str) -> None:
        check_object_name(name)
        await self._threads.run(self._delete, name)

    def _delete(self, name: str) -> None:
        with file_errors(name):
            self._tree.delete(name)

    async def abort_stale_uploads(self, prefix: str, older_than: float) -> int:
        """Remove temporary files that no living process writes, whatever their age and name; answers how many."""
        return await self._threads.run(self._remove_abandoned)

    def _remove_abandoned(self) -> int:
        with file_errors("(temporary files)"):
            return self._tree.remove_abandoned()

    async def check(self) -> None:
        """Write and remove a temporary file. Raises `UnavailableError`, also when the disk is full."""
        await self._threads.run(self._check)

    def _check(self) -> None:
        try:
            with closing(NewObject(self._tree, "(check)")) as file:
                file.write((b"check",))
        except QuotaExceededError as error:
            raise UnavailableError(error.message, reason=error.reason) from error

    async def close(self) -> None:
        await self._threads.close()
