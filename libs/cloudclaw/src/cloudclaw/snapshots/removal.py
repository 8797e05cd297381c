"""Removing hostile trees, whatever their depth, width and modes."""

from __future__ import annotations

import os
import stat
import threading
from dataclasses import dataclass
from typing import Final

from cloudclaw.ids import new_id
from cloudclaw.snapshots import safe
from cloudclaw.snapshots.threads import Stopped

_DEPTH: Final = 32


@dataclass(slots=True)
class Removed:
    """What was unlinked: entries, and bytes of regular files of which it was the last name."""

    files: int = 0
    bytes: int = 0


def remove(directory: int, name: bytes, spare: int, *, stop: threading.Event | None = None) -> Removed:
    """Remove `name` in the open `directory` with all below it; one that is not there is no error.

    Nothing is followed. Directories too deep to keep a descriptor for each step are first moved into the open
    directory `spare`, which is ours alone and on the same file system. Raises `Stopped`, `OSError`.
    """
    removed = Removed()
    deep: list[bytes] = []
    _remove(directory, name, spare, 0, removed, deep, stop)
    while deep:
        _remove(spare, deep.pop(), spare, 0, removed, deep, stop)
    return removed


def _remove(
    directory: int,
    name: bytes,
    spare: int,
    depth: int,
    removed: Removed,
    deep: list[bytes],
    stop: threading.Event | None,
) -> None:
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=directory)
        removed.files += 1
        removed.bytes += status.st_size if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else 0
        return
    # What stands there now may be something else than a moment ago; opened without following, it is judged again.
    fd, _ = safe.open_directory(directory, name)
    try:
        if depth >= _DEPTH:
            moved = new_id("deep").encode()
            os.rename(name, moved, src_dir_fd=directory, dst_dir_fd=spare)
            deep.append(moved)
            return
        while _empty(fd, spare, depth, removed, deep, stop):
            # Unlinking while listing may skip entries: list again until there are none.
            pass
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=directory)
    removed.files += 1


def _empty(fd: int, spare: int, depth: int, removed: Removed, deep: list[bytes], stop: threading.Event | None) -> bool:
    """One pass over a directory; whether there was anything."""
    found = False
    for entry in safe.names(fd):
        found = True
        if stop is not None and stop.is_set():
            raise Stopped
        _remove(fd, os.fsencode(entry.name), spare, depth + 1, removed, deep, stop)
    return found
