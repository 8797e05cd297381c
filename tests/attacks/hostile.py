"""What the attacks share: a canary outside of every tree, and a process that swaps things."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import zstandard

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
        """Nothing happened to it, and nothing stored has its content."""
        assert self._now() == self._facts, "somebody touched the canary"
        assert [path.name for path in self.folder.iterdir()] == ["canary"]
        for store in stores:
            await no_object_has(store, SECRET)


async def no_object_has(store: MemoryObjects, content: bytes) -> None:
    """No object of the store holds `content`, unpacked or as it is; the store's frames are looked into."""
    async for info in store.list(""):
        data = await store.get(info.name)
        assert content not in data, info.name
        while data.startswith(b"\x28\xb5\x2f\xfd"):
            inflate = zstandard.ZstdDecompressor().decompressobj()
            assert content not in inflate.decompress(data), info.name
            data = inflate.unused_data


_LOOP = """
import os, sys
tree, outside = sys.argv[1:3]
os.chdir(tree)
turn = 0
while True:
    turn += 1
    try:
        {body}
    except OSError:
        pass
    if turn == 3:
        print("racing", flush=True)
"""


class Racer:
    """A process that does something hostile in a tree over and over."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @asynccontextmanager
    async def pause(self) -> AsyncIterator[tuple[int, ...]]:
        """As a checkpoint's pause: it stands still within."""
        self._process.send_signal(signal.SIGSTOP)
        _, status = await asyncio.to_thread(os.waitpid, self._process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        try:
            yield ()
        finally:
            self._process.send_signal(signal.SIGCONT)


@contextmanager
def racing(tree: Path, outside: Path, body: str) -> Iterator[Racer]:
    """Repeat the lines of `body` in the folder `tree`, knowing `outside`, as fast as it goes, while the block runs.

    An `OSError` begins the next turn. The block begins after a few turns.
    """
    source = _LOOP.format(body=textwrap.indent(textwrap.dedent(body).strip(), " " * 8).strip())
    process = subprocess.Popen([sys.executable, "-c", source, str(tree), str(outside)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"racing\n"
        yield Racer(process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def plain(message: str) -> bool:
    """A message that cannot forge a line of a log, nor speak to a terminal."""
    return message.isprintable()
