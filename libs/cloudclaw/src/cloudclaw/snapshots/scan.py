"""Reading a hostile tree: every path, by directory descriptors, within limits."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from typing import Final

from cloudclaw.errors import InvalidArgumentError
from cloudclaw.snapshots import safe
from cloudclaw.snapshots.limits import Budget
from cloudclaw.snapshots.manifest import Blob, Item
from cloudclaw.snapshots.packs import CHUNK, PackWriter
from cloudclaw.snapshots.port import HOME, WORKSPACE, FileEntry, FileType, TreeLimits
from cloudclaw.snapshots.threads import Stopped

_MTIME: Final = (1 << 63) - 1


class Scan:
    """One pass over a tree that stores what is new. For one thread; `stop` ends it early with `Stopped`.

    Attributes:
        items: what was found, in no order.
        faithful: a restored copy is the same as the tree; false when something was simplified (setuid bits, hard
            links), so that the tree itself may not stand in for the snapshot.
    """

    def __init__(self, limits: TreeLimits, packs: PackWriter, stop: threading.Event) -> None:
        self._budget = Budget(limits)
        self._limits = limits
        self._packs = packs
        self._stop = stop
        self._device = 0
        self.items: list[Item] = []
        self.faithful = True

    def tree(self, root: int) -> None:
        """Scan `workspace` and `home` of the open tree `root`; whatever else is there is not the tenant's.

        Raises `QuotaExceededError` and `InvalidArgumentError(field="path")`, both naming the path.
        """
        for top in (WORKSPACE.encode(), HOME.encode()):
            self._directory(root, top, top, 0)

    def _directory(self, parent: int, name: bytes, path: bytes, depth: int) -> None:
        fd, bits = safe.open_directory(parent, name, path=path)
        try:
            status = os.fstat(fd)
            if depth == 0:
                self._device = status.st_dev
            elif status.st_dev != self._device:
                safe.refuse(path, "is a mount, and those cannot be kept")
            self._add(FileEntry(path, FileType.DIRECTORY, mode=self._mode(bits), mtime_ns=_mtime(status)))
            inside = []
            for entry in safe.names(fd):
                # Counted while listing: a directory may have more entries than memory.
                self._budget.entry(path + b"/" + os.fsencode(entry.name))
                inside.append(entry)
            inside.sort(key=lambda entry: os.fsencode(entry.name))
            for entry in inside:
                if self._stop.is_set():
                    raise Stopped
                self._child(fd, entry, path, depth + 1)
        finally:
            if bits & 0o700 != 0o700:
                os.fchmod(fd, bits)
            os.close(fd)

    def _child(self, fd: int, entry: os.DirEntry[str], parent: bytes, depth: int) -> None:
        name = os.fsencode(entry.name)
        path = parent + b"/" + name
        inner = path.split(b"/", 1)[1]
        if len(inner) > self._limits.path_bytes:
            safe.refuse(inner, f"the path has {len(inner)} bytes; at most {self._limits.path_bytes} are allowed")
        if depth > self._limits.depth:
            safe.refuse(path, f"is nested deeper than {self._limits.depth} directories")
        try:
            # The listing's type only chooses how to open; what was opened is judged again.
            if entry.is_symlink():
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                target = os.readlink(name, dir_fd=fd)
                self._add(FileEntry(path, FileType.SYMLINK, mode=0o777, mtime_ns=_mtime(status), target=target))
            elif entry.is_dir(follow_symlinks=False):
                self._directory(fd, name, path, depth)
            elif entry.is_file(follow_symlinks=False):
                self._file(fd, name, path)
            else:
                mode = entry.stat(follow_symlinks=False).st_mode
                safe.refuse(path, f"is {safe.kind(mode)}, and only files, directories and symlinks can be kept")
        except OSError as error:
            raise InvalidArgumentError(f"{safe.brief(path)}: cannot be read: {error.strerror}", field="path") from error

    def _file(self, parent: int, name: bytes, path: bytes) -> None:
        fd = safe.open_regular(parent, name, path=path)
        try:
            status = os.fstat(fd)
            self._budget.grow(path, status.st_size, status.st_size)
            if status.st_nlink > 1:
                self.faithful = False
            blobs, size, digest = self._content(fd, path, status.st_size)
        finally:
            os.close(fd)
        entry = FileEntry(
            path,
            FileType.REGULAR,
            size=size,
            mode=self._mode(stat.S_IMODE(status.st_mode)),
            mtime_ns=_mtime(status),
            digest=digest,
        )
        self._add(entry, blobs)

    def _content(self, fd: int, path: bytes, expected: int) -> tuple[tuple[Blob, ...], int, str]:
        """Store a file's content; what counts is what was read, should the file shrink meanwhile."""
        blobs: list[Blob] = []
        size = 0
        whole = hashlib.sha256()
        while True:
            want = min(CHUNK, expected - size + 1)
            chunk = os.read(fd, want)
            size += len(chunk)
            if size > expected:
                safe.refuse(path, "grew while it was read")
            if self._stop.is_set():
                raise Stopped
            if chunk:
                blobs.append(self._packs.add(chunk))
                if expected >= CHUNK:
                    whole.update(chunk)
            if len(chunk) < want:
                break
        digest = blobs[0].digest if len(blobs) == 1 else whole.hexdigest()
        return tuple(blobs), size, digest

    def _mode(self, bits: int) -> int:
        if bits & ~0o777:
            self.faithful = False
        return bits & 0o777

    def _add(self, entry: FileEntry, blobs: tuple[Blob, ...] = ()) -> None:
        self.items.append(Item(entry, blobs))


def _mtime(status: os.stat_result) -> int:
    return max(-_MTIME, min(_MTIME, status.st_mtime_ns))
