"""The log of one attempt on disk, until the manager says that it is durable elsewhere."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time

from cloudclaw_supervisor import frames

_GET_FLAGS = 0x80086601
_SET_FLAGS = 0x40086602
_TOP_OF_HIERARCHIES = 0x00020000


def make_spools(directory: str) -> None:
    """Make the directory of spools, and say that those in it have nothing to do with each other (`chattr +T`).

    Otherwise ext4 puts their files where those of the last attempts were a moment ago, and, without a journal, looks at
    each of these before it makes one.
    """
    os.mkdir(directory, 0o700)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flags = bytearray(8)
        with contextlib.suppress(OSError):  # another file system does not know the flag, and needs none
            fcntl.ioctl(fd, _GET_FLAGS, flags)
            (known,) = struct.unpack_from("=i", flags)
            fcntl.ioctl(fd, _SET_FLAGS, struct.pack("=iI", known | _TOP_OF_HIERARCHIES, 0))
    finally:
        os.close(fd)


class Spool:
    """Appends frames to rotating files in `directory`.

    Args:
        directory: made here; must not exist.
        segment_bytes: a file that reached this size is followed by a new one.
    """

    def __init__(self, directory: str, segment_bytes: int):
        os.mkdir(directory, 0o700)
        self.directory = directory
        self.end = 0
        """Bytes of log so far."""
        self.held = 0
        """Bytes in files that were not forgotten yet."""
        self._segment_bytes = segment_bytes
        self._closed: list[tuple[int, int, str]] = []
        self._fd = -1
        self._name = ""
        self._size = 0

    def append(self, stream: int, data: bytes) -> None:
        """Write one frame; whole before the next one begins."""
        if self._fd < 0:
            self._name = frames.file_name(self.end)
            self._fd = os.open(
                f"{self.directory}/{self._name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600
            )
            self._size = 0
        frame = frames.HEADER.pack(self.end, stream, len(data), time.time_ns()) + data
        view = memoryview(frame)
        while view:
            view = view[os.write(self._fd, view) :]
        self.end += len(data)
        self._size += len(frame)
        self.held += len(frame)
        if self._size >= self._segment_bytes:
            self._rotate()

    def forget(self, upto: int) -> None:
        """Remove the whole files below byte `upto`."""
        if self._fd >= 0 and 0 < self.end <= upto:
            self._rotate()
        while self._closed and self._closed[0][0] <= upto:
            _, size, name = self._closed.pop(0)
            os.unlink(f"{self.directory}/{name}")
            self.held -= size

    def write_exit(self, record: bytes) -> None:
        """Leave the end of the attempt beside its log, complete or not at all."""
        temporary = f"{self.directory}/exit.tmp"
        with open(temporary, "wb") as file:
            file.write(record)
        os.rename(temporary, f"{self.directory}/exit.json")

    def remove(self) -> None:
        """Drop everything."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        for name in os.listdir(self.directory):
            os.unlink(f"{self.directory}/{name}")
        os.rmdir(self.directory)

    def _rotate(self) -> None:
        os.close(self._fd)
        self._fd = -1
        self._closed.append((self.end, self._size, self._name))
