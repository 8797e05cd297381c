"""The file format of `FilesystemObjects`: an object's bytes, then what proves them.

    payload | one CRC-32 for each 64 KiB block of it (u32) | magic | payload size (u64) | CRC-32 (u32)

The last CRC-32 covers the table, the magic and the size. Integers are little-endian. The payload comes
first, so it can be written before its size is known, and its offsets are the file's offsets. A read of a
range checks the blocks that the range touches: a few KiB of a large object never cost hashing all of it.

CRC-32 finds what disks and crashes do to bytes. It is no defence against an attacker who can write the
files; content that needs one is addressed by its SHA-256 above this port.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from typing import Final

from cloudclaw.errors import DataLossError

BLOCK: Final = 64 * 1024
_MAGIC: Final = b"CLAWOBJ1"
_FOOTER: Final = struct.Struct("<8sQI")
_ENTRY: Final = 4


def payload_size(file_size: int) -> int:
    """Bytes of payload in an intact file of `file_size` bytes (0 for one too short to be intact)."""
    body = max(0, file_size - _FOOTER.size)
    blocks = -(-body // (BLOCK + _ENTRY))
    return max(0, body - _ENTRY * blocks)


class BlockWriter:
    """Writes one object to an empty file. Not thread-safe; calls block."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._table = array("I")
        self._size = 0
        self._crc = 0

    def write(self, data: bytes) -> None:
        """Append `data` to the payload. Raises `OSError`."""
        view = memoryview(data)
        position = 0
        while position < len(view):
            room = BLOCK - self._size % BLOCK
            piece = view[position : position + room]
            self._crc = zlib.crc32(piece, self._crc)
            self._size += len(piece)
            position += len(piece)
            if self._size % BLOCK == 0:
                self._end_block()
        _write_all(self._fd, view)

    def finish(self) -> int:
        """Write the proof behind the payload and answer the payload's size. Raises `OSError`."""
        if self._size % BLOCK:
            self._end_block()
        table = _little_endian(self._table)
        head = struct.pack("<8sQ", _MAGIC, self._size)
        check = zlib.crc32(head, zlib.crc32(table))
        _write_all(self._fd, memoryview(table + head + struct.pack("<I", check)))
        return self._size

    def _end_block(self) -> None:
        self._table.append(self._crc)
        self._crc = 0


class BlockReader:
    """Reads one object from a file. Raises `DataLossError` naming the object; calls block."""

    def __init__(self, fd: int, name: str) -> None:
        """Read and check the table. Raises `DataLossError` and `OSError`."""
        self._fd = fd
        self._name = name
        file_size = os.fstat(fd).st_size
        self.size = payload_size(file_size)
        """Bytes of payload."""
        tail = os.pread(fd, max(0, file_size - self.size), self.size)
        if len(tail) < _FOOTER.size:
            raise self._lost("is truncated")
        magic, size, check = _FOOTER.unpack(tail[-_FOOTER.size :])
        if magic != _MAGIC or size != self.size or check != zlib.crc32(tail[:-_ENTRY]):
            raise self._lost("is truncated, or its checksum table is altered")
        self._table = array("I", tail[: -_FOOTER.size])
        if _BIG_ENDIAN:
            self._table.byteswap()

    def read(self, offset: int, length: int) -> bytes:
        """The payload from `offset`, at most `length` bytes of it. Raises `DataLossError`, `OSError`."""
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        first = offset - offset % BLOCK
        stop = min(-(-end // BLOCK) * BLOCK, self.size)
        data = _read_all(self._fd, first, stop - first)
        if len(data) != stop - first:
            raise self._lost("is truncated")
        view = memoryview(data)
        for start in range(0, len(view), BLOCK):
            if zlib.crc32(view[start : start + BLOCK]) != self._table[(first + start) // BLOCK]:
                raise self._lost(f"is altered within bytes {first + start} to {first + start + BLOCK}")
        if first == offset and stop == end:
            return data
        return bytes(view[offset - first : end - first])

    def _lost(self, what: str) -> DataLossError:
        return DataLossError(f"object {self._name} {what}", metadata={"object": self._name})


_BIG_ENDIAN: Final = struct.pack("=H", 1) == struct.pack(">H", 1)


def _little_endian(table: array[int]) -> bytes:
    if _BIG_ENDIAN:
        table = array("I", table)
        table.byteswap()
    return table.tobytes()


def _write_all(fd: int, view: memoryview) -> None:
    while view:
        view = view[os.write(fd, view) :]


def _read_all(fd: int, offset: int, length: int) -> bytes:
    data = os.pread(fd, length, offset)
    if len(data) == length or not data:
        return data
    # Linux stops one read at 2 GiB.
    pieces = [data]
    got = len(data)
    while got < length:
        piece = os.pread(fd, length - got, offset + got)
        if not piece:
            break
        pieces.append(piece)
        got += len(piece)
    return b"".join(pieces)
