"""The `WorkspaceManager` port: file trees out of snapshots, and snapshots out of file trees.

Used by the pool-manager (checkout before an attempt, snapshot after it) and by the workspace service (a user's
files and archives). It stores bytes; which snapshot is a workspace's head is coordination's business.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
    """

    path: bytes
    type: FileType
    size: int = 0
    mode: int = 0o644
    mtime_ns: int = 0
    digest: str = ""
    target: bytes = b""


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
    """A checked-out tree on this host; `path` holds `workspace` and `home`."""

    path: Path
    base: SnapshotPointer | None
    uid: str


@dataclass(frozen=True, slots=True)
class SnapshotResult:
    """A stored snapshot and what changed against the tree's base (workspace files only)."""

    pointer: SnapshotPointer
    changes: Sequence[Change] = field(default_factory=tuple)
    stored_bytes: int = 0


class WorkspaceManager(Protocol):
    """Checks trees out, and takes snapshots of them.

    Errors: `DataLossError` (a blob or manifest is missing or altered; named), `QuotaExceededError` (limits;
    the path named), `InvalidArgumentError(field="path")` (what a snapshot refuses: devices, sockets, FIFOs,
    over-long names; the path named), `UnavailableError` (object store out of reach).
    """

    async def checkout(self, tenant: str, base: SnapshotPointer | None, uid: str) -> Tree:
        """A private, writable tree with the content of `base` (empty without), named by the attempt's `uid`.

        An existing tree of that uid is left by a crash and is removed first. Files belong to the configured
        files uid. A cached tree of exactly (tenant, base) is renamed away instead of restored (rule 11).
        """
        ...

    async def reopen(self, tenant: str, base: SnapshotPointer | None, uid: str) -> Tree | None:
        """The tree of a running attempt after a manager's restart, as it is; None when it is not there."""
        ...

    async def snapshot(self, tenant: str, tree: Tree, snapshot_id: str) -> SnapshotResult:
        """Store the tree as `snapshot_id`; its parent is the tree's base. No process may be writing to it.

        Complete in the object store when this returns, and visible to nobody until a guarded transaction
        writes the pointer (rule 8). Objects are named by content or by the tree's uid.
        """
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
