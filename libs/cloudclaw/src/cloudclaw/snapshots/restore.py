"""Writing the content of a manifest into an empty tree."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cloudclaw.errors import DataLossError, NotFoundError, OutOfRangeError
from cloudclaw.objects.port import ObjectStore
from cloudclaw.snapshots import safe
from cloudclaw.snapshots.manifest import Blob, Item, Manifest
from cloudclaw.snapshots.owner import acting_as
from cloudclaw.snapshots.packs import Range, ranges, unpack
from cloudclaw.snapshots.port import HOME, WORKSPACE, FileEntry, FileType
from cloudclaw.snapshots.threads import Stopped, TreeThreads

_FETCHES: Final = 3

Target = tuple[Item, int]
"""A file, and the offset in it at which a blob begins."""


def make_empty(tree: Path, uid: int | None) -> None:
    """Create `tree` with empty `workspace` and `home`, all owned by `uid`."""
    os.mkdir(tree, 0o700)
    if uid is not None:
        os.chown(tree, uid, uid)
    with safe.closing(open_tree(tree)) as root, acting_as(uid):
        for top in (WORKSPACE, HOME):
            os.mkdir(top, dir_fd=root)
            with safe.closing(safe.open_child(root, top.encode(), safe.DIRECTORY)) as fd:
                os.fchmod(fd, 0o755)


async def restore(store: ObjectStore, threads: TreeThreads, manifest: Manifest, tree: Path, uid: int | None) -> None:
    """Fill the tree that `make_empty` made. Directories first, then contents, and symlinks only at the end, so that
    nothing is ever written where a symlink stands; modes and times of directories last.

    Raises `DataLossError` naming blob and pack, `UnavailableError`.
    """
    items = manifest.items
    await threads.run(lambda stop: _lay_out(items, tree, uid, stop))
    targets: dict[Blob, list[Target]] = {}
    for item in items:
        offset = 0
        for blob in item.blobs:
            targets.setdefault(blob, []).append((item, offset))
            offset += blob.size
    slots = asyncio.Semaphore(_FETCHES)

    async def fill(part: Range) -> None:
        async with slots:
            data = await fetch(store, part.pack, part.offset, part.length)
            await threads.run(lambda stop: _fill(part, data, targets, tree, uid, stop))

    try:
        async with asyncio.TaskGroup() as group:
            for part in ranges(targets):
                group.create_task(fill(part))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    await threads.run(lambda stop: _finish(items, tree, uid, stop))


async def fetch(store: ObjectStore, pack: str, offset: int, length: int) -> bytes:
    """Part of a pack. Raises `DataLossError` naming it when it is not there; a short answer is judged by `unpack`."""
    try:
        return await store.get(pack, offset=offset, length=length)
    except (NotFoundError, OutOfRangeError) as error:
        raise DataLossError(f"pack {pack} is missing or too short at {offset}: {error.message}") from error


def open_tree(tree: Path) -> int:
    """The open directory of a tree, for all that is done beneath it; the caller closes it."""
    return os.open(tree, safe.DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)


def _lay_out(items: Sequence[Item], tree: Path, uid: int | None, stop: threading.Event) -> None:
    """Directories and files without content; the owner may write all of them until `_finish`."""
    with safe.closing(open_tree(tree)) as root, acting_as(uid):
        parent, fd = b"", os.dup(root)
        try:
            for item in items:
                if stop.is_set():
                    raise Stopped
                path, kind = item.entry.path, item.entry.type
                above, _, name = path.rpartition(b"/")
                if kind is FileType.SYMLINK or not above:
                    continue
                if above != parent:
                    os.close(fd)
                    parent, fd = above, -1
                    fd = safe.open_beneath(root, above, safe.DIRECTORY)
                if kind is FileType.DIRECTORY:
                    os.mkdir(name, 0o700, dir_fd=fd)
                elif not item.blobs:
                    with safe.closing(safe.open_child(fd, name, safe.CREATE)) as file:
                        _stamp(file, item.entry)
        finally:
            if fd >= 0:
                os.close(fd)


def _fill(
    part: Range,
    data: bytes,
    targets: Mapping[Blob, Sequence[Target]],
    tree: Path,
    uid: int | None,
    stop: threading.Event,
) -> None:
    """Write the blobs of one range into all files that hold them."""
    view = memoryview(data)
    with safe.closing(open_tree(tree)) as root, acting_as(uid):
        for blob in part.blobs:
            if stop.is_set():
                raise Stopped
            start = blob.offset - part.offset
            content = unpack(blob, bytes(view[start : start + blob.stored]))
            for item, offset in targets[blob]:
                # Not O_EXCL: the blobs of one file come in any order. The tree is still ours alone.
                flags = os.O_WRONLY | os.O_CREAT
                with safe.closing(safe.open_beneath(root, item.entry.path, flags)) as file:
                    _write(file, content, offset)
                    if len(item.blobs) == 1:
                        _stamp(file, item.entry)


def _finish(items: Sequence[Item], tree: Path, uid: int | None, stop: threading.Event) -> None:
    with safe.closing(open_tree(tree)) as root, acting_as(uid):
        for item in items:
            if stop.is_set():
                raise Stopped
            entry = item.entry
            if entry.type is FileType.SYMLINK:
                with safe.parent_of(root, entry.path) as (fd, name):
                    os.symlink(entry.target, name, dir_fd=fd)
                    os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=fd, follow_symlinks=False)
            elif len(item.blobs) > 1:
                with safe.closing(safe.open_beneath(root, entry.path, os.O_WRONLY)) as file:
                    _stamp(file, entry)
        for item in reversed(items):
            if item.entry.type is FileType.DIRECTORY:
                with safe.closing(safe.open_beneath(root, item.entry.path, safe.DIRECTORY)) as fd:
                    _stamp(fd, item.entry)


def _write(file: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _stamp(fd: int, entry: FileEntry) -> None:
    os.fchmod(fd, entry.mode)
    os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
