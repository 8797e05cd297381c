"""Bundles: how archived tasks lie in the object store. Version 1.

One object holds up to `MAX_TASKS` ended tasks of one tenant, newest first, and is never changed once written. Its name
is `history/{tenant}/{oldest}-{newest}-{random id}`: the creation times of its oldest and its newest task, in
milliseconds since the epoch, 15 digits each. Numbers in the preamble are little-endian.

    preamble   a skippable zstd frame: magic 0x184D2A5C u32, length of what follows u32, then
               `CLAWHIST`, version u16, 0 u16, number of tasks u32, length of the index u32,
               for each task, ascending: the first 4 bytes of SHA-256 of its id, as a number u32,
               CRC-32 of all that since `CLAWHIST` u32
    index      one zstd frame with a checksum: one line of JSON with the columns of a table, a row for each task
               (`tasks`, `created` in ms, `create_revisions`, `mod_revisions`, `states`), and `frames`:
               [compressed length, number of tasks] of each frame that follows, in order
    frames     zstd frames with checksums: a line of JSON for each task, in the order of the index:
               `create_revision`, `mod_revision`, `record` (as etcd held it: `TaskRecord`), `spec` (base64 of a
               `cloudclaw.v1.TaskSpec`; absent when `record.spec_object` names the object that holds it)

So `zstd -dc` shows a whole bundle as lines of JSON; whether a task is in it is known from the first 4 KiB; and a task
is read by decoding the index and one frame of about 64 KiB. A task may be in two bundles, when the archiver died
between the bundle and the transaction: one is as good as the other.
"""

from __future__ import annotations

import bisect
import hashlib
import re
import struct
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import zstandard

from cloudclaw.coordination.records import TaskRecord, TaskState, decode, encode
from cloudclaw.coordination.transactions import Versioned
from cloudclaw.errors import DataLossError

MAX_TASKS: Final = 1000
FRAME_BYTES: Final = 64 * 1024
"""Bytes of lines in a frame, before compression, above which the next one begins."""

_VERSION: Final = 1
_SKIPPABLE: Final = 0x184D2A5C
_MAGIC: Final = b"CLAWHIST"
_OUTER: Final = struct.Struct("<II")
_INNER: Final = struct.Struct("<8sHHII")
_CRC: Final = struct.Struct("<I")
PREAMBLE_BYTES: Final = _OUTER.size + _INNER.size + 4 * MAX_TASKS + _CRC.size
"""The longest preamble: what is read of a bundle to know whether a task is in it."""

_LEVEL: Final = 6
_MAX_CONTENT: Final = 8 * 1024 * 1024
_NAME: Final = re.compile(r"history/([a-z0-9._-]{1,63})/(\d{15})-(\d{15})-([a-z0-9-]{1,60})")
_STATES: Final = tuple(TaskState)

Place = tuple[int, int]
"""Where a task stands among its tenant's: creation time in milliseconds, and the create revision of its key. Neither
ever changes, so a list in this order is the same whether a task is live or archived."""


def place_of(task: Versioned[TaskRecord]) -> Place:
    """The task's place."""
    return round(task.record.created * 1000), task.create_revision


@dataclass(frozen=True, slots=True)
class ArchivedTask:
    """A task as it was when it was archived; `spec` is empty when `record.spec_object` is set."""

    task: Versioned[TaskRecord]
    spec: bytes


@dataclass(frozen=True, slots=True)
class BundleName:
    """A bundle by its name; `oldest` and `newest` are creation times in milliseconds."""

    tenant: str
    oldest: int
    newest: int
    id: str

    def __str__(self) -> str:
        return f"{prefix(self.tenant)}{self.oldest:015d}-{self.newest:015d}-{self.id}"


def prefix(tenant: str) -> str:
    """What the names of a tenant's bundles begin with."""
    return f"history/{tenant}/"


def parse_name(name: str) -> BundleName | None:
    """The bundle that an object is, None when it is none."""
    found = _NAME.fullmatch(name)
    return BundleName(found[1], int(found[2]), int(found[3]), found[4]) if found else None


def name_for(tasks: Sequence[ArchivedTask], bundle_id: str) -> BundleName:
    """The name of a bundle of these tasks, which are one tenant's."""
    created = [place_of(each.task)[0] for each in tasks]
    return BundleName(tasks[0].task.record.tenant, min(created), max(created), bundle_id)


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    create_revision: int
    mod_revision: int
    record: msgspec.Raw
    spec: bytes = b""


class _Columns(msgspec.Struct, frozen=True):
    version: int
    tenant: str
    tasks: list[str]
    created: list[int]
    create_revisions: list[int]
    mod_revisions: list[int]
    states: list[TaskState]
    frames: list[tuple[int, int]]


_ENCODER: Final = msgspec.json.Encoder()
_LINES: Final = msgspec.json.Decoder(_Line)
_COLUMNS: Final = msgspec.json.Decoder(_Columns)


def encode_bundle(tasks: Sequence[ArchivedTask]) -> bytes:
    """The bundle of 1 to `MAX_TASKS` ended tasks of one tenant. Takes tens of milliseconds: call it in a thread."""
    if not 0 < len(tasks) <= MAX_TASKS:
        raise ValueError(f"a bundle holds 1 to {MAX_TASKS} tasks, not {len(tasks)}")
    rows = sorted(tasks, key=lambda each: place_of(each.task), reverse=True)
    frames: list[bytes] = []
    counts: list[int] = []
    lines: list[bytes] = []
    for row in rows:
        task = row.task
        line = _Line(task.create_revision, task.mod_revision, msgspec.Raw(encode(task.record)), row.spec)
        lines.append(_ENCODER.encode(line) + b"\n")
        if sum(map(len, lines)) >= FRAME_BYTES or row is rows[-1]:
            frames.append(_compress(b"".join(lines)))
            counts.append(len(lines))
            lines = []
    columns = _Columns(
        version=_VERSION,
        tenant=rows[0].task.record.tenant,
        tasks=[row.task.record.task for row in rows],
        created=[place_of(row.task)[0] for row in rows],
        create_revisions=[row.task.create_revision for row in rows],
        mod_revisions=[row.task.mod_revision for row in rows],
        states=[row.task.record.state for row in rows],
        frames=[(len(frame), count) for frame, count in zip(frames, counts, strict=True)],
    )
    index = _compress(_ENCODER.encode(columns) + b"\n")
    hashes = sorted(map(_hash, columns.tasks))
    inner = _INNER.pack(_MAGIC, _VERSION, 0, len(rows), len(index)) + struct.pack(f"<{len(hashes)}I", *hashes)
    outer = _OUTER.pack(_SKIPPABLE, len(inner) + _CRC.size)
    return b"".join((outer, inner, _CRC.pack(zlib.crc32(inner)), index, *frames))


class Preamble:
    """Which tasks a bundle may hold, and where its index is. Takes about 4 KiB.

    Attributes:
        index_at, index_length: the bytes of the index.
    """

    __slots__ = ("_hashes", "index_at", "index_length")

    def __init__(self, data: bytes, name: str) -> None:
        """From the first `PREAMBLE_BYTES` of the bundle `name`. `DataLossError`."""
        head = _OUTER.size + _INNER.size
        if len(data) < head:
            raise _damaged(name, "it ends within its preamble")
        magic, length = _OUTER.unpack_from(data)
        brand, version, _, count, self.index_length = _INNER.unpack_from(data, _OUTER.size)
        end = head + 4 * count
        if magic != _SKIPPABLE or brand != _MAGIC or length != _INNER.size + 4 * count + _CRC.size:
            raise _damaged(name, "its preamble is none")
        if version != _VERSION:
            raise _damaged(name, f"it is of version {version}, which this release does not read")
        if len(data) < end + _CRC.size or _CRC.unpack_from(data, end)[0] != zlib.crc32(data[_OUTER.size : end]):
            raise _damaged(name, "its preamble does not match its checksum")
        self._hashes = array("I", struct.unpack_from(f"<{count}I", data, head))
        self.index_at = end + _CRC.size

    def __len__(self) -> int:
        return len(self._hashes)

    def may_hold(self, task: str) -> bool:
        """False when the task is certainly not in the bundle; wrong about once in four million."""
        wanted = _hash(task)
        at = bisect.bisect_left(self._hashes, wanted)
        return at < len(self._hashes) and self._hashes[at] == wanted


@dataclass(frozen=True, slots=True)
class Span:
    """Frames of a bundle that lie side by side: `length` bytes at `offset`, whose first task is row `first`."""

    offset: int
    length: int
    first: int
    frames: Sequence[tuple[int, int]]


class Index:
    """The table of a bundle's tasks, newest first; its columns are packed, so it takes about 45 bytes for each."""

    __slots__ = ("_create", "_created", "_data_at", "_frames", "_mod", "_states", "_tasks")

    def __init__(self, data: bytes, name: str, preamble: Preamble) -> None:
        """From the bytes that the preamble says. `DataLossError`."""
        try:
            columns = _COLUMNS.decode(_decompress(data, name))
        except msgspec.DecodeError as error:
            raise _damaged(name, f"its index cannot be read: {error}") from error
        rows = len(columns.tasks)
        widths = {len(columns.created), len(columns.create_revisions), len(columns.mod_revisions), len(columns.states)}
        if widths != {rows} or sum(count for _, count in columns.frames) != rows or rows != len(preamble):
            raise _damaged(name, "its index contradicts itself")
        self._data_at = preamble.index_at + preamble.index_length
        self._tasks = "\n".join(columns.tasks)
        self._created = array("q", columns.created)
        self._create = array("q", columns.create_revisions)
        self._mod = array("q", columns.mod_revisions)
        self._states = bytes(map(_STATES.index, columns.states))
        self._frames = tuple(columns.frames)

    def __len__(self) -> int:
        return len(self._created)

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        return 512 + len(self._tasks) + 25 * len(self) + 120 * len(self._frames)

    def tasks(self) -> list[str]:
        """The tasks' ids by row."""
        return self._tasks.split("\n")

    def row_of(self, task: str) -> int | None:
        """The row of a task, None when it is not here."""
        try:
            return self.tasks().index(task)
        except ValueError:
            return None

    def place(self, row: int) -> Place:
        """The place of the task in `row`."""
        return self._created[row], self._create[row]

    def state(self, row: int) -> TaskState:
        """How it ended."""
        return _STATES[self._states[row]]

    def mod_revision(self, row: int) -> int:
        """Revision of its last change."""
        return self._mod[row]

    def first_before(self, place: Place | None) -> int:
        """The first row whose place is before `place` (None: the first of all); `len` when there is none."""
        if place is None:
            return 0
        return bisect.bisect_left(range(len(self)), True, key=lambda row: self.place(row) < place)

    def spans(self, rows: Sequence[int]) -> list[Span]:
        """The frames that hold `rows`, which ascend; those side by side in one span."""
        wanted = iter(rows)
        row = next(wanted, None)
        spans: list[Span] = []
        offset, first, open_ = self._data_at, 0, False
        for length, count in self._frames:
            if row is not None and row < first + count:
                if open_:
                    last = spans.pop()
                    spans.append(Span(last.offset, last.length + length, last.first, [*last.frames, (length, count)]))
                else:
                    spans.append(Span(offset, length, first, [(length, count)]))
                while row is not None and row < first + count:
                    row = next(wanted, None)
                open_ = True
            else:
                open_ = False
            offset += length
            first += count
        return spans


def decode_span(span: Span, data: bytes, rows: Sequence[int], name: str) -> dict[int, ArchivedTask]:
    """Those of `rows` that lie in `span`, whose bytes are `data`. `DataLossError`."""
    found: dict[int, ArchivedTask] = {}
    wanted = set(rows)
    offset, first = 0, span.first
    for length, count in span.frames:
        lines = _decompress(data[offset : offset + length], name).splitlines()
        if len(lines) != count:
            raise _damaged(name, f"a frame holds {len(lines)} tasks instead of {count}")
        found.update((row, _task(lines[row - first], name)) for row in range(first, first + count) if row in wanted)
        offset += length
        first += count
    return found


def _task(data: bytes, name: str) -> ArchivedTask:
    try:
        line = _LINES.decode(data)
    except msgspec.DecodeError as error:
        raise _damaged(name, f"a task in it cannot be read: {error}") from error
    record = decode(bytes(line.record), TaskRecord)
    return ArchivedTask(Versioned(record, line.create_revision, line.mod_revision), line.spec)


def _hash(task: str) -> int:
    return int.from_bytes(hashlib.sha256(task.encode()).digest()[:4], "big")


def _compress(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(data)


def _decompress(data: bytes, name: str) -> bytes:
    try:
        size = zstandard.get_frame_parameters(data).content_size
        if not 0 < size <= _MAX_CONTENT:
            raise _damaged(name, f"a frame in it claims {size} bytes")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=_MAX_CONTENT)
    except zstandard.ZstdError as error:
        raise _damaged(name, str(error)) from error


def _damaged(name: str, why: str) -> DataLossError:
    return DataLossError(f"the bundle of archived tasks {name} is damaged: {why}", metadata={"object": name})
