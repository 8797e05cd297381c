"""One object's file, open for writing or for reading, by calls that run in threads.

A caller on the event loop may be cancelled while its call still runs in a thread, and closes then. Each
handle therefore serves one call at a time, and a call that comes after `close` is refused: no descriptor
leaks, and none is used after it was closed (and perhaps opened again as something else).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from threading import Lock

from cloudclaw.errors import UnavailableError
from cloudclaw.objects.blockfile import BlockReader, BlockWriter
from cloudclaw.objects.filetree import FileTree, file_errors
from cloudclaw.objects.port import ObjectInfo


class NewObject:
    """An object being written. `publish` at most once, `close` always; raises the port's errors."""

    def __init__(self, tree: FileTree, name: str) -> None:
        self._tree = tree
        self._name = name
        self._lock = Lock()
        self._path = ""
        self._fd = -1
        self._blocks = BlockWriter(-1)
        self._closed = False
        self.size = 0
        """Bytes of the object, once published."""

    def write(self, pieces: Iterable[bytes]) -> None:
        """Append `pieces`; the first call creates the temporary file."""
        with self._lock, file_errors(self._name):
            self._require_open()
            if self._fd < 0:
                self._path, self._fd = self._tree.create()
                self._blocks = BlockWriter(self._fd)
            for piece in pieces:
                self._blocks.write(piece)

    def publish(self, *, replace: bool) -> bool:
        """Make what was written durable, and then visible. False when `replace` is not set and it exists."""
        with self._lock, file_errors(self._name):
            self._require_open()
            self.size = self._blocks.finish()
            os.fsync(self._fd)
            return self._tree.publish(self._path, self._name, replace=replace)

    def close(self) -> None:
        """Remove the temporary name where it still exists. Idempotent."""
        with self._lock:
            self._closed = True
            if self._fd < 0:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            os.close(self._fd)
            self._fd = -1

    def _require_open(self) -> None:
        if self._closed:
            raise UnavailableError(f"writing object {self._name} was given up")


class OpenObject:
    """An object being read: the same one to the end, whatever replaces its name meanwhile."""

    def __init__(self, tree: FileTree, name: str) -> None:
        self._tree = tree
        self._name = name
        self._lock = Lock()
        self._fd = -1
        self._blocks: BlockReader | None = None
        self._closed = False

    def open(self) -> ObjectInfo:
        """Open the file and check its table. Raises `NotFoundError`, `DataLossError`, `UnavailableError`."""
        with self._lock, file_errors(self._name):
            if self._closed:
                raise UnavailableError(f"reading object {self._name} was given up")
            self._fd = self._tree.open(self._name)
            self._blocks = BlockReader(self._fd, self._name)
            return ObjectInfo(self._name, self._blocks.size, os.fstat(self._fd).st_mtime)

    def read(self, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`. Raises `DataLossError`, `UnavailableError`."""
        with self._lock, file_errors(self._name):
            if self._closed or self._blocks is None:
                raise UnavailableError(f"object {self._name} is not open")
            return self._blocks.read(offset, length)

    def close(self) -> None:
        """Release the descriptor. Idempotent."""
        with self._lock:
            self._closed = True
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
