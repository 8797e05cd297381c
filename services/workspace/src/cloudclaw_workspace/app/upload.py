"""Taking a tar archive apart into a tree, while it comes in."""

from __future__ import annotations

import re
import threading
import zlib
from typing import Final, Protocol

import zstandard

from cloudclaw.errors import InvalidArgumentError, QuotaExceededError
from cloudclaw.snapshots.editing import TreeEditor
from cloudclaw.snapshots.port import TreeLimits
from cloudclaw.snapshots.safe import brief
from cloudclaw.snapshots.threads import Stopped
from cloudclaw_workspace.app.feed import Feed, FeedReader
from cloudclaw_workspace.app.writing import Change
from cloudclaw_workspace.domain.tar import Kind, Member, TarReader

_GZIP: Final = b"\x1f\x8b"
_GZIP_WBITS: Final = 31
_INPUT: Final = 8 << 10
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_BZIP2: Final = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")
_XZ: Final = b"\xfd7zXZ\0"
_WINDOW: Final = 128 << 20
"""Memory that a zstd stream may ask for; what `zstd --long` needs."""


class _Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


def extract(chunks: Feed[bytes], limits: TreeLimits, *, replace: bool) -> Change:
    """A change that writes an archive (tar; gzip and zstd are detected) over the workspace, or in its place.

    All bytes are counted after decompression. Members come in any order and more than once: the last wins. Names are
    relative (`./` is dropped); absolute ones and `..` are refused, as is a path through a symlink, whoever made it.
    A hard link may only name a regular file that the archive brought before. Devices, FIFOs and sparse files are
    refused. Raises `InvalidArgumentError` naming the member, `QuotaExceededError`.
    """

    def change(editor: TreeEditor, stop: threading.Event) -> None:
        stream = _Bounded(_decompress(FeedReader(chunks, limit=_most(limits))), _most(limits))
        if replace:
            editor.clear()
        reader = TarReader(stream.read)
        files: set[bytes] = set()
        for member in reader:
            if stop.is_set():
                raise Stopped
            _place(editor, reader, member, files)
        stream.drain(stop)

    return change


def _place(editor: TreeEditor, reader: TarReader, member: Member, files: set[bytes]) -> None:
    path = _relative(member.path, member.path)
    if not path:
        if member.kind is not Kind.DIRECTORY:
            raise _refused(member.path, "is the top of the archive, and no directory")
        return
    if member.kind is Kind.HARD_LINK:
        source = _relative(member.link, member.path)
        if source not in files:
            raise _refused(path, f"is a hard link to {brief(source)}, which is no file that the archive brought before")
        editor.hard_link(path, source)
        files.add(path)
        return
    files.discard(path)
    match member.kind:
        case Kind.FILE:
            editor.write(path, member.mode, reader.content(), member.mtime_ns)
            files.add(path)
        case Kind.DIRECTORY:
            editor.directory(path, member.mode, member.mtime_ns)
        case Kind.SYMLINK:
            editor.symlink(path, member.link, member.mtime_ns)


def _relative(path: bytes, member: bytes) -> bytes:
    """A member's name without what says nothing; empty for the top."""
    if path.startswith(b"/"):
        raise _refused(member, "an archive's names must be relative")
    steps = [step for step in path.split(b"/") if step not in (b"", b".")]
    if b".." in steps:
        raise _refused(member, "an archive's names must not have '..' steps")
    return b"/".join(steps)


def _refused(path: bytes, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{brief(path)}: {why}", field="path", reason="BAD_ARCHIVE")


def _most(limits: TreeLimits) -> int:
    """Bytes of the largest tar stream that can still fit: contents, headers with the longest names, padding."""
    return limits.total_bytes + limits.files * 8192 + (16 << 20)


def _decompress(raw: FeedReader) -> _Source:
    magic = raw.peek(10)
    if magic.startswith(_GZIP):
        return _Gunzip(raw)
    if magic.startswith(_ZSTD):
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        return decompressor.stream_reader(raw, read_size=64 << 10, read_across_frames=True)  # type: ignore[arg-type]
    # The whole of bzip2's magic with its first block's: a tar may begin with a file named "BZh1".
    name = "bzip2" if _BZIP2.match(magic) else "xz" if magic.startswith(_XZ) else ""
    if name:
        raise InvalidArgumentError(
            f"{name} is not accepted; send the tar plain, or compressed by gzip or zstd",
            field="data",
            reason="BAD_ARCHIVE",
        )
    return raw


class _Gunzip:
    """Members of a gzip stream as one, with the zeros that may follow it. Raises `zlib.error`, `EOFError`.

    Not the standard library's: that reads a header's name byte by byte in Python, and a name has no bound.
    """

    def __init__(self, raw: FeedReader) -> None:
        self._raw = raw
        self._inflate = zlib.decompressobj(wbits=_GZIP_WBITS)
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        while True:
            if self._inflate.eof and not self._another():
                return b""
            data = self._rest or self._inflate.unconsumed_tail or self._raw.read(_INPUT)
            self._rest = b""
            content = self._inflate.decompress(data, size)
            if content:
                return content
            if not data and not self._inflate.eof:
                raise EOFError("it ends too early")

    def _another(self) -> bool:
        """Begin the next member, if there is one."""
        rest = self._inflate.unused_data.lstrip(b"\0")
        while not rest:
            data = self._raw.read(_INPUT)
            if not data:
                return False
            rest = data.lstrip(b"\0")
        self._rest = rest
        self._inflate = zlib.decompressobj(wbits=_GZIP_WBITS)
        return True


class _Bounded:
    """Counts what comes out of the decompressor, and says plainly what is wrong with its input."""

    def __init__(self, source: _Source, limit: int) -> None:
        self._source = source
        self._left = limit

    def read(self, size: int) -> bytes:
        try:
            data = self._source.read(size)
        except (EOFError, zlib.error, zstandard.ZstdError) as error:
            raise InvalidArgumentError(
                f"the archive cannot be decompressed: {error}", field="data", reason="BAD_ARCHIVE"
            ) from error
        self._left -= len(data)
        if self._left < 0:
            raise QuotaExceededError(
                "the archive is larger than a workspace may be",
                subject="workspace/total_bytes",
                reason="WORKSPACE_LIMIT",
            )
        return data

    def drain(self, stop: threading.Event) -> None:
        """Read what follows the end of the archive (padding), so that the client is not cut off while it sends."""
        while self.read(64 << 10):
            if stop.is_set():
                raise Stopped
