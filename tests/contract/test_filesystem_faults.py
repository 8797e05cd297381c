"""What the file system store promises when its disk breaks: damage, full disks, dead writers."""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloudclaw.errors import DataLossError, QuotaExceededError, UnavailableError
from cloudclaw.objects import blockfile
from cloudclaw.objects.filesystem import FilesystemObjects
from tests.support.stores import consume, is_unavailable, listed, pieces

MIB = 1024 * 1024


async def test_a_directory_that_vanished_is_unavailable_and_not_empty(tmp_path: Path) -> None:
    store = FilesystemObjects(tmp_path / "root")
    await store.put("kept", b"before")
    shutil.move(tmp_path / "root", tmp_path / "away")
    await is_unavailable(store, 5.0)
    assert not (tmp_path / "root").exists(), "an unmounted disk's place must stay empty"
    shutil.move(tmp_path / "away", tmp_path / "root")
    assert await store.get("kept") == b"before"
    await store.put("new", b"x")
    await store.close()


async def test_a_directory_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnavailableError):
        FilesystemObjects(tmp_path / "file" / "root")


async def damage(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x40
    path.write_bytes(data)


SIZE = 3 * 65_536 + 1000
FILE_SIZE = SIZE + 4 * 4 + 20


@pytest.mark.parametrize("position", [0, 65_536, SIZE - 1, SIZE, SIZE + 15, SIZE + 16, SIZE + 24, FILE_SIZE - 1])
async def test_a_flipped_bit_in_a_file_is_found(tmp_path: Path, position: int) -> None:
    store = FilesystemObjects(tmp_path)
    await store.put("a/b", bytes(SIZE))
    path = tmp_path / "objects" / "a" / "b@"
    assert path.stat().st_size == FILE_SIZE
    await damage(path, position)
    with pytest.raises(DataLossError, match="a/b"):
        await store.get("a/b")
    with pytest.raises(DataLossError, match="a/b"):
        await consume(store, "a/b")
    await store.close()


async def test_a_range_is_judged_by_its_own_blocks(tmp_path: Path) -> None:
    store = FilesystemObjects(tmp_path)
    await store.put("a", bytes(SIZE))
    await damage(tmp_path / "objects" / "a@", 70_000)
    assert await store.get("a", offset=0, length=65_536) == bytes(65_536)
    assert await store.get("a", offset=131_072) == bytes(SIZE - 131_072)
    with pytest.raises(DataLossError):
        await store.get("a", offset=65_535, length=2)
    await store.close()


@pytest.mark.parametrize("left", [0, 1, 19, 20, 1000, 65_560, 65_561, SIZE, SIZE + 16, FILE_SIZE - 1])
async def test_a_truncated_file_is_found(tmp_path: Path, left: int) -> None:
    store = FilesystemObjects(tmp_path)
    await store.put("a", bytes(SIZE))
    with (tmp_path / "objects" / "a@").open("r+b") as file:
        file.truncate(left)
    for call in (store.get("a"), store.get("a", offset=0, length=1), consume(store, "a"), store.head("a")):
        with pytest.raises(DataLossError, match="a"):
            await call
    await store.close()


async def test_a_full_disk_is_a_quota_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FilesystemObjects(tmp_path)
    await store.put("kept", b"before")

    def full(fd: int, view: memoryview) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(blockfile, "_write_all", full)
        for call in (store.put("kept", b"x"), store.put_stream("new", pieces(b"x"))):
            with pytest.raises(QuotaExceededError) as caught:
                await call
            assert caught.value.reason == "OBJECT_STORE_FULL"
        with pytest.raises(UnavailableError):
            await store.check()
    assert await listed(store) == ["kept"]
    assert await store.get("kept") == b"before"
    assert list((tmp_path / "tmp").iterdir()) == []
    await store.close()


async def test_a_start_removes_what_dead_writers_left_and_nothing_else(tmp_path: Path) -> None:
    store = FilesystemObjects(tmp_path)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield bytes(2 * MIB)
        begun.set()
        await go_on.wait()
        yield b"end"

    writing = asyncio.create_task(store.put_stream("slow", slow()))
    await asyncio.wait_for(begun.wait(), 10)
    abandoned = tmp_path / "tmp" / "abandoned"
    abandoned.write_bytes(b"half")
    other = FilesystemObjects(tmp_path)
    assert not abandoned.exists()
    go_on.set()
    assert await writing == 2 * MIB + 3
    assert len(await other.get("slow")) == 2 * MIB + 3
    await store.close()
    await other.close()


async def test_emptied_directories_go_and_racing_writers_do_not_mind(tmp_path: Path) -> None:
    store = FilesystemObjects(tmp_path)

    async def put_and_delete(number: int) -> None:
        for _ in range(25):
            await store.put(f"x/y/z/{number}", b"x")
            await store.delete(f"x/y/z/{number}")

    await asyncio.gather(*(put_and_delete(number) for number in range(8)))
    assert list((tmp_path / "objects").iterdir()) == []
    await store.close()


async def test_an_object_and_a_directory_may_share_a_name_in_files(tmp_path: Path) -> None:
    store = FilesystemObjects(tmp_path)
    everything = sorted(["a", "a-b", "a.b", "a/b", "a/b/c", "a0"])
    for name in everything:
        await store.put(name, name.encode())
    assert await listed(store) == everything
    assert [await store.get(name) for name in everything] == [name.encode() for name in everything]
    await store.close()
