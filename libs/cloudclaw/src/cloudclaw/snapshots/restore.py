"""Bringing the content of a manifest into a tree."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloudclaw.clock import Clock
from cloudclaw.errors import DataLossError, NotFoundError, OutOfRangeError
from cloudclaw.objects.port import ObjectStore
from cloudclaw.snapshots import safe
from cloudclaw.snapshots.fill import Seen, Target, fill, finish, lay_out, lost, open_tree
from cloudclaw.snapshots.manifest import Blob, Item, Manifest
from cloudclaw.snapshots.owner import acting_as
from cloudclaw.snapshots.packs import CHUNK, Range, ranges
from cloudclaw.snapshots.port import HOME, WORKSPACE, FileType, Watcher
from cloudclaw.snapshots.progress import Meter, reported
from cloudclaw.snapshots.threads import TreeThreads

__all__ = ["Restoring", "fetch", "make_empty", "open_tree", "restore"]

_FETCHES: Final = 4
"""Ranges in memory at once: some being fetched, some being written."""
_WRITERS: Final = min(4, os.cpu_count() or 1)
_LARGEST_FRAME: Final = 2 * CHUNK
_EMPTY: Final = hashlib.sha256().hexdigest()


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


@dataclass(frozen=True, slots=True)
class Restoring:
    """How to restore, beside what.

    Attributes:
        uid: owner of what is made; None for whoever runs this.
        have: paths that the tree holds already, exactly as the manifest says but for the times of directories.
        seen: see `fill.Seen`; not told about paths in `have`, but for directories.
        watcher: told how far it has come.
    """

    uid: int | None = None
    have: Collection[bytes] = field(default_factory=frozenset)
    seen: Seen = lambda _item, _status: None
    watcher: Watcher | None = None


async def restore(
    store: ObjectStore, threads: TreeThreads, clock: Clock, manifest: Manifest, tree: Path, how: Restoring
) -> None:
    """Fill the tree that `make_empty` made, or one that holds part of the content.

    Directories first, then contents, then links (see `fill`). Fetching, and unpacking and writing, overlap; at most
    four ranges of packs (12 MiB each) are in memory. Every blob is checked against its size and SHA-256
    before any of it is written.

    Raises `DataLossError` naming blob, pack and path, `UnavailableError`; what was written until then stays.
    """
    meter = Meter(manifest.files, manifest.bytes)

    def prepare(stop: threading.Event) -> tuple[dict[Blob, list[Target]], Iterator[Range]]:
        targets = _targets(manifest.items, how.have)
        meter.add(*_done(manifest.items, how.have))
        lay_out(manifest.items, tree, how.uid, how.have, how.seen, stop)
        return targets, iter(ranges(targets))

    async with reported(meter, how.watcher, clock):
        targets, parts = await threads.run(prepare)
        writers = asyncio.Semaphore(_WRITERS)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_FETCHES):
                    group.create_task(_work(store, threads, parts, targets, writers, tree, how, meter))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        await threads.run(lambda stop: finish(manifest.items, tree, how.uid, how.have, how.seen, stop))


async def _work(
    store: ObjectStore,
    threads: TreeThreads,
    parts: Iterator[Range],
    targets: Mapping[Blob, Sequence[Target]],
    writers: asyncio.Semaphore,
    tree: Path,
    how: Restoring,
    meter: Meter,
) -> None:
    """Take one range after the other, until none is left."""
    for part in parts:
        try:
            data = await fetch(store, part.pack, part.offset, part.length)
        except DataLossError as error:
            raise lost(error, targets[part.blobs[0]]) from error
        async with writers:
            await threads.run(
                lambda stop, part=part, data=data: fill(  # type: ignore[misc]
                    part, data, targets, tree, how.uid, how.seen, meter, stop
                )
            )


async def fetch(store: ObjectStore, pack: str, offset: int, length: int) -> bytes:
    """Part of a pack. Raises `DataLossError` naming it when it is not there; a short answer is judged by `unpack`."""
    try:
        return await store.get(pack, offset=offset, length=length)
    except (NotFoundError, OutOfRangeError) as error:
        raise DataLossError(f"pack {pack} is missing or too short at {offset}: {error.message}") from error


def _targets(items: Sequence[Item], have: Collection[bytes]) -> dict[Blob, list[Target]]:
    """Where each blob goes. Raises `DataLossError` for what no snapshot of ours would say."""
    targets: dict[Blob, list[Target]] = {}
    for item in items:
        entry = item.entry
        if entry.type is not FileType.REGULAR or entry.link or entry.path in have:
            continue
        # Of a file in several blobs each blob is checked, and where it belongs is the manifest's word.
        if len(item.blobs) < 2 and entry.digest != (item.blobs[0].digest if item.blobs else _EMPTY):
            raise DataLossError(f"{safe.brief(entry.path)} has another digest than its content")
        offset = 0
        for blob in item.blobs:
            if blob.size > CHUNK or blob.stored > _LARGEST_FRAME:
                raise DataLossError(
                    f"blob {blob.digest} in {blob.pack} at {blob.offset} is larger than any can be;"
                    f" it is part of {safe.brief(entry.path)}"
                )
            targets.setdefault(blob, []).append((item, offset))
            offset += blob.size
        if offset != entry.size:
            raise DataLossError(f"the blobs of {safe.brief(entry.path)} have {offset} bytes instead of {entry.size}")
    return targets


def _done(items: Sequence[Item], have: Collection[bytes]) -> tuple[int, int]:
    """Files and bytes that need no work: those that are there, links and empty files."""
    files = size = 0
    for item in items:
        entry = item.entry
        if entry.type is FileType.REGULAR and (entry.path in have or entry.link or not item.blobs):
            files += 1
            size += 0 if entry.link else entry.size
    return files, size
