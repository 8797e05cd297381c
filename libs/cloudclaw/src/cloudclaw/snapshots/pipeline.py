"""From files to blobs: one thread reads, others hash and compress, uploads go on meanwhile; memory stays bounded."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Final

from cloudclaw.snapshots import safe
from cloudclaw.snapshots.manifest import Blob
from cloudclaw.snapshots.packs import CHUNK, PackWriter, pack
from cloudclaw.snapshots.progress import Meter
from cloudclaw.snapshots.threads import Stopped

_BATCH: Final = 2 << 20
"""Small files go to a thread this many bytes at once: a hand-over costs, and then waits for the interpreter's lock."""
_WINDOW: Final = 16 << 20
"""Bytes that are read and not yet in a pack."""
_EMPTY: Final = hashlib.sha256().hexdigest()


@dataclass(slots=True)
class Contents:
    """What a file held: complete when `Pipeline.finish` has returned."""

    size: int = 0
    digest: str = ""
    blobs: list[Blob] = field(default_factory=list)


_Part = tuple[Contents, bytes]


class Pipeline:
    """Stores contents through `packs`; used by one thread.

    `pool` does the hashing and the compressing: both let go of the interpreter's lock. The order of blobs in packs is
    that of the calls, so files that are near in a tree are near in a pack. `meter` counts what was read.
    """

    def __init__(self, packs: PackWriter, pool: Executor, stop: threading.Event, meter: Meter) -> None:
        self._packs = packs
        self._pool = pool
        self._stop = stop
        self._meter = meter
        self._batch: list[_Part] = []
        self._batched = 0
        self._flying: deque[tuple[Future[list[tuple[str, bytes | None]]], list[_Part], int]] = deque()
        self._in_flight = 0

    def take(self, fd: int, path: bytes, size: int, *, sparse: bool = False, offset: int | None = None) -> Contents:
        """Store `size` bytes of `fd` as the content of `path`: all of it, or with `offset` those from there on.

        What counts is what was read, should the file shrink meanwhile. Raises `InvalidArgumentError(field="path")`
        when the whole file has more, `Stopped`, and what an upload raised.
        """
        contents = Contents()
        whole = hashlib.sha256() if size >= CHUNK else None
        for chunk in _chunks(fd, path, size, sparse, offset):
            if self._stop.is_set():
                raise Stopped
            contents.size += len(chunk)
            if whole is not None:
                whole.update(chunk)
            self._put(contents, chunk)
        if contents.size == 0:
            contents.digest = _EMPTY
        elif whole is not None:
            contents.digest = whole.hexdigest()
        self._meter.add(1, contents.size)
        return contents

    def finish(self) -> None:
        """Wait until everything is stored."""
        self._submit()
        while self._flying:
            self._collect()
        self._packs.finish()

    def abandon(self) -> None:
        """Give up what is under way; what is stored already is referred to by nobody."""
        for future, _, _ in self._flying:
            future.cancel()
        self._flying.clear()
        self._packs.abandon()

    def _put(self, contents: Contents, chunk: bytes) -> None:
        self._batch.append((contents, chunk))
        self._batched += len(chunk)
        if self._batched >= _BATCH:
            self._submit()

    def _submit(self) -> None:
        if not self._batch:
            return
        self._flying.append((self._pool.submit(self._work, self._batch), self._batch, self._batched))
        self._in_flight += self._batched
        self._batch, self._batched = [], 0
        while self._flying and (self._in_flight > _WINDOW or self._flying[0][0].done()):
            self._collect()

    def _work(self, batch: Sequence[_Part]) -> list[tuple[str, bytes | None]]:
        if self._stop.is_set():
            raise Stopped
        known = self._packs.known
        return [pack(chunk, known) for _, chunk in batch]

    def _collect(self) -> None:
        future, batch, size = self._flying.popleft()
        for (contents, chunk), (digest, frame) in zip(batch, future.result(), strict=True):
            contents.blobs.append(self._packs.put(digest, frame, len(chunk)))
            if not contents.digest and len(chunk) == contents.size:
                contents.digest = digest
        self._in_flight -= size


def _chunks(fd: int, path: bytes, size: int, sparse: bool, offset: int | None) -> Iterator[bytes]:
    """The content in blobs' lengths; holes are not read."""
    at, start = 0, offset or 0
    while at < size:
        want = min(CHUNK, size - at)
        chunk = _around_holes(fd, start + at, want) if sparse else os.pread(fd, want, start + at)
        if chunk:
            yield chunk
        at += len(chunk)
        if len(chunk) < want:
            return
    if offset is None and os.pread(fd, 1, size):
        safe.refuse(path, "grew while it was read")


def _around_holes(fd: int, start: int, length: int) -> bytes:
    """`length` bytes from `start` on, fewer at the end of the file, as if holes had been read."""
    end = min(start + length, os.fstat(fd).st_size)
    buffer = bytearray(max(end - start, 0))
    at = start
    while at < end:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole from here on
            break
        if data >= end:
            break
        hole = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        while data < hole:
            piece = os.pread(fd, hole - data, data)
            if not piece:
                return bytes(buffer[: data - start])
            buffer[data - start : data - start + len(piece)] = piece
            data += len(piece)
        at = hole
    return bytes(buffer)
