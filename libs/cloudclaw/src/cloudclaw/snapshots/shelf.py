"""Where a host keeps its trees: those in use, and those ready for whoever comes back (design §5 rule 11).

    live/{uid}                                       a tree that an attempt or operation owns
    ready/{boot}/{tenant}@{snapshot}@{digest}@{bytes}  exactly the content of that snapshot
    trash/{id}                                       on its way out

A tree changes its state by one rename, so a crash leaves each in one of the three. What lies ready is believed only
within one boot of the machine: nothing was synced to disk.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from cloudclaw.coordination.records import SnapshotPointer
from cloudclaw.errors import InvalidArgumentError
from cloudclaw.ids import new_id

_log = structlog.get_logger()
_UID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


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
    """A tree that lies ready."""

    tenant: str
    snapshot: str
    manifest: str
    bytes: int

    @property
    def name(self) -> str:
        return f"{self.tenant}@{self.snapshot}@{self.manifest}@{self.bytes}"


class Shelf:
    """The directories beneath `root`, and which trees lie ready, least recently used first.

    Nothing is removed here: trees are moved to `trash`, and the calls that do so answer the names they have there,
    for the caller to remove. Every call is a few renames; all may come from several threads.
    """

    def __init__(self, root: Path, capacity: int) -> None:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        self._live = root / "live"
        self._old = root / "ready"
        self._ready_dir = self._old / boot
        self.trash = root / "trash"
        self._capacity = capacity
        self._bytes = 0
        self._ready: OrderedDict[tuple[str, str], Ready] = OrderedDict()
        self._lock = threading.Lock()
        for path in (root, self._live, self._old, self._ready_dir, self.trash):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._load()

    def live(self, uid: str) -> Path:
        """Where the tree of `uid` is, or would be."""
        return self._live / check_uid(uid, "uid")

    def cached(self) -> list[tuple[str, str]]:
        """(tenant, snapshot) of what lies ready."""
        with self._lock:
            return list(self._ready)

    def take(self, tenant: str, base: SnapshotPointer, uid: str) -> bool:
        """Make the ready tree of exactly (tenant, base) the live one of `uid`; whether there was one."""
        with self._lock:
            ready = self._ready.get((tenant, base.id))
            if ready is None or ready.manifest != base.manifest:
                return False
            self._forget(ready)
        try:
            os.rename(self._ready_dir / ready.name, self.live(uid))
        except FileNotFoundError:
            _log.warning("a ready tree was not where it should be", tenant=tenant, snapshot=base.id)
            return False
        return True

    def put(self, tenant: str, pointer: SnapshotPointer, uid: str, size: int) -> list[bytes]:
        """The live tree of `uid` is exactly `pointer`: let it lie ready. Throws out what is over capacity."""
        ready = Ready(tenant, pointer.id, check_digest(pointer.manifest), size)
        with self._lock:
            if size > self._capacity or (tenant, pointer.id) in self._ready:
                return self._throw(self.live(uid))
            live = self.live(uid)
            os.utime(live)
            os.rename(live, self._ready_dir / ready.name)
            return self._remember(ready)

    def discard(self, uid: str) -> list[bytes]:
        """Throw out the live tree of `uid`, if there is one."""
        return self._throw(self.live(uid))

    def sweep(self, live: set[str]) -> list[bytes]:
        """Throw out what is neither ready in this boot nor live; answers all that is in the trash."""
        for path in self._old.iterdir():
            if path != self._ready_dir:
                self._throw(path)
        for path in self._live.iterdir():
            if path.name not in live:
                self._throw(path)
        return [os.fsencode(path.name) for path in self.trash.iterdir()]

    def _load(self) -> None:
        found = sorted(self._ready_dir.iterdir(), key=lambda path: path.lstat().st_mtime_ns)
        for path in found:
            parts = path.name.split("@")
            if len(parts) == 4 and _DIGEST.fullmatch(parts[2]) and parts[3].isdigit():
                self._remember(Ready(parts[0], parts[1], parts[2], int(parts[3])))
            else:
                self._throw(path)

    def _remember(self, ready: Ready) -> list[bytes]:
        thrown: list[bytes] = []
        self._ready[ready.tenant, ready.snapshot] = ready
        self._bytes += ready.bytes
        while self._bytes > self._capacity:
            oldest = next(iter(self._ready.values()))
            self._forget(oldest)
            thrown += self._throw(self._ready_dir / oldest.name)
        return thrown

    def _forget(self, ready: Ready) -> None:
        del self._ready[ready.tenant, ready.snapshot]
        self._bytes -= ready.bytes

    def _throw(self, path: Path) -> list[bytes]:
        name = new_id("tree")
        try:
            os.rename(path, self.trash / name)
        except FileNotFoundError:
            return []
        return [name.encode()]
