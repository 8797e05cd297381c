"""Tar streams, read strictly and written plainly.

Read: POSIX ustar and pax, GNU long names and base-256 numbers, old V7 headers. The standard library's `tarfile` is
not used for reading: it takes as much memory as a header claims, recurses once for each extension header, and ends
quietly where a stream was cut between two members. Here every header has a bound, and what is not understood is
refused instead of skipped. Names are bytes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from cloudclaw.errors import InvalidArgumentError
from cloudclaw.snapshots.safe import brief

BLOCK: Final = 512
PIECE: Final = 256 << 10
MAX_HEADER: Final = 64 << 10
"""Bytes of one extension header; a path has at most 4096."""
MAX_HEADERS: Final = 8
"""Extension headers of one member."""

_ZERO: Final = bytes(BLOCK)
_YEAR_9999: Final = 253_402_300_799

Read = Callable[[int], bytes]
"""Answers up to that many bytes, and none only at the end."""


class Kind(enum.Enum):
    """What a member is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARD_LINK = "hard link"


_KINDS: Final = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,
    b"1": Kind.HARD_LINK,
    b"2": Kind.SYMLINK,
    b"5": Kind.DIRECTORY,
}
_REFUSED: Final = {
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"S": "a sparse file; make the archive without sparse files",
    b"V": "a volume label",
    b"M": "the rest of another volume's file",
    b"D": "an incremental dump's directory",
}


@dataclass(frozen=True, slots=True)
class Member:
    """One member's header: `size` bytes follow; `link` is where a link points, as it stands."""

    path: bytes
    kind: Kind
    size: int
    mode: int
    mtime_ns: int
    link: bytes


class TarReader:
    """Members of a tar stream, one after another. Every fault raises `InvalidArgumentError(field="data")` (the stream)
    or `field="path"` (a member that is refused, named)."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._left = 0
        self._padding = 0
        self._globals: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            yield member

    def content(self) -> Iterator[bytes]:
        """The current member's bytes, in pieces. What is not read is skipped."""
        while self._left:
            piece = self._read(min(self._left, PIECE))
            if not piece:
                raise _broken("ends within a file")
            self._left -= len(piece)
            yield piece

    def _next(self) -> Member | None:
        for _ in self.content():
            pass
        self._exact(self._padding)
        extended: dict[bytes, bytes] = {}
        for _ in range(MAX_HEADERS):
            block = self._exact(BLOCK)
            if block == _ZERO:
                if extended:
                    raise _broken("ends after an extension header")
                return None
            size = _header_size(block)
            kind = block[156:157]
            if kind not in (b"x", b"X", b"g", b"L", b"K"):
                return self._member(block, kind, size, extended)
            data = self._extension(size)
            if kind == b"L":
                extended[b"path"] = data.split(b"\0", 1)[0]
            elif kind == b"K":
                extended[b"linkpath"] = data.split(b"\0", 1)[0]
            elif kind == b"g":
                self._globals.update({k: v for k, v in _records(data) if k == b"mtime"})
            else:
                extended.update(_records(data))
        raise _broken(f"has more than {MAX_HEADERS} extension headers for one member")

    def _member(self, block: bytes, flag: bytes, size: int, extended: dict[bytes, bytes]) -> Member:
        path = extended.get(b"path", _name(block))
        if any(key.startswith(b"GNU.sparse.") for key in extended):
            raise _refused(path, _REFUSED[b"S"])
        if flag in _REFUSED:
            raise _refused(path, f"is {_REFUSED[flag]}")
        if flag not in _KINDS:
            raise _refused(path, f"is of the unknown type {flag!r}")
        kind = _KINDS[flag]
        if b"size" in extended:
            size = _decimal(extended[b"size"], "size")
        if kind is Kind.FILE and flag != b"7" and path.endswith(b"/"):
            kind = Kind.DIRECTORY  # how V7 wrote directories
        if kind is not Kind.FILE:
            size = 0  # some writers repeat a linked file's size; no bytes follow
        self._left, self._padding = size, -size % BLOCK
        mtime = extended.get(b"mtime", self._globals.get(b"mtime"))
        mtime_ns = _number(block[136:148]) * 10**9 if mtime is None else _pax_time(mtime)
        return Member(
            path=path,
            kind=kind,
            size=size,
            mode=_number(block[100:108]) & 0o777,
            mtime_ns=max(0, min(mtime_ns, _YEAR_9999 * 10**9)),
            link=extended.get(b"linkpath", block[157:257].split(b"\0", 1)[0]),
        )

    def _extension(self, size: int) -> bytes:
        if size > MAX_HEADER:
            raise _broken(f"has an extension header of {size} bytes; at most {MAX_HEADER} are read")
        data = self._exact(size)
        self._exact(-size % BLOCK)
        return data

    def _exact(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._read(size)
            if not part:
                raise _broken("is cut short")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _header_size(block: bytes) -> int:
    """The size field of a header whose checksum is right."""
    unsigned = sum(block) - sum(block[148:156]) + 8 * 32
    signed = unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    if _number(block[148:156]) not in (unsigned, signed):
        raise _broken("has a header with a wrong checksum, or is no tar stream")
    return _number(block[124:136])


def _number(field: bytes) -> int:
    """An octal or base-256 field."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise _broken("has a negative number in a header")
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if not all(byte in b"01234567" for byte in digits):
        raise _broken("has a header with a number that is none")
    return int(digits, 8) if digits else 0


def _decimal(value: bytes, what: str) -> int:
    if not value.isdigit() or len(value) > 19:
        raise _broken(f"has an extension header with a {what} that is none")
    return int(value)


def _pax_time(value: bytes) -> int:
    """Decimal seconds as nanoseconds; times before 1970 become 1970."""
    if value.startswith(b"-"):
        return 0
    whole, _, part = value.partition(b".")
    if part and not part.isdigit():
        raise _broken("has an extension header with a time that is none")
    return _decimal(whole, "time") * 10**9 + int(part[:9].ljust(9, b"0") or b"0")


def _name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records `length key=value` of a pax header."""
    data = data.rstrip(b"\0")
    while data:
        digits, space, _ = data.partition(b" ")
        if not space or not digits.isdigit() or len(digits) > 6:
            raise _broken("has an extension header that cannot be read")
        length = int(digits)
        key, equals, value = data[len(digits) + 1 : length - 1].partition(b"=")
        if length > len(data) or not equals or data[length - 1 : length] != b"\n":
            raise _broken("has an extension header that cannot be read")
        yield key, value
        data = data[length:]


def _broken(why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"the archive {why}", field="data", reason="BAD_ARCHIVE")


def _refused(path: bytes, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{brief(path)}: {why}", field="path", reason="BAD_ARCHIVE")


def header(member: Member) -> bytes:
    """What precedes a member's content: a ustar header, after a pax header where the member does not fit one."""
    pax: dict[bytes, bytes] = {}
    whole, part = divmod(member.mtime_ns, 10**9)
    if part or not 0 <= whole < 8**11:
        pax[b"mtime"] = b"%d.%09d" % (whole, part) if member.mtime_ns >= 0 else b"0"
        whole = max(0, min(whole, 8**11 - 1))
    path = member.path + (b"/" if member.kind is Kind.DIRECTORY else b"")
    names = {b"path": path, b"linkpath": member.link}
    pax |= {key: value for key, value in names.items() if len(value) > 100 or any(byte > 127 for byte in value)}
    if member.size >= 8**11:
        pax[b"size"] = b"%d" % member.size
    if any(not _is_utf8(value) for value in pax.values()):
        pax = {b"hdrcharset": b"BINARY", **pax}
    plain = replace(member, path=path[:100], link=member.link[:100], mtime_ns=whole * 10**9)
    if not pax:
        return _ustar(plain, _FLAGS[member.kind])
    records = b"".join(_record(key, value) for key, value in pax.items())
    extension = Member(b"pax", Kind.FILE, len(records), 0o644, 0, b"")
    return _ustar(extension, b"x") + records + padding(len(records)) + _ustar(plain, _FLAGS[member.kind])


def padding(size: int) -> bytes:
    """What follows a member's content."""
    return bytes(-size % BLOCK)


END: Final = bytes(2 * BLOCK)
"""What ends a tar stream."""

_FLAGS: Final = {Kind.FILE: b"0", Kind.HARD_LINK: b"1", Kind.SYMLINK: b"2", Kind.DIRECTORY: b"5"}


def _ustar(member: Member, flag: bytes) -> bytes:
    size = member.size if member.size < 8**11 else 0
    fields = (
        member.path.ljust(100, b"\0")
        + b"%07o\0%07o\0%07o\0" % (member.mode, 0, 0)
        + b"%011o\0%011o\0" % (size, member.mtime_ns // 10**9)
        + b" " * 8
        + flag
        + member.link.ljust(100, b"\0")
        + b"ustar\x0000"
    ).ljust(BLOCK, b"\0")
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def _record(key: bytes, value: bytes) -> bytes:
    """A pax record; its length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest
    while length != rest + len(str(length)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
