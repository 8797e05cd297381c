"""Reading a slot's log spool. The slot's uid writes it, so every byte is doubted."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cloudclaw_pool_manager.domain.attempt import LogFrame, Stream
from cloudclaw_pool_manager.ports.backend import SlotFailedError
from cloudclaw_supervisor import frames, protocol

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_FILES = 4096
_CHUNK = 1 << 20


class SpoolReader:
    """Reads the frames of one attempt. Remembers where the last read ended, so that reading on is cheap.

    Args:
        control: the slot's control directory.
        uid: the attempt.
    """

    def __init__(self, control: Path, uid: str):
        self._path = control / protocol.SPOOL
        self.uid = uid
        self._file = ""
        self._position = 0
        self._next = -1

    def read(self, offset: int, max_bytes: int) -> list[LogFrame]:
        """Complete frames from byte `offset` on, at most about `max_bytes`.

        Raises:
            SlotFailedError: the spool is gone, was dropped up to beyond `offset`, or holds nonsense.
        """
        try:
            spool = os.open(self._path, _DIRECTORY)
            try:
                directory = os.open(self.uid, _DIRECTORY, dir_fd=spool)
            finally:
                os.close(spool)
            try:
                return self._read(directory, offset, max_bytes)
            finally:
                os.close(directory)
        except OSError as error:
            raise SlotFailedError(f"the spool of {self.uid} cannot be read: {error}") from error

    def _read(self, directory: int, offset: int, max_bytes: int) -> list[LogFrame]:
        files = self._files(directory)
        found: list[LogFrame] = []
        taken = 0
        for at, (start, name) in enumerate(files):
            if at + 1 < len(files) and files[at + 1][0] <= offset:
                continue  # all of it lies before
            if start > offset and not found:
                raise SlotFailedError(f"the log below byte {start} was dropped, and {offset} was asked for")
            for frame in self._frames(directory, name, start, offset, max_bytes - taken):
                found.append(frame)
                taken += len(frame.data)
            if taken >= max_bytes:
                break
        return found

    def _files(self, directory: int) -> list[tuple[int, str]]:
        names = os.listdir(directory)
        if len(names) > _MAX_FILES:
            raise SlotFailedError("the spool holds too many files")
        return sorted((start, name) for name in names if (start := frames.file_offset(name)) is not None)

    def _frames(self, directory: int, name: str, start: int, offset: int, room: int) -> list[LogFrame]:
        found: list[LogFrame] = []
        fd = os.open(name, _FILE, dir_fd=directory)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise SlotFailedError("the spool holds something that is no file")
            position, expected = (self._position, self._next) if self._continues(name, offset) else (0, start)
            buffer = b""
            while room > 0:
                chunk = os.pread(fd, _CHUNK, position + len(buffer))
                buffer += chunk
                used = 0
                while room > 0 and (frame := _parse(buffer, used, expected)) is not None:
                    used += frames.HEADER.size + len(frame.data)
                    expected += len(frame.data)
                    if expected > offset:
                        found.append(_from(frame, offset))
                        room -= len(found[-1].data)
                buffer = buffer[used:]
                position += used
                if not chunk:
                    break
            self._file, self._position, self._next = name, position, expected
        finally:
            os.close(fd)
        return found

    def _continues(self, name: str, offset: int) -> bool:
        return name == self._file and 0 <= self._next <= offset


def _parse(buffer: bytes, at: int, expected: int) -> LogFrame | None:
    """The frame at `at`, None when it is not complete yet."""
    if len(buffer) - at < frames.HEADER.size:
        return None
    offset, stream, length, time_ns = frames.HEADER.unpack_from(buffer, at)
    if offset != expected or length > frames.MAX_PAYLOAD or stream not in (1, 2, 3):
        raise SlotFailedError(f"the spool is damaged: a frame at byte {offset} where {expected} was due")
    body = at + frames.HEADER.size
    if len(buffer) - body < length:
        return None
    return LogFrame(offset, Stream(stream), time_ns / 1e9, buffer[body : body + length])


def _from(frame: LogFrame, offset: int) -> LogFrame:
    """The part of `frame` at and after `offset`."""
    skip = offset - frame.offset
    if skip <= 0:
        return frame
    return LogFrame(offset, frame.stream, frame.time, frame.data[skip:])
