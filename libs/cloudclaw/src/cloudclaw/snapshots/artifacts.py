"""Keeping single files of a tree beside its snapshots: artifacts."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from cloudclaw.errors import InvalidArgumentError
from cloudclaw.objects.port import ObjectStore
from cloudclaw.snapshots import safe
from cloudclaw.snapshots.globs import Globs, States
from cloudclaw.snapshots.port import HOME, WORKSPACE, Kept, KeptFile, Tree, TreeLimits
from cloudclaw.snapshots.restore import open_tree
from cloudclaw.snapshots.threads import Stopped, TreeThreads

MOST: Final = 1000
"""Artifacts of one tree."""
_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Found:
    path: bytes
    ino: int
    size: int
    names: int


async def collect(
    store: ObjectStore, threads: TreeThreads, limits: TreeLimits, tree: Tree, patterns: Sequence[str], prefix: str
) -> Kept:
    """As `WorkspaceManager.collect`. Of more than `MOST` files the first by path are kept.

    Raises `InvalidArgumentError(field="path")` for a file that has a name outside of the tree, as a snapshot does: it
    is not the task's alone, and none of it is read.
    """
    globs = Globs(patterns)

    def find(stop: threading.Event) -> tuple[list[_Found], bool]:
        with safe.closing(open_tree(tree.path)) as root:
            walk = _Walk(globs, limits, stop)
            walk.directory(root, WORKSPACE.encode(), b"", globs.start(), 0)
            _check_names(root, walk.found, limits, stop)
            return walk.found, walk.truncated

    found, truncated = await threads.run(find) if patterns else ([], False)
    kept: list[KeptFile] = []
    stored: set[str] = set()
    for file in found:
        digest = await threads.run(lambda stop, file=file: _digest(tree, file, stop))  # type: ignore[misc]
        if digest not in stored:
            size = await store.put_stream(f"{prefix}{digest}", _content(threads, tree, file, digest))
            if size != file.size:
                raise _changed(file)
            stored.add(digest)
        kept.append(KeptFile(file.path, file.size, digest))
    return Kept(kept, truncated)


class _Walk:
    """Finds what matches, by path, as far as may be kept."""

    def __init__(self, globs: Globs, limits: TreeLimits, stop: threading.Event) -> None:
        self._globs = globs
        self._limits = limits
        self._stop = stop
        self._entries = 0
        self._bytes = 0
        self.found: list[_Found] = []
        self.truncated = False

    def directory(self, parent: int, name: bytes, path: bytes, states: tuple[States, ...], depth: int) -> None:
        fd, bits = safe.open_directory(parent, name, path=path or name)
        try:
            inside = []
            for entry in safe.names(fd):
                self._entries += 1
                if self._entries > self._limits.files:
                    self.truncated = True
                    break
                inside.append(os.fsencode(entry.name))
            for child in sorted(inside):
                if self._stop.is_set():
                    raise Stopped
                after = self._globs.step(states, child)
                if any(after):
                    self._child(fd, child, path + b"/" + child if path else child, after, depth + 1)
        finally:
            if bits & stat.S_IRWXU != stat.S_IRWXU:
                os.fchmod(fd, bits)
            os.close(fd)

    def _child(self, fd: int, name: bytes, path: bytes, states: tuple[States, ...], depth: int) -> None:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            if depth >= self._limits.depth or len(path) > self._limits.path_bytes:
                self.truncated = True
                return
            self.directory(fd, name, path, states, depth)
        elif stat.S_ISREG(status.st_mode) and self._globs.matched(states):
            size = status.st_size
            full = len(self.found) >= MOST or self._bytes + size > self._limits.total_bytes
            if full or size > self._limits.file_bytes or len(path) > self._limits.path_bytes:
                self.truncated = True
                return
            self._bytes += size
            self.found.append(_Found(path, status.st_ino, size, status.st_nlink))


class _Names:
    """Counts the names in the tree of files that have more than one, as far as a tree may go."""

    def __init__(self, wanted: Collection[int], limits: TreeLimits, stop: threading.Event) -> None:
        self.counts = dict.fromkeys(wanted, 0)
        self._limits = limits
        self._stop = stop
        self._entries = 0

    def directory(self, parent: int, name: bytes, depth: int) -> None:
        fd, bits = safe.open_directory(parent, name)
        try:
            for entry in safe.names(fd):
                if self._stop.is_set():
                    raise Stopped
                self._entries += 1
                if self._entries > self._limits.files:
                    return  # what was not seen counts as outside
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode) and depth < self._limits.depth:
                    self.directory(fd, os.fsencode(entry.name), depth + 1)
                elif status.st_ino in self.counts and stat.S_ISREG(status.st_mode):
                    self.counts[status.st_ino] += 1
        finally:
            if bits & stat.S_IRWXU != stat.S_IRWXU:
                os.fchmod(fd, bits)
            os.close(fd)


def _check_names(root: int, found: Sequence[_Found], limits: TreeLimits, stop: threading.Event) -> None:
    """Refuse a file some of whose names are outside of the tree."""
    linked = [file for file in found if file.names > 1]
    if not linked:
        return
    names = _Names([file.ino for file in linked], limits, stop)
    for top in (WORKSPACE.encode(), HOME.encode()):
        names.directory(root, top, 0)
    for file in linked:
        outside = file.names - names.counts[file.ino]
        if outside:
            safe.refuse(
                file.path,
                f"is one of {file.names} names of a file, {outside} of them outside of the tree: hard links across"
                " the boundary are refused",
            )


def _open(tree: Tree, file: _Found) -> int:
    """The file that was found, which must still be that one."""
    path = WORKSPACE.encode() + b"/" + file.path
    try:
        with safe.closing(open_tree(tree.path)) as root, safe.parent_of(root, path) as (parent, name):
            fd = safe.open_regular(parent, name, path=path)
    except OSError as error:
        raise InvalidArgumentError(
            f"{safe.brief(file.path)}: cannot be read: {error.strerror}", field="path"
        ) from error
    status = os.fstat(fd)
    if (status.st_ino, status.st_nlink) != (file.ino, file.names):
        os.close(fd)
        raise _changed(file)
    return fd


def _digest(tree: Tree, file: _Found, stop: threading.Event) -> str:
    whole = hashlib.sha256()
    with safe.closing(_open(tree, file)) as fd:
        at = 0
        while piece := os.pread(fd, min(_PIECE, file.size - at), at):
            if stop.is_set():
                raise Stopped
            whole.update(piece)
            at += len(piece)
    return whole.hexdigest()


async def _content(threads: TreeThreads, tree: Tree, file: _Found, digest: str) -> AsyncIterator[bytes]:
    """The file's bytes, which must be those of `digest`: nothing is stored under a name that is not its content's."""
    whole = hashlib.sha256()
    with ExitStack() as stack:
        fd = await threads.run(lambda _: stack.enter_context(safe.closing(_open(tree, file))))
        at = 0

        def read(_: threading.Event) -> bytes:
            return os.pread(fd, min(_PIECE, file.size - at), at)

        while piece := await threads.run(read):
            whole.update(piece)
            at += len(piece)
            yield piece
    if whole.hexdigest() != digest:
        raise _changed(file)


def _changed(file: _Found) -> InvalidArgumentError:
    return InvalidArgumentError(f"{safe.brief(file.path)}: changed while it was read", field="path")
