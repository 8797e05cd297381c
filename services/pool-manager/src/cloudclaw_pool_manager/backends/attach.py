"""Attaching an attempt's tree to a slot as root: idmapped mounts that arrive in the running sandbox."""

from __future__ import annotations

import os
from pathlib import Path

from cloudclaw_pool_manager.backends import mounts

# (name in the tree, place in the sandbox)
PLACES = (("workspace", "workspace"), ("home", "home/agent"))

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class MountedTrees:
    """Mounts trees below one slot's `box`, one tree at a time.

    The tree's contents are a tenant's, so nothing in it is followed: `workspace` and `home` are opened
    as directories that are no symlinks, and the mount is made of these very descriptors.

    Args:
        box: the slot's skeleton; lies on a shared mount.
        files_uid: owner of the files on disk.
        slot_uid: owner as the slot sees them.
    """

    def __init__(self, box: Path, files_uid: int, slot_uid: int):
        self._box = box
        self._files_uid = files_uid
        self._slot_uid = slot_uid
        self._mapping = -1

    def attach(self, tree: Path) -> None:
        """Mount `tree`; all of it or, after an error, nothing.

        Raises:
            OSError: a directory is missing or is none, or the file system has no idmapped mounts.
        """
        if self._mapping < 0:
            self._mapping = mounts.owner_mapping(self._files_uid, self._slot_uid)
        top = os.open(tree, _DIRECTORY)
        try:
            for name, place in PLACES:
                self._attach_one(top, name, self._box / place)
        except OSError:
            self.detach()
            raise
        finally:
            os.close(top)

    def detach(self) -> None:
        """Take the tree away; harmless without one. Call it after the sandbox's end (trap: an open
        working directory still reaches a tree that was detached before).

        Raises:
            OSError: something is still mounted afterwards.
        """
        left: list[str] = []
        for _, place in PLACES:
            mounts.detach_all(self._box / place)
            # Only the empty directory of the skeleton may be there now.
            if os.listdir(self._box / place):
                left.append(str(self._box / place))
        if left:
            raise OSError(f"still attached: {left}")

    def close(self) -> None:
        """Drop the namespace that holds the mapping."""
        if self._mapping >= 0:
            os.close(self._mapping)
            self._mapping = -1

    def _attach_one(self, top: int, name: str, target: Path) -> None:
        source = os.open(name, _DIRECTORY, dir_fd=top)
        try:
            clone = mounts.clone_mapped(source, self._mapping)
        finally:
            os.close(source)
        try:
            place = os.open(target, _DIRECTORY)
            try:
                mounts.move(clone, place)
            finally:
                os.close(place)
        finally:
            os.close(clone)
