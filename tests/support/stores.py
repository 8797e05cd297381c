"""Calling everything that an object store has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine

import pytest

from cloudclaw.errors import UnavailableError
from cloudclaw.objects.port import ObjectStore

MIB = 1024 * 1024


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    """`data` as a stream."""
    for start in range(0, len(data), MIB):
        yield data[start : start + MIB]


async def consume(store: ObjectStore, name: str) -> bytes:
    """A whole object, by its stream."""
    return b"".join([chunk async for chunk in store.stream(name)])


async def listed(store: ObjectStore) -> list[str]:
    """The names of all objects."""
    return [info.name async for info in store.list("")]


def every_call(store: ObjectStore) -> list[Callable[[], Coroutine[object, object, object]]]:
    """Each call once, for a store that may hold `kept`."""
    return [
        lambda: store.put("new", b"x"),
        lambda: store.put("new", b"x", if_absent=True),
        lambda: store.put_stream("new", pieces(b"x")),
        lambda: store.put_stream("new", pieces(bytes(9 * MIB))),
        lambda: store.get("kept"),
        lambda: store.get("kept", offset=1, length=1),
        lambda: consume(store, "kept"),
        lambda: store.head("kept"),
        lambda: listed(store),
        lambda: store.delete("kept"),
        store.check,
    ]


async def is_unavailable(store: ObjectStore, seconds: float) -> None:
    """Every call says so, each within `seconds`."""
    for call in every_call(store):
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(call(), seconds)
