"""What differs between two snapshots."""

from __future__ import annotations

from collections.abc import Sequence

from cloudclaw.snapshots.manifest import Item, Manifest
from cloudclaw.snapshots.port import WORKSPACE, Change, FileType

_PREFIX = WORKSPACE.encode() + b"/"


def compare(old: Manifest | None, new: Manifest) -> Sequence[Change]:
    """Files and symlinks of the workspace that differ in content, type or mode, by path without the top directory.

    A file in whose place there is a directory now, or the other way round, is a change of that file alone.
    """
    changes = []
    for item in new.items:
        now = _size(item)
        was = old.get(item.entry.path) if old is not None else None
        size = _size(was)
        if (now is not None or size is not None) and not _same(was, item):
            changes.append(Change(item.entry.path[len(_PREFIX) :], size, now))
    for item in old.items if old is not None else ():
        size = _size(item)
        if size is not None and new.get(item.entry.path) is None:
            changes.append(Change(item.entry.path[len(_PREFIX) :], size, None))
    changes.sort(key=lambda change: change.path)
    return changes


def _size(item: Item | None) -> int | None:
    """Of a file or symlink of the workspace, its size."""
    if item is None or item.entry.type is FileType.DIRECTORY or not item.entry.path.startswith(_PREFIX):
        return None
    return item.entry.size


def _same(was: Item | None, now: Item) -> bool:
    if was is None or was is now:
        return was is now
    a, b = was.entry, now.entry
    return a.digest == b.digest and a.mode == b.mode and a.type is b.type and a.target == b.target
