"""Packs: file contents stored many to an object (design §7, §5 rule 8).

A pack is a row of zstd frames, one for each blob; only manifests say where each lies. A blob is at most `CHUNK`
bytes of one file, so that a large file that grew is stored by its end alone, and a read in its middle fetches little.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

import zstandard

from cloudclaw.errors import DataLossError
from cloudclaw.snapshots.manifest import Blob

CHUNK: Final = 4 << 20
PACK: Final = 8 << 20
"""A pack is closed at this size; it has at most `CHUNK` and a little more above it."""
LEVEL: Final = 1

_IN_FLIGHT: Final = 2
_GAP: Final = 64 << 10
_RANGE: Final = PACK + CHUNK


class PackWriter:
    """Stores new blobs in packs named `{prefix}-{n}`; used by one thread.

    `upload` starts to store an object and answers a future; at most two are under way, so memory stays bounded.

    Attributes:
        known: stored blobs by digest, the new ones among them as they come. Other threads may read it.
        stored_bytes: of all packs so far.
    """

    def __init__(self, prefix: str, known: Mapping[str, Blob], upload: Callable[[str, bytes], Future[bool]]) -> None:
        self._prefix = prefix
        self.known = dict(known)
        self._upload = upload
        self._uploads: deque[Future[bool]] = deque()
        self._frames: list[bytes] = []
        self._size = 0
        self._packs = 0
        self.stored_bytes = 0

    def add(self, content: bytes) -> Blob:
        """The blob of `content`, stored unless it is known. Raises what the upload of an earlier pack raised."""
        digest, frame = pack(content, self.known)
        return self.put(digest, frame, len(content))

    def put(self, digest: str, frame: bytes | None, size: int) -> Blob:
        """The blob that `pack` answered, of `size` bytes of content. Raises as `add`."""
        known = self.known.get(digest)
        if known is not None:
            return known
        if frame is None:
            raise ValueError(f"blob {digest} was said to be known and is not")
        blob = Blob(f"{self._prefix}-{self._packs}", self._size, len(frame), size, digest)
        self.known[digest] = blob
        self._frames.append(frame)
        self._size += len(frame)
        if self._size >= PACK:
            self._close_pack()
        return blob

    def finish(self) -> None:
        """Wait until everything is stored."""
        self._close_pack()
        while self._uploads:
            self._uploads.popleft().result()

    def abandon(self) -> None:
        """Give up what is under way; what is stored already is referred to by nobody."""
        while self._uploads:
            self._uploads.popleft().cancel()

    def _close_pack(self) -> None:
        if not self._frames:
            return
        while len(self._uploads) >= _IN_FLIGHT:
            self._uploads.popleft().result()
        data = b"".join(self._frames)
        self._uploads.append(self._upload(f"{self._prefix}-{self._packs}", data))
        self.stored_bytes += len(data)
        self._packs += 1
        self._frames, self._size = [], 0


_per_thread: Final = threading.local()
"""A compressor serves one thread at a time."""


def pack(content: bytes, known: Mapping[str, Blob]) -> tuple[str, bytes | None]:
    """The digest of `content`, and its frame unless that is known. For any thread."""
    digest = hashlib.sha256(content).hexdigest()
    if digest in known:
        return digest, None
    compressor: zstandard.ZstdCompressor | None = getattr(_per_thread, "compressor", None)
    if compressor is None:
        compressor = _per_thread.compressor = zstandard.ZstdCompressor(level=LEVEL)
    return digest, compressor.compress(content)


def _decompressor() -> zstandard.ZstdDecompressor:
    """This thread's: making one costs as much as unpacking a small file."""
    found: zstandard.ZstdDecompressor | None = getattr(_per_thread, "decompressor", None)
    if found is None:
        found = _per_thread.decompressor = zstandard.ZstdDecompressor()
    return found


@dataclass(frozen=True, slots=True)
class Range:
    """Part of a pack that holds `blobs`, by offset."""

    pack: str
    offset: int
    length: int
    blobs: Sequence[Blob]


def ranges(blobs: Iterable[Blob]) -> list[Range]:
    """The fewest reads that fetch `blobs`: near ones together, a whole pack at most, by pack and offset."""
    found: list[Range] = []
    group: list[Blob] = []
    for blob in sorted(set(blobs), key=lambda b: (b.pack, b.offset)):
        if group:
            first, end = group[0], group[-1].offset + group[-1].stored
            near = blob.pack == first.pack and blob.offset <= end + _GAP
            if not near or blob.offset + blob.stored - first.offset > _RANGE:
                found.append(_range(group))
                group = []
        group.append(blob)
    if group:
        found.append(_range(group))
    return found


def _range(group: Sequence[Blob]) -> Range:
    start = group[0].offset
    return Range(group[0].pack, start, group[-1].offset + group[-1].stored - start, tuple(group))


def unpack(blob: Blob, frame: bytes) -> bytes:
    """The content of a stored blob. Raises `DataLossError` naming blob and pack unless it is what it must be."""
    try:
        if len(frame) != blob.stored:
            raise ValueError(f"{len(frame)} of {blob.stored} bytes came back")
        size = zstandard.get_frame_parameters(frame).content_size
        if size != blob.size:
            raise ValueError(f"it has {size} bytes instead of {blob.size}")
        content = _decompressor().decompress(frame)
        if hashlib.sha256(content).hexdigest() != blob.digest:
            raise ValueError("its content was altered")
    except (zstandard.ZstdError, ValueError) as error:
        raise DataLossError(f"blob {blob.digest} in {blob.pack} at {blob.offset} is damaged: {error}") from error
    return content
