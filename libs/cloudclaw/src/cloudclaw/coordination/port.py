"""The key-value port beneath all coordination: what CloudClaw uses of etcd, and no more.

`etcd.py` is the real adapter; `memory.py` keeps the same contract in one process, for tests.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

MAX_OPERATIONS: Final = 128
"""Guards, writes and reads of one transaction, each (etcd's default)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key at one revision. `lease` is 0 for a durable key."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class RangeResult:
    """Entries by key, the store's revision they show, and whether `limit` cut the rest off."""

    entries: Sequence[Entry]
    revision: int
    more: bool


class Op(enum.Enum):
    """What a watch event did to its key."""

    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class KeyEvent:
    """One change. For a DELETE, `entry` has an empty value and the deleting revision as `mod_revision`."""

    op: Op
    entry: Entry


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """All changes of one or more whole revisions, in order; nothing of `revision` is still to come.

    A batch without events is a progress mark: everything up to `revision` has been delivered.
    """

    revision: int
    events: Sequence[KeyEvent]


@dataclass(frozen=True, slots=True)
class Exists:
    """Guard: the key exists."""

    key: str


@dataclass(frozen=True, slots=True)
class Absent:
    """Guard: the key does not exist."""

    key: str


@dataclass(frozen=True, slots=True)
class ModIs:
    """Guard: the key's mod_revision; 0 means absent."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class CreateIs:
    """Guard: the key's create_revision; how a fencing token and a leadership are compared."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class ValueIs:
    """Guard: the key's value."""

    key: str
    value: bytes


Guard = Exists | Absent | ModIs | CreateIs | ValueIs


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key; with `lease`, it goes when the lease does."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key; one that is not there is no error."""

    key: str


Write = Put | Delete


@dataclass(frozen=True, slots=True)
class TxnResult:
    """`revision` is the store's after the transaction; on success that of its writes.

    `read` holds, on failure, what was there of the keys asked for with `read_on_failure`.
    """

    succeeded: bool
    revision: int
    read: Sequence[Entry] = ()


class CompactedError(Exception):
    """The revision asked for was compacted: list again. `compact_revision` is the oldest kept."""

    def __init__(self, compact_revision: int):
        super().__init__(f"compacted up to revision {compact_revision}")
        self.compact_revision = compact_revision


class LeaseLostError(Exception):
    """The lease does not exist any more."""


class KeyValue(Protocol):
    """Contract of the store. Every call raises `UnavailableError` when the store does not answer within
    its deadline; after that a `txn`'s outcome is unknown, and it has been sent at most once. A store that refuses
    writes for lack of space counts as away too (reason `COORDINATION_FULL`): work waits for it, and is not lost.
    Reads are linearizable.
    """

    async def get(self, key: str) -> Entry | None:
        """The key now, or None."""
        ...

    async def range(
        self,
        prefix: str,
        *,
        start_after: str = "",
        limit: int = 0,
        revision: int = 0,
        newest_first: bool = False,
        keys_only: bool = False,
        created_before: int = 0,
    ) -> RangeResult:
        """Keys that begin with `prefix`, by key, after `start_after`, at `revision` (0: now).

        `newest_first` sorts by create revision, falling; `created_before` keeps keys of a lower create revision
        only (0: all), which is how a newest-first list is paged. `limit` 0 means all; the adapter pages. Raises
        `CompactedError`, and `OutOfRangeError` for a revision still to come.
        """
        ...

    async def txn(
        self, guards: Sequence[Guard], writes: Sequence[Write], *, read_on_failure: Sequence[str] = ()
    ) -> TxnResult:
        """All `writes` if all `guards` hold, else none of them. Sent once, never retried.

        Raises `LeaseLostError` when a `Put` names a lease that is gone, and `ValueError` for a transaction that is
        wrong in itself: a key written twice, or more than `MAX_OPERATIONS` guards, writes or reads.
        """
        ...

    def watch(self, prefix: str, after_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """Every change of keys under `prefix` after `after_revision`, in order, each once, through any
        number of reconnects. Raises `CompactedError`; never ends otherwise. Close it (`contextlib.aclosing`)."""
        ...

    async def grant(self, ttl: int) -> int:
        """A new lease of `ttl` seconds; answers its id."""
        ...

    async def keep_alive(self, lease: int) -> int:
        """Renew once; answers the seconds it now has. Raises `LeaseLostError`. Deadline at most 1 s."""
        ...

    async def revoke(self, lease: int) -> None:
        """End a lease, and with it its keys. One that is gone is no error."""
        ...

    async def database_size(self) -> tuple[int, int]:
        """Bytes in use, and the limit (0 when unknown)."""
        ...

    async def close(self) -> None:
        """Release the connection."""
        ...
