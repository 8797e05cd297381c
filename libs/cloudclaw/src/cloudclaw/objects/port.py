"""The object store port: flat names to immutable bytes, as plain S3 gives them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows of one object.

    Attributes:
        name: the object's name.
        size: bytes.
        modified: seconds since the epoch, by the store's clock; for ages only, never for order.
    """

    name: str
    size: int
    modified: float


class ObjectStore(Protocol):
    """Immutable objects under `/`-separated names.

    Contract, proven by one suite over every adapter (`tests/contract/test_object_store.py`):

    - A name is 1 to 900 bytes, of segments `[A-Za-z0-9._=-]+` joined by `/`; no segment is `.` or `..`, or
      longer than 250 bytes. No object's name is another's directory (`a` and `a/b`): stores differ in what they list.
      Anything else raises `InvalidArgumentError(field="name")` before the store is touched.
    - An object is visible whole or not at all; a writer that dies half-way leaves nothing visible.
    - After `put` returns, the bytes survive a crash of the store's process.
    - A store that cannot be reached raises `UnavailableError`; one that is full raises
      `QuotaExceededError(reason="OBJECT_STORE_FULL")`; bytes that came back short or altered raise
      `DataLossError` naming the object. Nothing else escapes.
    - Every method may be called from several tasks at once.
    """

    async def put(self, name: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Store `data` under `name`.

        With `if_absent`, an existing object is left alone and the answer is False; of several
        concurrent callers exactly one gets True. Otherwise replaces and answers True.
        """
        ...

    async def put_stream(self, name: str, chunks: AsyncIterator[bytes]) -> int:
        """Store the concatenation of `chunks` and answer its size in bytes.

        Memory stays bounded (a few parts of 8 MiB) whatever the size. When `chunks` raises, nothing
        is stored and the error passes through.
        """
        ...

    async def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """The object's bytes from `offset`, at most `length` of them (all the rest by default).

        Raises `NotFoundError`; `OutOfRangeError` when `offset` is beyond the end (at the end: `b""`).
        """
        ...

    def stream(self, name: str) -> AsyncIterator[bytes]:
        """The object in chunks of at most 1 MiB. Raises as `get` does, at the first step."""
        ...

    async def head(self, name: str) -> ObjectInfo:
        """Size and age of one object. Raises `NotFoundError`."""
        ...

    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Objects whose names begin with `prefix`, by name (byte order), after `start_after`."""
        ...

    async def delete(self, name: str) -> None:
        """Remove an object; one that is not there is no error."""
        ...

    async def check(self) -> None:
        """Return when the store can serve, else raise `UnavailableError` (used by health checks)."""
        ...

    async def close(self) -> None:
        """Release connections. Idempotent."""
        ...
