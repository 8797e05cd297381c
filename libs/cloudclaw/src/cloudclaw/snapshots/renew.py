"""Making one snapshot's tree of another's: what both have alike stays, so that a restore skips it."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

from cloudclaw.snapshots import safe
from cloudclaw.snapshots.fill import open_tree
from cloudclaw.snapshots.index import Index
from cloudclaw.snapshots.manifest import Manifest
from cloudclaw.snapshots.port import HOME, WORKSPACE, FileType
from cloudclaw.snapshots.removal import remove
from cloudclaw.snapshots.threads import Stopped


def prune(tree: Path, trash: Path, index: Index, manifest: Manifest, stop: threading.Event) -> set[bytes]:
    """Remove from a tree all that `manifest` does not hold just so; answers the paths that stay.

    A file or symlink stays when `index` vouches for it (its inode is as it was when its content was read, see
    `index.py`) and says of it what the manifest says, times and mode included. Files with several names go: which of
    them belong together is made anew. Directories stay where the manifest has one; their modes and times are not
    looked at. The tree is hostile content that nobody writes to any more; nothing in it is followed.

    `trash`: a directory on the same file system that is ours alone. Raises `Stopped`, `OSError`.
    """
    with safe.closing(open_tree(tree)) as root, safe.closing(open_tree(trash)) as spare:
        pruning = _Pruning(index, manifest, spare, stop)
        for top in (WORKSPACE.encode(), HOME.encode()):
            pruning.directory(root, top, top)
    return pruning.kept


class _Pruning:
    def __init__(self, index: Index, manifest: Manifest, spare: int, stop: threading.Event) -> None:
        self._index = index
        self._manifest = manifest
        self._spare = spare
        self._stop = stop
        self._linked = {item.entry.link for item in manifest.items if item.entry.link}
        self.kept: set[bytes] = set()

    def directory(self, parent: int, name: bytes, path: bytes) -> None:
        # Its owner is given rwx where it had less; the restore gives every directory its mode at the end.
        fd, _ = safe.open_directory(parent, name, path=path)
        with safe.closing(fd):
            self.kept.add(path)
            for entry in list(safe.names(fd)):
                if self._stop.is_set():
                    raise Stopped
                inside = os.fsencode(entry.name)
                below = path + b"/" + inside
                status = os.stat(inside, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode) and self._is_directory(below):
                    self.directory(fd, inside, below)
                elif self._stays(below, status):
                    self.kept.add(below)
                else:
                    remove(fd, inside, self._spare, stop=self._stop)

    def _is_directory(self, path: bytes) -> bool:
        wanted = self._manifest.get(path)
        return wanted is not None and wanted.entry.type is FileType.DIRECTORY

    def _stays(self, path: bytes, status: os.stat_result) -> bool:
        wanted = self._manifest.get(path)
        if wanted is None or status.st_nlink != 1 or wanted.entry.link or path in self._linked:
            return False
        known = self._index.trusted(path, status)
        return known is not None and known.item.entry == wanted.entry
