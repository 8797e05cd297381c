"""Trees for tests: what is in one, and archives that nobody's tar would write."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from cloudclaw.clock import SystemClock
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.objects.port import ObjectStore
from cloudclaw.snapshots.engine import SnapshotEngine
from cloudclaw.snapshots.owner import acting_as
from cloudclaw.snapshots.port import TreeLimits

T = TypeVar("T")

TENANT = "acme"
OUTSIDER = 54321
"""A uid without any right, for what root would be let through."""


class Facts(NamedTuple):
    """What there is to know of one path."""

    type: int
    mode: int
    mtime_ns: int
    content: bytes


def facts(tree: Path, *, times: bool = True) -> dict[bytes, Facts]:
    """Everything below `workspace` and `home` of a tree, by path."""
    found: dict[bytes, Facts] = {}
    for top in (b"workspace", b"home"):
        root = os.fsencode(tree) + b"/" + top
        for at, directories, files in os.walk(root):
            for name in [b"", *files, *(d for d in directories if os.path.islink(os.path.join(at, d)))]:
                path = os.path.join(at, name) if name else at
                found[os.path.relpath(path, os.fsencode(tree))] = _facts(path, times)
    return found


def _facts(path: bytes, times: bool) -> Facts:
    status = os.lstat(path)
    content = b""
    if stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            content = file.read()
    mode = 0o777 if stat.S_ISLNK(status.st_mode) else stat.S_IMODE(status.st_mode)
    return Facts(stat.S_IFMT(status.st_mode), mode, status.st_mtime_ns if times else 0, content)


def engine(
    folder: Path,
    store: ObjectStore | None = None,
    *,
    limits: TreeLimits | None = None,
    cache_bytes: int = 1 << 30,
    files_uid: int | None = None,
) -> SnapshotEngine:
    """An engine over `store` (default: memory), with its trees in `folder`."""
    return SnapshotEngine(
        store if store is not None else MemoryObjects(),
        folder / "trees",
        SystemClock(),
        limits=limits,
        cache_bytes=cache_bytes,
        files_uid=files_uid,
    )


def without_rights(work: Callable[[], T]) -> T:
    """Do `work` as a user whom modes stop, even when the tests run as root."""
    with acting_as(OUTSIDER if os.geteuid() == 0 else None):
        return work()


def paths_beneath(folder: Path) -> Iterator[Path]:
    """All paths below a folder in which others are at work: what goes meanwhile is left out, other errors are raised.

    (`Path.rglob` raises when a directory goes between its being listed and its being read.)
    """

    def unless_gone(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for at, directories, files in os.walk(folder, onerror=unless_gone):
        yield from (Path(at, name) for name in [*directories, *files])


def give_away(folder: Path) -> None:
    """Make `folder` and all in it belong to whom `without_rights` acts as."""
    if os.geteuid() == 0:
        for at, directories, files in os.walk(folder):
            for path in (at, *(os.path.join(at, name) for name in [*directories, *files])):
                os.chown(path, OUTSIDER, OUTSIDER, follow_symlinks=False)


async def in_thread(work: Callable[[], T]) -> T:
    """`work` off the loop, so that a test that waits for it can time out."""
    return await asyncio.to_thread(work)


def tar_header(
    name: bytes,
    flag: bytes = b"0",
    size: int = 0,
    *,
    link: bytes = b"",
    mode: int = 0o644,
    size_field: bytes | None = None,
    mtime: int = 1_700_000_000,
) -> bytes:
    """One raw tar header with a right checksum, whatever it says."""
    block = bytearray(512)
    block[0:100] = name[:100].ljust(100, b"\0")
    block[100:124] = b"%07o\0%07o\0%07o\0" % (mode, 0, 0)
    block[124:136] = size_field if size_field is not None else b"%011o\0" % size
    block[136:148] = b"%011o\0" % mtime
    block[148:156] = b" " * 8
    block[156:157] = flag
    block[157:257] = link[:100].ljust(100, b"\0")
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def tar_member(name: bytes, content: bytes = b"", flag: bytes = b"0", **fields: object) -> bytes:
    """A raw member: header, content, padding."""
    return tar_header(name, flag, len(content), **fields) + content + bytes(-len(content) % 512)  # type: ignore[arg-type]


def pax(records: dict[bytes, bytes], flag: bytes = b"x") -> bytes:
    """A raw pax header with `records`."""
    body = b""
    for key, value in records.items():
        length = len(key) + len(value) + 3
        while length != len(b"%d %s=%s\n" % (length, key, value)):
            length = len(b"%d %s=%s\n" % (length, key, value))
        body += b"%d %s=%s\n" % (length, key, value)
    return tar_member(b"pax", body, flag)


TAR_END = bytes(1024)
