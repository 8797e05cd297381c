"""Where a host keeps its trees: those in use, and those ready for whoever comes back (design §5 rule 11).

    live/{uid}                                                  a tree that an attempt or operation owns
    ready/{boot}/{tenant}@{snapshot}@{parent}@{digest}@{bytes}  exactly the content of that snapshot
    index/{uid}, index/{tenant}@{snapshot}@…                    what is known of a live or a ready tree (`index.py`)
    trash/{id}                                                  on its way out

A tree changes its state by one rename, so a crash leaves each in one of the three. Its index follows by another
rename, and whatever index lay there before is removed first: a crash in between costs the index, and so time, but no
tree ever meets the index of another.

**What is believed of a ready tree.** It was scanned when no process was left in it, its snapshot was committed, and
since then it lay in a directory that is closed to all but this service (0700), under a name that says which snapshot
it is. Its content is not read again: that would cost as much as restoring it. So a disk that altered it since would
not be noticed here, as with any file of the host; the store's copy is checked on every restore. It is believed only
within one boot of the machine, because nothing of it was synced: after a power cut files may be there without content.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination.records import SnapshotPointer
from cloudclaw.errors import InvalidArgumentError
from cloudclaw.ids import new_id
from cloudclaw.snapshots.index import index_path
from cloudclaw.snapshots.port import HOME, WORKSPACE
from cloudclaw.snapshots.spread import spread

_log = structlog.get_logger()
_UID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")

UNUSED: Final = 7 * 86400.0
"""Seconds after which a ready tree that nobody wanted goes."""
_LONGEST: Final = 255
_MOST: Final = 4096
"""Ready trees at once, however small: each costs inodes."""


def check_uid(value: str, field: str) -> str:
    """`value` when it may name a directory and an object; else `InvalidArgumentError`."""
    if not _UID.fullmatch(value) or ".." in value:
        raise InvalidArgumentError(f"not an id: {value[:80]!r}", field=field)
    return value


def check_digest(value: str) -> str:
    """`value` when it is a hex SHA-256."""
    if not _DIGEST.fullmatch(value):
        raise InvalidArgumentError(f"not a digest: {value[:80]!r}", field="manifest")
    return value


@dataclass(frozen=True, slots=True)
class Ready:
    """A tree that lies ready; `since` in seconds since the epoch, `bytes` of content."""

    tenant: str
    snapshot: str
    parent: str
    manifest: str
    bytes: int
    since: float

    @property
    def name(self) -> str:
        return f"{self.tenant}@{self.snapshot}@{self.parent}@{self.manifest}@{self.bytes}"


class Shelf:
    """The directories beneath `root`, and which trees lie ready, least recently used first.

    At most `capacity` bytes of content lie ready. Nothing is removed here: trees are moved to `trash`, and the calls
    that do so answer the names they have there, for the caller to remove. Every call is a few renames; all may come
    from several threads.
    """

    def __init__(self, root: Path, capacity: int, clock: Clock) -> None:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        self._root = root
        self._live = root / "live"
        self._old = root / "ready"
        self._ready_dir = self._old / boot
        self._indexes = root / "index"
        self.trash = root / "trash"
        self._capacity = capacity
        self._clock = clock
        self._bytes = 0
        self._ready: OrderedDict[tuple[str, str], Ready] = OrderedDict()
        self._lock = threading.Lock()
        for path in (root, self._live, self._old, self._ready_dir, self._indexes, self.trash):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        spread(self._live)
        self._load()

    def live(self, uid: str) -> Path:
        """Where the tree of `uid` is, or would be."""
        return self._live / check_uid(uid, "uid")

    def index(self, uid: str) -> Path:
        """Where the index of the live tree of `uid` is, or would be."""
        return index_path(self._root, check_uid(uid, "uid"))

    def cached(self) -> list[tuple[str, str]]:
        """(tenant, snapshot) of what lies ready."""
        with self._lock:
            return list(self._ready)

    def take(self, tenant: str, base: SnapshotPointer, uid: str) -> bool:
        """Make the ready tree of exactly (tenant, base) the live one of `uid`, with its index; whether there was one.

        No other is ever answered: another snapshot's tree, or another tenant's, is another entry.
        """
        with self._lock:
            ready = self._ready.get((tenant, base.id))
            if ready is None or ready.manifest != base.manifest:
                return False
            self._forget(ready)
        return self._take(ready, uid)

    def take_near(self, tenant: str, base: SnapshotPointer, uid: str) -> bool:
        """Make the ready tree of `base`'s parent, of a child, or of another child of that parent the live one of
        `uid`; whether there was one. It has other content than `base`, much of it probably the same (`renew.py`)."""
        family = {base.id, base.parent} - {""}
        with self._lock:
            for ready in reversed(self._ready.values()):
                if ready.tenant == tenant and family & {ready.snapshot, ready.parent}:
                    self._forget(ready)
                    break
            else:
                return False
        return self._take(ready, uid)

    def put(self, tenant: str, pointer: SnapshotPointer, uid: str, size: int) -> list[bytes]:
        """The live tree of `uid` is exactly `pointer`: let it lie ready. Throws out what is over the limits."""
        now = self._clock.wall()
        ready = Ready(tenant, pointer.id, pointer.parent, check_digest(pointer.manifest), size, now)
        with self._lock:
            too_much = size > self._capacity or len(ready.name) > _LONGEST
            if too_much or (tenant, pointer.id) in self._ready:
                return self._throw_live(uid)
            live = self.live(uid)
            os.utime(live, (now, now))
            self._drop_index(ready.name)
            os.rename(live, self._ready_dir / ready.name)
            self._move_index(uid, ready.name)
            return self._remember(ready)

    def discard(self, uid: str) -> list[bytes]:
        """Throw out the live tree of `uid`, if there is one. One that is empty is gone at once."""
        if _remove_empty(self.live(uid)):
            self._drop_index(uid)
            return []
        return self._throw_live(uid)

    def forget(self, tenant: str) -> list[bytes]:
        """Throw out all ready trees of a tenant."""
        with self._lock:
            return self._throw_ready([ready for ready in self._ready.values() if ready.tenant == tenant])

    def sweep(self, live: set[str]) -> list[bytes]:
        """Throw out what is neither ready in this boot nor live, and what lay ready unused for a week; answers all
        that is in the trash."""
        with self._lock:
            self._throw_ready(self._unused())
            for path in self._old.iterdir():
                if path != self._ready_dir:
                    self._throw(path)
            for path in self._live.iterdir():
                if path.name not in live:
                    self._throw(path)
            wanted = live | {ready.name for ready in self._ready.values()}
            for path in self._indexes.iterdir():
                if path.name not in wanted:
                    path.unlink(missing_ok=True)
            return [os.fsencode(path.name) for path in self.trash.iterdir()]

    def _load(self) -> None:
        found = [(path.lstat().st_mtime, path) for path in self._ready_dir.iterdir()]
        for since, path in sorted(found):
            parts = path.name.split("@")
            if len(parts) == 5 and _DIGEST.fullmatch(parts[3]) and parts[4].isdigit():
                self._remember(Ready(parts[0], parts[1], parts[2], parts[3], int(parts[4]), since))
            else:
                self._throw(path)

    def _take(self, ready: Ready, uid: str) -> bool:
        self._drop_index(uid)
        try:
            os.rename(self._ready_dir / ready.name, self.live(uid))
        except FileNotFoundError:
            _log.warning("a ready tree was not where it should be", tenant=ready.tenant, snapshot=ready.snapshot)
            return False
        self._move_index(ready.name, uid)
        return True

    def _remember(self, ready: Ready) -> list[bytes]:
        self._ready[ready.tenant, ready.snapshot] = ready
        self._bytes += ready.bytes
        thrown = self._throw_ready(self._unused())
        while self._bytes > self._capacity or len(self._ready) > _MOST:
            thrown += self._throw_ready([next(iter(self._ready.values()))])
        return thrown

    def _unused(self) -> list[Ready]:
        # A clock that was set back makes trees look new; they go when it has caught up, or for room.
        now = self._clock.wall()
        return list(itertools.takewhile(lambda ready: now - ready.since > UNUSED, self._ready.values()))

    def _forget(self, ready: Ready) -> None:
        del self._ready[ready.tenant, ready.snapshot]
        self._bytes -= ready.bytes

    def _throw_ready(self, chosen: Iterable[Ready]) -> list[bytes]:
        thrown: list[bytes] = []
        for ready in chosen:
            self._forget(ready)
            self._drop_index(ready.name)
            thrown += self._throw(self._ready_dir / ready.name)
        return thrown

    def _throw_live(self, uid: str) -> list[bytes]:
        thrown = self._throw(self.live(uid))
        self._drop_index(uid)
        return thrown

    def _throw(self, path: Path) -> list[bytes]:
        name = new_id("tree")
        try:
            os.rename(path, self.trash / name)
        except FileNotFoundError:
            return []
        return [name.encode()]

    def _drop_index(self, name: str) -> None:
        index_path(self._root, name).unlink(missing_ok=True)

    def _move_index(self, name: str, new: str) -> None:
        try:
            os.rename(index_path(self._root, name), index_path(self._root, new))
        except FileNotFoundError:
            return  # a tree without one: its files are read again


def _remove_empty(tree: Path) -> bool:
    """Remove a tree in which nothing was left, as most short tasks leave theirs; whether it was one."""
    try:
        for top in (WORKSPACE, HOME):
            os.rmdir(tree / top)
        os.rmdir(tree)
    except OSError:
        return False  # there is something in it, or nothing of it: it goes the long way
    return True
