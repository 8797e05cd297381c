"""One suite for the `ObjectStore` port, over every adapter. The S3 adapter runs against a real MinIO, and against one
more S3 server of another make."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster

from cloudclaw.errors import InvalidArgumentError, NotFoundError, OutOfRangeError
from cloudclaw.objects.filesystem import FilesystemObjects
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.objects.port import ObjectStore
from cloudclaw.objects.s3 import S3Objects
from cloudclaw.objects.s3_client import S3Endpoint
from tests.support.minio_server import MinioServer
from tests.support.versity_server import VersityServer

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    server = MinioServer(tmp_path_factory.mktemp("minio"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def versity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VersityServer]:
    server = VersityServer(tmp_path_factory.mktemp("versity"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["memory", "filesystem", pytest.param("minio", marks=pytest.mark.minio), "versity"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    made: ObjectStore
    if request.param == "memory":
        made = MemoryObjects()
    elif request.param == "filesystem":
        made = FilesystemObjects(tmp_path / "objects")
    else:
        server: MinioServer | VersityServer = request.getfixturevalue(request.param)
        bucket = "b" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]
        made = S3Objects(
            S3Endpoint(bucket, server.endpoint, access_key=server.access_key, secret_key=server.secret_key, tls=False)
        )
    # A call that blocks the event loop from within the library fails the test.
    guard = BlockBuster(scanned_modules=["cloudclaw"])
    guard.activate()
    try:
        yield made
    finally:
        guard.deactivate()
        await made.close()
        await made.close()


def pattern(size: int) -> bytes:
    """Bytes that differ from block to block, so that a misplaced one shows."""
    return b"".join(number.to_bytes(4, "big") for number in range(-(-size // 4)))[:size]


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def names(store: ObjectStore, prefix: str = "", start_after: str = "") -> list[str]:
    return [info.name async for info in store.list(prefix, start_after=start_after)]


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, MIB + 3])
async def test_what_was_put_comes_back(store: ObjectStore, size: int) -> None:
    data = pattern(size)
    assert await store.put("a/object", data) is True
    assert await store.get("a/object") == data
    assert b"".join([chunk async for chunk in store.stream("a/object")]) == data
    info = await store.head("a/object")
    assert (info.name, info.size) == ("a/object", size)


async def test_put_replaces(store: ObjectStore) -> None:
    await store.put("a", b"old and longer")
    await store.put("a", b"new")
    assert await store.get("a") == b"new"
    assert (await store.head("a")).size == 3


async def test_conditional_put_leaves_an_existing_object_alone(store: ObjectStore) -> None:
    assert await store.put("a", b"first", if_absent=True) is True
    assert await store.put("a", b"second", if_absent=True) is False
    assert await store.get("a") == b"first"
    await store.delete("a")
    assert await store.put("a", b"third", if_absent=True) is True


async def test_one_of_eight_conditional_puts_wins(store: ObjectStore) -> None:
    for turn in range(5):
        name = f"race/{turn}"
        bodies = [pattern(1000) + bytes([number]) for number in range(8)]
        won = await asyncio.gather(*(store.put(name, body, if_absent=True) for body in bodies))
        assert won.count(True) == 1
        assert await store.get(name) == bodies[won.index(True)]


@pytest.mark.parametrize("size", [0, 5, MIB, 8 * MIB, 16 * MIB + 12_345])
async def test_a_stream_of_any_size_is_stored_whole(store: ObjectStore, size: int) -> None:
    data = pattern(size)
    assert await store.put_stream("s/tream", pieces(data, 777_777)) == size
    assert await store.get("s/tream") == data
    assert (await store.head("s/tream")).size == size
    chunks = [chunk async for chunk in store.stream("s/tream")]
    assert b"".join(chunks) == data
    assert all(0 < len(chunk) <= MIB for chunk in chunks)


@pytest.mark.parametrize("sent", [0, 1000, 9 * MIB])
async def test_a_stream_that_fails_leaves_nothing(store: ObjectStore, sent: int) -> None:
    class BrokenSourceError(Exception):
        pass

    async def broken() -> AsyncIterator[bytes]:
        async for piece in pieces(pattern(sent), MIB):
            yield piece
        raise BrokenSourceError

    await store.put("kept", b"before")
    for name in ("new", "kept"):
        with pytest.raises(BrokenSourceError):
            await store.put_stream(name, broken())
    assert await names(store) == ["kept"]
    assert await store.get("kept") == b"before"


async def test_a_stream_that_is_cancelled_leaves_nothing(store: ObjectStore) -> None:
    waiting = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield pattern(9 * MIB)
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(store.put_stream("new", endless()))
    await asyncio.wait_for(waiting.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await names(store) == []


async def test_a_reader_may_stop_in_the_middle(store: ObjectStore) -> None:
    await store.put("big", pattern(4 * MIB))
    for _ in range(20):  # more than there are connections or threads
        stream = store.stream("big")
        assert (await anext(stream))[:4] == b"\0\0\0\0"
        await stream.aclose()  # type: ignore[attr-defined]
    assert await store.get("big", offset=4, length=4) == b"\0\0\0\1"


async def test_listing_is_in_byte_order_and_by_prefix(store: ObjectStore) -> None:
    # No name is another's directory ("a" and "a/b"): MinIO stores such a pair and lists only "a".
    everything = sorted(
        ["a-b", "a.b", "a/b/c", "a/b-c", "a/c", "a0", "a=b", "aA", "a_", "b/1", "b/10", "b/2", "A", "0/0"]
    )
    for name in reversed(everything):
        await store.put(name, name.encode())
    assert await names(store) == everything
    for prefix in ("a", "a/", "a/b", "a/b/", "b/1", "c", "b", "A"):
        assert await names(store, prefix) == [name for name in everything if name.startswith(prefix)]
    for after in (*everything, "a/", "a/b/b", "b", "zzz"):
        assert await names(store, "", after) == [name for name in everything if name > after]
    assert await names(store, "a/", "a/b-c") == ["a/b/c", "a/c"]
    assert {info.name: info.size async for info in store.list("")} == {n: len(n) for n in everything}


async def test_listing_goes_on_beyond_a_page(store: ObjectStore) -> None:
    expected = [f"page/{number:05}" for number in range(1105)]
    gate = asyncio.Semaphore(16)

    async def put(name: str) -> None:
        async with gate:
            await store.put(name, b"x")

    await asyncio.gather(*map(put, expected))
    assert await names(store, "page/") == expected
    assert await names(store, "page/", expected[41]) == expected[42:]


async def test_missing_objects_are_not_found(store: ObjectStore) -> None:
    await store.put("there/x", b"x")
    for name in ("missing", "there", "there/x/y"):
        with pytest.raises(NotFoundError):
            await store.get(name)
        with pytest.raises(NotFoundError):
            await store.get(name, offset=3, length=0)
        with pytest.raises(NotFoundError):
            await anext(store.stream(name))
        with pytest.raises(NotFoundError):
            await store.head(name)
        await store.delete(name)
    assert await names(store, "missing/") == []
    assert await names(store) == ["there/x"]


async def test_a_deleted_object_is_gone(store: ObjectStore) -> None:
    await store.put("d/e/f", b"x")
    await store.put("d/g", b"y")
    await store.delete("d/e/f")
    assert await names(store) == ["d/g"]
    with pytest.raises(NotFoundError):
        await store.get("d/e/f")
    await store.put("d/e/f", b"again")
    assert await store.get("d/e/f") == b"again"


async def test_ranges(store: ObjectStore) -> None:
    data = pattern(200_000)
    await store.put("r", data)
    for offset in (0, 1, 65_535, 65_536, 131_072, 199_999, 200_000):
        for length in (0, 1, 2, 65_536, 70_000, 500_000, None):
            end = None if length is None else offset + length
            assert await store.get("r", offset=offset, length=length) == data[offset:end]
    for length in (0, 1, None):
        with pytest.raises(OutOfRangeError):
            await store.get("r", offset=200_001, length=length)
    await store.put("empty", b"")
    for length in (0, 1, None):
        assert await store.get("empty", length=length) == b""
    with pytest.raises(OutOfRangeError):
        await store.get("empty", offset=1)
    with pytest.raises(InvalidArgumentError):
        await store.get("r", offset=-1)
    with pytest.raises(InvalidArgumentError):
        await store.get("r", length=-1)


BAD_NAMES = [
    "", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "../a", "a/.", "a b", "a\0", "a\n", "a\\b", "a@", "ä",
    "a:b", "a*", "x" * 251, "/".join(["x" * 100] * 9),
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=range(len(BAD_NAMES)))
async def test_bad_names_are_refused(store: ObjectStore, name: str) -> None:
    async def consume(stream: AsyncIterator[bytes]) -> None:
        async for _ in stream:
            pass

    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.put(name, b"x"),
        lambda: store.put(name, b"x", if_absent=True),
        lambda: store.put_stream(name, pieces(b"x", 1)),
        lambda: store.get(name),
        lambda: consume(store.stream(name)),
        lambda: store.head(name),
        lambda: store.delete(name),
    ]
    for call in calls:
        with pytest.raises(InvalidArgumentError) as caught:
            await call()
        assert caught.value.field == "name"
    assert await names(store) == []


@pytest.mark.parametrize("prefix", ["/", "a//", "../", "a/../b", "a b", "a\0"])
async def test_bad_prefixes_are_refused(store: ObjectStore, prefix: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await names(store, prefix)
    assert caught.value.field == "prefix"


async def test_the_longest_names_work(store: ObjectStore) -> None:
    longest = "/".join(["s" * 250, "t" * 250, "u" * 250, "v" * 147])
    assert len(longest) == 900
    deep = "/".join(["d"] * 450)
    assert len(deep) == 899
    for name in (longest, deep, "...", "a..b", "=", "-", "_"):
        await store.put(name, name.encode())
        assert await store.get(name) == name.encode()
    assert await names(store) == sorted([longest, deep, "...", "a..b", "=", "-", "_"])


async def test_many_calls_at_once(store: ObjectStore) -> None:
    async def one(number: int) -> None:
        name, data = f"many/{number % 10}/{number}", pattern(number * 1000)
        await store.put(name, data)
        assert await store.get(name) == data
        if number % 3 == 0:
            await store.delete(name)

    await asyncio.gather(*(one(number) for number in range(60)))
    assert len(await names(store, "many/")) == 40


async def test_a_store_that_serves_passes_its_check(store: ObjectStore) -> None:
    await store.check()
    assert await names(store) == []
