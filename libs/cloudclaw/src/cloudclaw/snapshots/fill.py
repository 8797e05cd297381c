"""Writing files, links and times into a tree that is ours alone (see `restore`).

Each function is one piece of work for one thread: it ends early with `Stopped`, and lets `OSError` through.

While it is restored nobody else acts on a tree: it is new, closed to others (0700), and no process runs in it. So one
resolution of a directory serves all files in it. Each is made by its one name beneath the open directory, with
`O_EXCL` and `O_NOFOLLOW`, so that even here nothing is ever written through what stands at a path already.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cloudclaw.errors import DataLossError
from cloudclaw.snapshots import safe
from cloudclaw.snapshots.manifest import Blob, Item
from cloudclaw.snapshots.owner import acting_as
from cloudclaw.snapshots.packs import Range, unpack
from cloudclaw.snapshots.port import FileEntry, FileType
from cloudclaw.snapshots.progress import Meter
from cloudclaw.snapshots.threads import Stopped

Target = tuple[Item, int]
"""A file, and the offset in it at which a blob begins."""

Seen = Callable[[Item, os.stat_result], None]
"""Told the status of each path after the last change to it. From several threads."""

_HOLE: Final = 4096
_ZEROS: Final = bytes(_HOLE)
_OPEN: Final = 16


def open_tree(tree: Path) -> int:
    """The open directory of a tree, for all that is done beneath it; the caller closes it."""
    return os.open(tree, safe.DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)


class Directories:
    """The directories of a tree that were used last, open."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._open: OrderedDict[bytes, int] = OrderedDict()

    def of(self, path: bytes) -> tuple[int, bytes]:
        """The open parent of `path`, valid until the next call, and the last step. Raises as `safe.open_beneath`."""
        above, _, name = path.rpartition(b"/")
        fd = self._open.get(above)
        if fd is not None:
            self._open.move_to_end(above)
            return fd, name
        if len(self._open) >= _OPEN:
            os.close(self._open.popitem(last=False)[1])
        fd = os.dup(self._root) if not above else safe.open_beneath(self._root, above, safe.DIRECTORY, named=path)
        self._open[above] = fd
        return fd, name

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


@contextmanager
def directories(tree: Path, uid: int | None) -> Iterator[Directories]:
    """The directories of `tree`, acting as `uid` meanwhile."""
    with safe.closing(open_tree(tree)) as root, acting_as(uid):
        found = Directories(root)
        try:
            yield found
        finally:
            found.close()


def lay_out(
    items: Sequence[Item], tree: Path, uid: int | None, have: Collection[bytes], seen: Seen, stop: threading.Event
) -> None:
    """Directories, empty files, and files of several blobs, which are filled in any order.

    The owner may write all of them until `finish`. Paths in `have` are there.
    """
    with directories(tree, uid) as opened:
        for item in items:
            if stop.is_set():
                raise Stopped
            entry = item.entry
            if entry.path in have or entry.link or entry.type is FileType.SYMLINK or b"/" not in entry.path:
                continue
            if entry.type is FileType.DIRECTORY:
                parent, name = opened.of(entry.path)
                os.mkdir(name, 0o700, dir_fd=parent)
            elif len(item.blobs) != 1:
                parent, name = opened.of(entry.path)
                with safe.closing(safe.open_child(parent, name, safe.CREATE, path=entry.path)) as file:
                    if item.blobs:
                        os.ftruncate(file, entry.size)
                    else:
                        seen(item, _stamp(file, entry))


def fill(
    part: Range,
    data: bytes,
    targets: Mapping[Blob, Sequence[Target]],
    tree: Path,
    uid: int | None,
    seen: Seen,
    meter: Meter,
    stop: threading.Event,
) -> None:
    """Write the blobs of one range into all files that hold them. Raises `DataLossError` naming blob and path."""
    view = memoryview(data)
    with directories(tree, uid) as opened:
        for blob in part.blobs:
            start = blob.offset - part.offset
            try:
                content = unpack(blob, bytes(view[start : start + blob.stored]))
            except DataLossError as error:
                raise lost(error, targets[blob]) from error
            for item, offset in targets[blob]:
                if stop.is_set():
                    raise Stopped
                parent, name = opened.of(item.entry.path)
                # A file of one blob is made here; one of several was made by `lay_out`.
                whole = len(item.blobs) == 1
                flags = safe.CREATE if whole else os.O_WRONLY
                with safe.closing(safe.open_child(parent, name, flags, path=item.entry.path)) as file:
                    _write(file, content, offset, sparse=item.entry.sparse)
                    if whole:
                        if item.entry.sparse:
                            os.ftruncate(file, item.entry.size)
                        seen(item, _stamp(file, item.entry))
                meter.add(1 if whole else 0, blob.size)


def finish(
    items: Sequence[Item], tree: Path, uid: int | None, have: Collection[bytes], seen: Seen, stop: threading.Event
) -> None:
    """What may only come when all contents are there: hard links, then symlinks, so that nothing was ever written
    where one stands, and at last the modes and times of directories, the deepest first."""
    linked: list[Item] = []
    with directories(tree, uid) as opened:
        for item in items:
            if stop.is_set():
                raise Stopped
            entry = item.entry
            if entry.path in have:
                continue
            if entry.type is FileType.SYMLINK:
                parent, name = opened.of(entry.path)
                os.symlink(entry.target, name, dir_fd=parent)
                os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)
                seen(item, os.stat(name, dir_fd=parent, follow_symlinks=False))
            elif entry.link:
                linked.append(item)
            elif len(item.blobs) > 1:
                parent, name = opened.of(entry.path)
                with safe.closing(safe.open_child(parent, name, os.O_WRONLY, path=entry.path)) as file:
                    seen(item, _stamp(file, entry))
        _link(linked, items, opened, seen, stop)
        for item in reversed(items):
            if item.entry.type is FileType.DIRECTORY:
                parent, name = opened.of(item.entry.path)
                with safe.closing(safe.open_child(parent, name, safe.DIRECTORY, path=item.entry.path)) as fd:
                    seen(item, _stamp(fd, item.entry))


def _link(
    linked: Sequence[Item], items: Sequence[Item], opened: Directories, seen: Seen, stop: threading.Event
) -> None:
    """Give files their other names, by open directories and without following; a link changes the file's ctime."""
    names = {item.entry.link for item in linked}
    for item in linked:
        if stop.is_set():
            raise Stopped
        source, first = opened.of(item.entry.link)
        # The next lookup may close what this one answered.
        with safe.closing(os.dup(source)) as held:
            parent, name = opened.of(item.entry.path)
            os.link(first, name, src_dir_fd=held, dst_dir_fd=parent, follow_symlinks=False)
    for item in items:
        if item.entry.path in names or item.entry.link:
            parent, name = opened.of(item.entry.path)
            seen(item, os.stat(name, dir_fd=parent, follow_symlinks=False))


def lost(error: DataLossError, targets: Sequence[Target]) -> DataLossError:
    """The same error, which also says in which files of the tree the blob is."""
    more = f" and {len(targets) - 1} more" if len(targets) > 1 else ""
    path = safe.brief(targets[0][0].entry.path)
    return DataLossError(f"{error.message}; it is part of {path}{more}", metadata=error.metadata)


def _write(file: int, content: bytes, offset: int, *, sparse: bool) -> None:
    view = memoryview(content)
    for start, end in _runs(content, offset) if sparse else [(0, len(content))]:
        at = start
        while at < end:
            at += os.pwrite(file, view[at:end], offset + at)


def _runs(content: bytes, offset: int) -> Iterator[tuple[int, int]]:
    """Where `content`, which stands at `offset` of its file, has other than blocks of zeros."""
    begun = at = 0
    while at < len(content):
        end = min(len(content), at + _HOLE - (offset + at) % _HOLE)
        if content.startswith(_ZEROS[: end - at], at):
            if begun < at:
                yield begun, at
            begun = end
        at = end
    if begun < at:
        yield begun, at


def _stamp(fd: int, entry: FileEntry) -> os.stat_result:
    """Give what is open its mode and time; how it stands after that."""
    os.fchmod(fd, entry.mode)
    os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
    return os.fstat(fd)
