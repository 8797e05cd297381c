"""What the attacks share: a canary outside of every tree, and a process that swaps things."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cloudclaw.objects.memory import MemoryObjects

SECRET = b"the host's own secret: 5f1d0c7e"


class Canary:
    """A folder beside the trees with one file, which must never be read, changed, or removed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "canary"
        folder.mkdir()
        self.file.write_bytes(SECRET)
        self.file.chmod(0o640)
        os.utime(self.file, ns=(1, 2_000_000_000))
        self._facts = self._now()

    def _now(self) -> tuple[object, ...]:
        status, above = self.file.lstat(), self.folder.lstat()
        times = (status.st_mtime_ns, status.st_ctime_ns, status.st_atime_ns)
        return (status.st_ino, status.st_mode, status.st_uid, status.st_size, *times, above.st_mode, above.st_mtime_ns)

    async def check(self, *stores: MemoryObjects) -> None:
        """Nothing happened to it, and nothing stored has its content or its name's neighbour."""
        assert self._now() == self._facts, "somebody touched the canary"
        assert [path.name for path in self.folder.iterdir()] == ["canary"]
        for store in stores:
            await no_object_has(store, SECRET)


async def no_object_has(store: MemoryObjects, content: bytes) -> None:
    """No object of the store holds `content`, unpacked or as it is; the store's frames are looked into."""
    import zstandard

    async for info in store.list(""):
        data = await store.get(info.name)
        assert content not in data, info.name
        while data.startswith(b"\x28\xb5\x2f\xfd"):
            inflate = zstandard.ZstdDecompressor().decompressobj()
            assert content not in inflate.decompress(data), info.name
            data = inflate.unused_data


def swapper(work: Callable[[], None]) -> None:
    """Do `work` over and over, until killed; what is in the way for a moment does not stop it."""
    while True:
        try:
            work()
        except OSError:
            continue


@contextmanager
def racing(work: Callable[[], None]) -> Iterator[None]:
    """A process of its own that repeats `work` as fast as it can while the block runs."""
    process = multiprocessing.get_context("fork").Process(target=swapper, args=(work,), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()
