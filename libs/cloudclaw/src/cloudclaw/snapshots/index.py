"""The index of a tree: what each file held when it was last read, so that an unchanged one costs one `lstat`.

It lies on disk beside the tree, `index/{uid}` beneath the trees' directory while the tree is live, and goes with it
onto the shelf and back. It holds the inode's facts of each file and symlink, and where their content is stored.

**When a file counts as unchanged.** Inode number, ctime, size, mtime and mode are the same as recorded. All of these
but the ctime can be set by a task; the ctime cannot, and whatever changes a file changes it. That alone would miss a
change made right after the file was read: the kernel takes file times from a clock that steps once a tick (up to
10 ms), so two changes within one step leave the same ctime. Therefore a file is trusted only when its ctime lies more
than `SLACK_NS` before the moment from which on its content was read: a change after that moment has a later ctime. A
ctime in the future (a clock that was set back) is never trusted, by the same comparison. A file that is not trusted is
read again; what is known of its content still saves storing it.

Stores through a shared mapping show in the ctime when a clean page is first written, not at each store, so a file
that is mapped shared by a process which lives on is entered without trust. (On a tmpfs, where pages never become
clean, a map that was given up between a checkpoint's two looks can hide a store from it: trees belong on a disk.)

Wrong facts can only cost time: content is believed for the exact inode facts alone, and within one boot of the
machine (nothing is synced to disk).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import structlog

from cloudclaw.ids import new_id
from cloudclaw.snapshots.manifest import Blob, Item

SLACK_NS: Final = 50_000_000
"""Several ticks of the coarsest clock that file times come from."""

VERSION: Final = 1

_log = structlog.get_logger()


class Seen(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One path, and the facts under which `item` is still what it holds.

    Attributes:
        ino: inode number; 0 when the facts are not to be trusted.
        ctime_ns: the inode's change time.
        item: what the path held. Of another name of a file (`FileEntry.link`), that file's content.
    """

    ino: int
    ctime_ns: int
    item: Item


class _Stored(msgspec.Struct, array_like=True):
    version: int
    boot: str
    base: str
    snapshot: str
    seen: list[Seen]


_DECODER: Final = msgspec.msgpack.Decoder(_Stored)
_ENCODER: Final = msgspec.msgpack.Encoder()


def index_path(trees: Path, uid: str) -> Path:
    """Where the index of the live tree `uid` lies; `trees` is the directory of all trees."""
    return trees / "index" / uid


def mtime_of(status: os.stat_result) -> int:
    """The modification time as a manifest has it: within 64 bits."""
    return max(-_MTIME, min(_MTIME, status.st_mtime_ns))


_MTIME: Final = (1 << 63) - 1


def trusted(status: os.stat_result, read_ns: int) -> bool:
    """Whether these facts will tell a later change (see above): `status` taken, and content read, after `read_ns`."""
    return status.st_ctime_ns + SLACK_NS < read_ns


class Index:
    """What is known of one tree's files and symlinks, by path. For one thread at a time.

    Attributes:
        base: digest of the manifest that the tree was made of; empty for none.
        snapshot: digest of the manifest of the tree's latest snapshot; that of the base when there is none yet.
            All blobs are of these two, or in packs of the tree's own uid.
        seen: by path.
    """

    def __init__(self, *, base: str = "", snapshot: str = "") -> None:
        self.base = base
        self.snapshot = snapshot or base
        self.seen: dict[bytes, Seen] = {}

    def add(self, item: Item, status: os.stat_result, read_ns: int) -> None:
        """Enter a file or a symlink.

        `status`: its `lstat` or `fstat`, taken after `read_ns`. `read_ns`: nanoseconds of `CLOCK_REALTIME` at which
        reading its content began; of a tree that nobody else may write to yet (a restore), any moment up to which
        that holds.
        """
        ino = status.st_ino if trusted(status, read_ns) else 0
        self.seen[item.entry.path] = Seen(ino, status.st_ctime_ns, item)

    def trusted(self, path: bytes, status: os.stat_result) -> Seen | None:
        """What `path` holds, when it is unchanged; `status` is its `lstat`."""
        seen = self.seen.get(path)
        if seen is None or seen.ino != status.st_ino or seen.ctime_ns != status.st_ctime_ns:
            return None
        entry = seen.item.entry
        if entry.mtime_ns != status.st_mtime_ns and entry.mtime_ns != mtime_of(status):
            return None
        same = entry.target or (entry.size == status.st_size and entry.mode == status.st_mode & 0o777)
        return seen if same else None

    def blobs(self) -> Iterator[Blob]:
        """All stored content, some of it more than once."""
        for seen in self.seen.values():
            yield from seen.item.blobs

    @classmethod
    def load(cls, path: Path) -> Index | None:
        """The index at `path`; None when there is none, or none that can be believed."""
        try:
            stored = _DECODER.decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, ValueError) as error:
            _log.warning(
                "an index of a tree cannot be read; its files are read again", path=str(path), error=str(error)
            )
            return None
        if stored.version != VERSION or stored.boot != _boot():
            return None
        index = cls(base=stored.base, snapshot=stored.snapshot)
        index.seen = {seen.item.entry.path: seen for seen in stored.seen}
        return index

    def save(self, path: Path) -> None:
        """Replace the index at `path` at once. Raises `OSError`."""
        stored = _Stored(VERSION, _boot(), self.base, self.snapshot, list(self.seen.values()))
        path.parent.mkdir(mode=0o700, exist_ok=True)
        draft = path.parent / new_id(".new")
        try:
            draft.write_bytes(_ENCODER.encode(stored))
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
