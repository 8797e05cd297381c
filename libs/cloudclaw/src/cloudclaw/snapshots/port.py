"""The `WorkspaceManager` port: file trees out of snapshots, and snapshots out of file trees.

Used by the pool-manager (checkout before an attempt, snapshot after it) and by the workspace service (a user's
files and archives). It stores bytes; which snapshot is a workspace's head is coordination's business.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import EllipsisType
from typing import Protocol

from cloudclaw.coordination.records import SnapshotPointer

WORKSPACE = "workspace"
HOME = "home"
"""The two top directories of every tree: `/workspace` and `/home/agent` of a sandbox."""


class FileType(enum.StrEnum):
    """What a manifest can hold. Devices, sockets and FIFOs are refused."""

    REGULAR = "file"
    DIRECTORY = "dir"
    SYMLINK = "link"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One path of a snapshot.

    Attributes:
        path: bytes relative to the tree, `/`-separated, beginning with `workspace` or `home`.
        type: what it is.
        size: bytes of a regular file.
        mode: permission bits (0o777 at most: setuid, setgid and sticky are dropped).
        mtime_ns: modification time.
        digest: hex SHA-256 of a regular file.
        target: where a symlink points, as it stands.
        link: of a hard link, the path of this tree whose file it is another name of: the first by path among its
            names. Size, mode, time and digest are that file's.
        sparse: the file had holes; a restored one has them again where whole blocks are zero.
    """

    path: bytes
    type: FileType
    size: int = 0
    mode: int = 0o644
    mtime_ns: int = 0
    digest: str = ""
    target: bytes = b""
    link: bytes = b""
    sparse: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """One path that differs between two snapshots; a size is None where the path is absent."""

    path: bytes
    old_size: int | None
    new_size: int | None


@dataclass(frozen=True, slots=True)
class TreeLimits:
    """What a tree may hold (design §7). Exceeding one raises `QuotaExceededError` naming the path."""

    file_bytes: int = 256 << 20
    total_bytes: int = 2 << 30
    files: int = 100_000
    path_bytes: int = 4096
    depth: int = 128


@dataclass(frozen=True, slots=True)
class Tree:
    """A checked-out tree on this host; `path` holds `workspace` and `home`.

    Attributes:
        base: what it was made of: the head, or an earlier attempt's checkpoint.
        uid: the attempt's, or the user's operation's.
        head: what its snapshots' changes are told against, and their parent, None for an empty workspace; the same
            as `base` unless that is a checkpoint.
    """

    path: Path
    base: SnapshotPointer | None
    uid: str
    head: SnapshotPointer | None


@dataclass(frozen=True, slots=True)
class SnapshotResult:
    """A stored snapshot and what changed against the tree's head (workspace files only).

    `frozen`: seconds that the tree's processes stood still, of a checkpoint.
    """

    pointer: SnapshotPointer
    changes: Sequence[Change] = field(default_factory=tuple)
    stored_bytes: int = 0
    frozen: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a checkout or a snapshot has come; totals are 0 while unknown."""

    files: int
    bytes: int
    total_files: int = 0
    total_bytes: int = 0


Watcher = Callable[[Progress], None]
"""Told about every half second, from any thread, and once at the end. Must not block or raise."""

Pause = Callable[[], AbstractAsyncContextManager[Collection[int]]]
"""Stops a tree's processes for the time of the block. Its value: inodes of files that they have mapped shared. What is
written through such a map later may not show in the file's times, so these are read again by the next snapshot,
whatever their times say."""


@dataclass(frozen=True, slots=True)
class KeptFile:
    """An artifact: `path` relative to the workspace, stored as the object `{prefix}{digest}` (of its SHA-256)."""

    path: bytes
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Kept:
    """The artifacts of a tree by path, and whether more matched than may be kept."""

    files: Sequence[KeptFile]
    truncated: bool = False


class WorkspaceManager(Protocol):
    """Checks trees out, and takes snapshots of them.

    Errors: `DataLossError` (a blob or manifest is missing or altered; named), `QuotaExceededError` (limits;
    the path named), `InvalidArgumentError(field="path")` (what a snapshot refuses: devices, sockets, FIFOs,
    over-long names; the path named), `UnavailableError` (object store out of reach).
    """

    async def checkout(
        self,
        tenant: str,
        base: SnapshotPointer | None,
        uid: str,
        *,
        head: SnapshotPointer | EllipsisType | None = ...,
        watcher: Watcher | None = None,
    ) -> Tree:
        """A private, writable tree with the content of `base` (empty without), named by the attempt's `uid`.

        `head`: see `Tree`; None is an empty workspace. `base` when omitted.

        An existing tree of that uid is left by a crash and is removed first. Files belong to the configured
        files uid. A cached tree of exactly (tenant, base) is renamed away instead of restored (rule 11).
        """
        ...

    async def reopen(
        self, tenant: str, base: SnapshotPointer | None, uid: str, *, head: SnapshotPointer | EllipsisType | None = ...
    ) -> Tree | None:
        """The tree of a running attempt after a manager's restart, as it is; None when it is not there."""
        ...

    async def snapshot(
        self, tenant: str, tree: Tree, snapshot_id: str, *, watcher: Watcher | None = None
    ) -> SnapshotResult:
        """Store the tree as `snapshot_id`; its parent is the tree's head. No process may be writing to it.

        Complete in the object store when this returns, and visible to nobody until a guarded transaction
        writes the pointer (rule 8). Objects are named by the tree's uid. Content that the base or a checkpoint of this
        tree holds is not stored again. An unchanged tree is not a new version: the head is the answer then.
        """
        ...

    async def checkpoint(
        self, tenant: str, tree: Tree, snapshot_id: str, pause: Pause, *, watcher: Watcher | None = None
    ) -> SnapshotResult:
        """As `snapshot`, of a tree whose processes run: they stand still within `pause` only, for the scan and a copy
        of what changed. Hashing, compressing and uploading come after it. A tree that is as it was at the last
        checkpoint, or as it began, answers that snapshot. Errors leave the processes running, and the
        next call starts afresh. What `pause` raises passes through."""
        ...

    async def collect(self, tenant: str, tree: Tree, patterns: Sequence[str], prefix: str) -> Kept:
        """Store the regular files of the tree's workspace that match one of `patterns` (globs, as `TaskSpec.artifacts`
        says), each as the object `{prefix}{digest}`. No process may be writing to the tree. Symlinks are not followed.
        At most 1000 files, and of bytes what a tree may hold; more sets `truncated`."""
        ...

    async def release(self, tenant: str, tree: Tree, committed: SnapshotPointer | None) -> None:
        """The attempt is over. With the snapshot that was just committed from it the tree may be cached,
        otherwise it is removed. The hostile content is removed without following anything."""
        ...

    async def sweep(self, live: set[str]) -> None:
        """At start: remove every tree that is neither cached nor of a uid in `live` (rule 11)."""
        ...

    async def manifest(self, tenant: str, pointer: SnapshotPointer) -> Sequence[FileEntry]:
        """All entries of a snapshot, by path."""
        ...

    async def diff(self, tenant: str, old: SnapshotPointer | None, new: SnapshotPointer) -> Sequence[Change]:
        """What differs between two snapshots, workspace files only, by path without the `workspace/` prefix."""
        ...

    def read(
        self, tenant: str, pointer: SnapshotPointer, path: bytes, *, offset: int = 0, length: int = 0
    ) -> AsyncIterator[bytes]:
        """One regular file's bytes in chunks of at most 256 KiB; `length` 0 means all the rest.

        `NotFoundError`; `PreconditionError` when it is not a regular file; `OutOfRangeError`.
        """
        ...

    def cached(self) -> Sequence[tuple[str, str]]:
        """(tenant, snapshot id) of the trees that this host holds ready."""
        ...

    async def forget(self, tenant: str) -> None:
        """Remove the trees of a tenant that lie ready here."""
        ...
