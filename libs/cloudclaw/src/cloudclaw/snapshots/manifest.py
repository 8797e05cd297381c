"""Manifests: what a snapshot holds, in a form that any language can read.

The object `tenants/{tenant}/manifests/{uid}/{digest}` is one zstd frame of JSON lines, UTF-8, each ended by a line
feed; `digest` is the hex SHA-256 of the object as stored. The first line is the header:

    {"format": "cloudclaw.manifest", "version": 2, "entries": 3, "files": 1, "bytes": 6, "packs": ["tenants/…"]}

with the number of lines that follow, of regular files among them and the sum of their sizes, and the names of all
packs in use. Then one line for each path, in the order of the paths' bytes, so that a parent precedes its children:

    {"path": "workspace/a.txt", "type": "file", "size": 6, "mode": 420, "mtime_ns": 0, "sha256": "…",
     "blobs": [[0, 512, 19, 6, "…"]]}
    {"path": "workspace/b", "type": "link", "mtime_ns": 0, "target": "a.txt"}

    {"path": "workspace/c.txt", "type": "file", "link": "workspace/a.txt"}

`path`, `target` and `link` have `%XX` for each byte that is not part of valid UTF-8, and `%25` for `%`. `mode` holds
permission bits only. A file's content is its blobs one after another (all but the last of `packs.CHUNK` bytes), each
`[index into packs, offset there, stored bytes, bytes, SHA-256]`; a stored blob is one zstd frame. An empty file has
no blob. A line with `link` is another name of the file at that path, which precedes it, is a file and has no `link`
itself; it says nothing else, and its size counts once. `"sparse": true` marks a file that had holes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec
import zstandard

from cloudclaw.errors import CloudClawError, DataLossError
from cloudclaw.snapshots.port import HOME, WORKSPACE, FileEntry, FileType
from cloudclaw.snapshots.safe import brief, check_path, show

FORMAT: Final = "cloudclaw.manifest"
VERSION: Final = 2
MAX_BYTES: Final = 512 << 20
"""Of a manifest, decompressed: more than 100,000 entries with the longest paths allowed."""

MAX_ENTRIES: Final = 1_000_000
"""Ten times what a tree may hold by default: a decoded entry takes about half a kilobyte of memory."""

_TOPS: Final = (WORKSPACE.encode(), HOME.encode())
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_PACK: Final = re.compile(r"tenants/[A-Za-z0-9._-]+/packs/[A-Za-z0-9._/-]+")
_TARGET: Final = 4095
_LAST_NS: Final = (1 << 63) - 1


class Blob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where up to `packs.CHUNK` bytes of content are stored; `digest` is the hex SHA-256 of the content."""

    pack: str
    offset: int
    stored: int
    size: int
    digest: str


class Item(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One path, and where its content is."""

    entry: FileEntry
    blobs: tuple[Blob, ...] = ()


class Manifest:
    """The decoded content of one snapshot.

    Attributes:
        items: by path.
        files: number of regular files, each name counted.
        bytes: sum of their sizes, each content counted once.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self.items: Sequence[Item] = sorted(items, key=_path)
        self.files = sum(item.entry.type is FileType.REGULAR for item in self.items)
        self.bytes = sum(item.entry.size for item in self.items if not item.entry.link)
        self._by_path: dict[bytes, Item] = {item.entry.path: item for item in self.items}

    def get(self, path: bytes) -> Item | None:
        """The item at `path`."""
        return self._by_path.get(path)

    def blobs(self) -> dict[str, Blob]:
        """All stored content by digest."""
        return {blob.digest: blob for item in self.items for blob in item.blobs}


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    format: str
    version: int
    entries: int
    files: int
    bytes: int
    packs: list[str]


class _Blob(msgspec.Struct, frozen=True, array_like=True):
    pack: int
    offset: int
    stored: int
    size: int
    digest: str


class _Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    path: str
    type: FileType
    size: int = 0
    mode: int = 0
    mtime_ns: int = 0
    sha256: str = ""
    target: str = ""
    blobs: tuple[_Blob, ...] = ()
    link: str = ""
    sparse: bool = False


def _path(item: Item) -> bytes:
    return item.entry.path


def encode(manifest: Manifest) -> tuple[bytes, str]:
    """The object's bytes, and their digest."""
    packs: dict[str, int] = {}
    lines = []
    for item in manifest.items:
        entry = item.entry
        if entry.link:
            lines.append(_Line(path=_escape(entry.path), type=entry.type, link=_escape(entry.link)))
            continue
        blobs = tuple(
            [_Blob(packs.setdefault(b.pack, len(packs)), b.offset, b.stored, b.size, b.digest) for b in item.blobs]
        )
        lines.append(
            _Line(
                path=_escape(entry.path),
                type=entry.type,
                size=entry.size,
                mode=entry.mode,
                mtime_ns=entry.mtime_ns,
                sha256=entry.digest,
                target=_escape(entry.target) if entry.target else "",
                blobs=blobs,
                sparse=entry.sparse,
            )
        )
    header = _Header(
        format=FORMAT,
        version=VERSION,
        entries=len(lines),
        files=manifest.files,
        bytes=manifest.bytes,
        packs=list(packs),
    )
    text = msgspec.json.Encoder().encode_lines([header, *lines])
    # Level 1: digests do not compress at any, and the rest does at this one already.
    data = zstandard.ZstdCompressor(level=1).compress(text)
    return data, hashlib.sha256(data).hexdigest()


def decode(data: bytes, digest: str, name: str) -> Manifest:
    """The manifest of the object `name`. Raises `DataLossError` naming it when it is not what `digest` says."""
    if hashlib.sha256(data).hexdigest() != digest:
        raise DataLossError(f"manifest {name} does not match its digest: {len(data)} bytes came back")
    try:
        size = zstandard.get_frame_parameters(data).content_size
        if size > MAX_BYTES:
            raise DataLossError(f"manifest {name} is larger than any can be")
        head, _, rest = zstandard.ZstdDecompressor().decompress(data).partition(b"\n")
        header = msgspec.json.decode(head, type=_Header)
        if header.format != FORMAT or header.version != VERSION:
            raise DataLossError(
                f"manifest {name} has format {header.format[:40]!r} {header.version}, which is not known here"
            )
        _check_header(header, rest.count(b"\n"), name)
        manifest = Manifest(_linked([_item(line, header.packs) for line in _LINES.decode_lines(rest)]))
    except (zstandard.ZstdError, msgspec.DecodeError, ValueError, IndexError) as error:
        raise DataLossError(f"manifest {name} cannot be read: {error}") from error
    except CloudClawError as error:
        if isinstance(error, DataLossError):
            raise
        raise DataLossError(f"manifest {name} holds a path that no tree may hold: {error.message}") from error
    _check_tree(manifest, name)
    if (header.entries, header.files, header.bytes) != (len(manifest.items), manifest.files, manifest.bytes):
        raise DataLossError(f"manifest {name} holds other entries than its header says")
    return manifest


def _check_header(header: _Header, lines: int, name: str) -> None:
    """Before the lines are decoded: `ValueError` for too many, and for packs that are not of the manifest's tenant."""
    if lines != header.entries or lines > MAX_ENTRIES:
        raise ValueError(f"it has {lines} entries, {header.entries} by its header, and {MAX_ENTRIES} at most")
    home, stored, _ = name.partition("/manifests/")
    prefix = f"{home}/packs/" if stored else "tenants/"
    for pack in header.packs:
        if not _PACK.fullmatch(pack[:1000]) or ".." in pack or not pack.startswith(prefix):
            raise ValueError(f"{pack[:80]!r} is no pack of its tenant")


def _check_tree(manifest: Manifest, name: str) -> None:
    """Every path once, and below a directory: so nothing of it is ever written through a symlink or a file."""
    previous = b""
    for item in manifest.items:
        path = item.entry.path
        above = manifest.get(path.rpartition(b"/")[0])
        top = b"/" not in path
        if path == previous or (not top and (above is None or above.entry.type is not FileType.DIRECTORY)):
            raise DataLossError(f"manifest {name} holds {brief(path)} twice, or below what is no directory")
        if top and item.entry.type is not FileType.DIRECTORY:
            raise DataLossError(f"manifest {name} has a top that is no directory")
        previous = path


def _linked(items: list[Item]) -> Iterator[Item]:
    """The items, hard links with what the file has that they name. `ValueError` for one that names none before it."""
    files: dict[bytes, Item] = {}
    for item in items:
        entry = item.entry
        if entry.link:
            first = files.get(entry.link)
            if first is None or entry.type is not FileType.REGULAR or entry.link >= entry.path:
                raise ValueError(f"{brief(entry.path)} is a hard link to no file before it")
            item = Item(replace(first.entry, path=entry.path, link=entry.link), first.blobs)
        elif entry.type is FileType.REGULAR:
            files[entry.path] = item
        yield item


_LINES: Final = msgspec.json.Decoder(_Line)


def _item(line: _Line, packs: Sequence[str]) -> Item:
    path = check_path(unquote_to_bytes(line.path), limit=4096 + 16)
    if path.split(b"/", 1)[0] not in _TOPS:
        raise ValueError(f"{brief(path)} is in neither of the top directories")
    if any(
        b.pack < 0 or b.offset < 0 or b.stored <= 0 or b.size <= 0 or not _HEX.fullmatch(b.digest) for b in line.blobs
    ):
        raise ValueError(f"{brief(path)} has a blob that cannot be")
    blobs = tuple(Blob(packs[b.pack], b.offset, b.stored, b.size, b.digest) for b in line.blobs)
    if line.link:
        return Item(FileEntry(path=path, type=line.type, link=unquote_to_bytes(line.link)))
    if sum(blob.size for blob in blobs) != line.size or (line.size and line.type is not FileType.REGULAR):
        raise ValueError(f"{brief(path)} has blobs that do not make up its size")
    if line.type is FileType.REGULAR and not _HEX.fullmatch(line.sha256):
        raise ValueError(f"{brief(path)} has no digest")
    if not -_LAST_NS <= line.mtime_ns <= _LAST_NS:
        raise ValueError(f"{brief(path)} has a time that cannot be")
    target = unquote_to_bytes(line.target)
    if line.type is FileType.SYMLINK and (not 0 < len(target) <= _TARGET or b"\0" in target):
        raise ValueError(f"{brief(path)} is a symlink that cannot be")
    entry = FileEntry(
        path=path,
        type=line.type,
        size=line.size,
        mode=line.mode & 0o777,
        mtime_ns=line.mtime_ns,
        digest=line.sha256,
        target=target,
        sparse=line.sparse,
    )
    return Item(entry, blobs)


def _escape(path: bytes) -> str:
    return show(path.replace(b"%", b"%25") if b"%" in path else path)
