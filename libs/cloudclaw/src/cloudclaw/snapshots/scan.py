"""Reading a hostile tree: every path, by directory descriptors, within limits."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from cloudclaw.errors import InvalidArgumentError, QuotaExceededError
from cloudclaw.snapshots import safe
from cloudclaw.snapshots.index import Index, Seen, mtime_of, trusted
from cloudclaw.snapshots.limits import Budget
from cloudclaw.snapshots.links import Links
from cloudclaw.snapshots.manifest import Item
from cloudclaw.snapshots.port import HOME, WORKSPACE, FileEntry, FileType, TreeLimits
from cloudclaw.snapshots.rescan import Difference
from cloudclaw.snapshots.staging import settle
from cloudclaw.snapshots.threads import Stopped

TOPS: Final = (WORKSPACE.encode(), HOME.encode())
DIRECTORY: Final = Item(FileEntry(b"", FileType.DIRECTORY))
"""Stands for any directory in its parent's names."""
_KEPT: Final = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
_SPECIAL_BITS: Final = 0o7000

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Taker(Protocol[T_co]):
    """Takes the content of files: stores it, or puts a copy aside."""

    def take(self, fd: int, path: bytes, size: int, *, sparse: bool = False) -> T_co: ...


@dataclass(slots=True)
class Fresh(Generic[T]):
    """A file or symlink that was read in this scan.

    Attributes:
        entry: without digest and link.
        status: of the moment its content was read, or just before.
        read_ns: when reading began; 0 when the facts must not be trusted later.
        content: what the taker answered; None of a symlink, and of all names but one of a file with several. That
            one has the file's facts.
    """

    entry: FileEntry
    status: os.stat_result
    read_ns: int
    content: T | None = None


@dataclass(slots=True)
class Folder(Generic[T]):
    """A directory, and what its names are. Of a directory below it `seen` has the inode's facts only."""

    entry: FileEntry
    names: dict[bytes, Seen | Fresh[T]] = field(default_factory=dict)


class Scan(Generic[T]):
    """What is in a tree, and the content of what `index` does not know through `taker`. For one thread at a time.

    `moving`: processes run in the tree. What cannot be read then, or breaks a limit, is left out, and nothing is
    chmodded on the way: `again` sees it once they stand still.

    Attributes:
        folders: by path.
        read: files whose content was taken.
        faithful: a restored copy is the same as the tree; false when something was simplified (setuid bits, symlinks
            with several names), so that the tree itself may not stand in for the snapshot.
    """

    def __init__(
        self,
        limits: TreeLimits,
        index: Index,
        taker: Taker[T],
        now_ns: Callable[[], int],
        stop: threading.Event,
        *,
        moving: bool = False,
    ) -> None:
        self._limits = limits
        self._budget = Budget(limits)
        self._index = index
        self._taker = taker
        self._now_ns = now_ns
        self._stop = stop
        self._moving = moving
        self._mapped: Collection[int] = frozenset()
        self._devices: dict[bytes, int] = {}
        self.folders: dict[bytes, Folder[T]] = {}
        self.links = Links()
        self.read = 0
        self.faithful = True

    def tree(self, root: int) -> None:
        """Scan `workspace` and `home` of the open tree `root`; whatever else is there is not the tenant's.

        Raises `QuotaExceededError` and `InvalidArgumentError(field="path")`, both naming the path.
        """
        try:
            for top in TOPS:
                self._directory(root, top, top, 0)
            self._linked(root)
        except (OSError, InvalidArgumentError, QuotaExceededError):
            if not self._moving:
                raise
        if self._moving:
            self._recount()

    def again(
        self, root: int, differences: Sequence[Difference], mapped: Collection[int], stop: threading.Event
    ) -> None:
        """The tree stands still now, and `differences` say where it is not as it was found: make up for it.

        Files with an inode in `mapped` are read again whatever they look like. Raises as `tree`.
        """
        self._moving, self._stop, self._mapped = False, stop, mapped
        for path, there, _, _ in differences:
            if not there:
                self._drop(path)
        todo = {path: set(changed) for path, there, changed, _ in differences if there}
        for path, there, changed, gone in differences:
            if there:
                for name in (*changed, *gone):
                    self._forget(path, name)
        for path, name in self._to_read_again():
            self._forget(path, name)
            todo.setdefault(path, set()).add(name)
        self._refuse_too_many(todo)
        for top in TOPS:
            self._directory(root, top, top, 0)
        for path, names in todo.items():
            if names:
                self._names(root, path, sorted(names))
        self._linked(root)

    def _refuse_too_many(self, todo: Mapping[bytes, Collection[bytes]]) -> None:
        """Before any of it is copied: a tree with far too many entries must not stand still for long."""
        if self._budget.files + sum(map(len, todo.values())) > self._limits.files:
            for path, names in todo.items():
                for name in names:
                    self._budget.entry(path + b"/" + name)

    def _names(self, root: int, path: bytes, names: Sequence[bytes]) -> None:
        """Look at some names of a directory that is known."""
        fd, bits = self._enter_known(root, path)
        found, depth = self.folders[path].names, path.count(b"/") + 1
        try:
            for name in names:
                if self._stop.is_set():
                    raise Stopped
                self._budget.entry(path + b"/" + name)
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                found[name] = self._child(fd, name, path, status, depth)
        finally:
            self._leave(fd, bits)

    def _enter_known(self, root: int, path: bytes) -> tuple[int, int]:
        try:
            fd = safe.open_beneath(root, path, safe.DIRECTORY)
        except PermissionError:
            with safe.parent_of(root, path) as (parent, name):
                return safe.open_directory(parent, name, path=path)
        bits = stat.S_IMODE(os.fstat(fd).st_mode)
        if bits & stat.S_IRWXU != stat.S_IRWXU:
            os.fchmod(fd, bits | stat.S_IRWXU)
        return fd, bits

    def listing(self) -> dict[bytes, dict[str, tuple[int, int]]]:
        """What was found, for `rescan`."""
        return {
            path: {os.fsdecode(name): _facts(node) for name, node in folder.names.items()}
            for path, folder in self.folders.items()
        }

    def _to_read_again(self) -> list[tuple[bytes, bytes]]:
        if not self._mapped:
            return []
        return [
            (path, name)
            for path, folder in self.folders.items()
            for name, node in folder.names.items()
            if (node.ino if isinstance(node, Seen) else node.status.st_ino) in self._mapped
        ]

    def _drop(self, path: bytes) -> None:
        for name in list(self.folders[path].names):
            self._forget(path, name)
        del self.folders[path]

    def _forget(self, path: bytes, name: bytes) -> None:
        node = self.folders[path].names.pop(name, None)
        if node is None:
            return
        freed = self.links.remove(path + b"/" + name)
        if freed is None:
            freed = node.item.entry.size if isinstance(node, Seen) else node.entry.size
        self._budget.give_back(1, freed, _names_of(path, name, node))

    def _recount(self) -> None:
        """Count what was found, not what was met: of a moving tree some was left out half-way."""
        size = sum(names.size for names in self.links)
        files = names_bytes = 0
        for path, folder in self.folders.items():
            files += len(folder.names)
            for name, node in folder.names.items():
                names_bytes += _names_of(path, name, node)
                entry = node.item.entry if isinstance(node, Seen) else node.entry
                if entry.size and not self.links.has(path + b"/" + name):
                    size += entry.size
        self._budget = Budget(self._limits, files=files, size=size, names=names_bytes)

    def _directory(self, parent: int, name: bytes, path: bytes, depth: int) -> os.stat_result:
        """Enter a directory; one that is known already is only looked at itself."""
        fd, bits = self._enter(parent, name, path)
        try:
            status = os.fstat(fd)
            if status.st_dev != self._devices.setdefault(path.split(b"/", 1)[0], status.st_dev):
                safe.refuse(path, "is a mount, and those cannot be kept")
            entry = FileEntry(path, FileType.DIRECTORY, mode=self._mode(bits), mtime_ns=mtime_of(status))
            known = self.folders.get(path)
            if known is not None:
                known.entry = entry
                return status
            folder = self.folders[path] = Folder[T](entry)
            inside = []
            for found in safe.names(fd):
                # Counted while listing: a directory may have more entries than memory.
                named = os.fsencode(found.name)
                self._budget.entry(path + b"/" + named)
                inside.append((named, found))
            inside.sort()
            for named, found in inside:
                if self._stop.is_set():
                    raise Stopped
                try:
                    folder.names[named] = self._child(fd, named, path, found.stat(follow_symlinks=False), depth + 1)
                except (OSError, InvalidArgumentError):
                    if not self._moving:
                        raise
            return status
        finally:
            self._leave(fd, bits)

    def _enter(self, parent: int, name: bytes, path: bytes) -> tuple[int, int]:
        if not self._moving:
            return safe.open_directory(parent, name, path=path)
        fd = safe.open_child(parent, name, safe.DIRECTORY, path=path)
        return fd, stat.S_IMODE(os.fstat(fd).st_mode)

    def _leave(self, fd: int, bits: int) -> None:
        if bits & stat.S_IRWXU != stat.S_IRWXU and not self._moving:
            os.fchmod(fd, bits)
        os.close(fd)

    def _child(self, fd: int, name: bytes, parent: bytes, status: os.stat_result, depth: int) -> Seen | Fresh[T]:
        path = parent + b"/" + name
        if len(path) > self._limits.path_bytes:
            inner = path.split(b"/", 1)[1]
            if len(inner) > self._limits.path_bytes:
                safe.refuse(inner, f"the path has {len(inner)} bytes; at most {self._limits.path_bytes} are allowed")
        if depth > self._limits.depth:
            safe.refuse(path, f"is nested deeper than {self._limits.depth} directories")
        mode = status.st_mode
        if stat.S_IFMT(mode) not in _KEPT:
            safe.refuse(path, f"is {safe.kind(mode)}, and only files, directories and symlinks can be kept")
        try:
            # This look only chooses how to open; what was opened is judged again.
            if stat.S_ISREG(mode):
                return self._file(fd, name, path, status)
            if stat.S_ISDIR(mode):
                status = self._directory(fd, name, path, depth)
                return Seen(status.st_ino, status.st_ctime_ns, DIRECTORY)
            if status.st_nlink > 1:
                self.faithful = False  # each of its names becomes a symlink of its own
            seen = self._index.trusted(path, status)
            if seen is not None:
                self._budget.name(path, len(seen.item.entry.target))
                return seen
            now = self._now_ns()
            target = os.readlink(name, dir_fd=fd)
            self._budget.name(path, len(target))
            return Fresh(FileEntry(path, FileType.SYMLINK, 0, 0o777, mtime_of(status), target=target), status, now)
        except OSError as error:
            raise InvalidArgumentError(f"{safe.brief(path)}: cannot be read: {error.strerror}", field="path") from error

    def _file(self, parent: int, name: bytes, path: bytes, status: os.stat_result) -> Seen | Fresh[T]:
        seen = self._index.trusted(path, status)
        if seen is not None and status.st_ino not in self._mapped:
            if status.st_mode & _SPECIAL_BITS:
                self.faithful = False
            if status.st_nlink == 1 or self.links.add(path, status):
                self._budget.grow(path, status.st_size, status.st_size)
            return seen
        if status.st_nlink == 1:
            return self._read(parent, name, path)
        # Whose other names are all in this tree is known at the end: nothing of it is read before.
        if self.links.add(path, status):
            self._budget.grow(path, status.st_size, status.st_size)
        return Fresh(self._entry(path, status), status, 0)

    def _read(self, parent: int, name: bytes, path: bytes, ino: int | None = None) -> Fresh[T]:
        """Take a file's content: of one with several names, that of inode `ino`."""
        fd = self._open(parent, name, path)
        try:
            if self._moving:
                settle(fd)
            now = self._now_ns()
            status = os.fstat(fd)
            if ino is None:
                self._budget.grow(path, status.st_size, status.st_size)
            if not stat.S_ISREG(status.st_mode) or (status.st_ino != ino if ino is not None else status.st_nlink > 1):
                safe.refuse(path, "changed while it was read")
            entry = self._entry(path, status)
            content = self._taker.take(fd, path, status.st_size, sparse=entry.sparse)
        finally:
            os.close(fd)
        self.read += 1
        return Fresh(entry, status, 0 if status.st_ino in self._mapped else now, content)

    def _open(self, parent: int, name: bytes, path: bytes) -> int:
        if self._moving:
            return safe.open_child(parent, name, safe.READ, path=path)
        return safe.open_regular(parent, name, path=path)

    def _linked(self, root: int) -> None:
        """Take the content of files with several names, all of which must be in the tree."""
        for names in self.links:
            first = min(names.paths)
            if len(names.paths) != names.nlink:
                if self._moving:
                    continue
                safe.refuse(
                    first,
                    f"is one of {names.nlink} names of a file, {names.nlink - len(names.paths)} of them outside of the"
                    " tree: hard links across the boundary are refused",
                )
            if self._stop.is_set():
                raise Stopped
            if any(_known(self.node(path)) for path in names.paths):
                continue
            try:
                with safe.parent_of(root, first) as (parent, name):
                    fresh = self._read(parent, name, first, names.ino)
            except (OSError, InvalidArgumentError) as error:
                if self._moving:
                    continue
                if isinstance(error, InvalidArgumentError):
                    raise
                raise InvalidArgumentError(
                    f"{safe.brief(first)}: cannot be read: {error.strerror}", field="path"
                ) from error
            self._place(first, fresh)
            for path in names.paths - {first}:
                node = self.node(path)
                if isinstance(node, Fresh) and node.status.st_ctime_ns == fresh.status.st_ctime_ns:
                    node.read_ns = fresh.read_ns

    def node(self, path: bytes) -> Seen | Fresh[T]:
        """What was found at `path`, which is no top directory."""
        above, _, name = path.rpartition(b"/")
        return self.folders[above].names[name]

    def _place(self, path: bytes, node: Seen | Fresh[T]) -> None:
        above, _, name = path.rpartition(b"/")
        self.folders[above].names[name] = node

    def _entry(self, path: bytes, status: os.stat_result) -> FileEntry:
        sparse = status.st_blocks * 512 < status.st_size
        mode = self._mode(stat.S_IMODE(status.st_mode))
        return FileEntry(path, FileType.REGULAR, status.st_size, mode, mtime_of(status), sparse=sparse)

    def _mode(self, bits: int) -> int:
        if bits & ~0o777:
            self.faithful = False
        return bits & 0o777


def _names_of(parent: bytes, name: bytes, node: Seen | Fresh[T]) -> int:
    entry = node.item.entry if isinstance(node, Seen) else node.entry
    return len(parent) + 1 + len(name) + len(entry.target)


def _known(node: Seen | Fresh[T]) -> bool:
    return isinstance(node, Seen) or node.content is not None


def _facts(node: Seen | Fresh[T]) -> tuple[int, int]:
    if isinstance(node, Seen):
        return node.ino, node.ctime_ns
    return (node.status.st_ino if trusted(node.status, node.read_ns) else 0), node.status.st_ctime_ns
