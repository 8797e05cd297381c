"""Processes that look at a tree again (see `rescan`)."""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
from typing import IO, Final

import structlog

from cloudclaw.snapshots.rescan import Difference, Listing, framed, read_framed, rescan

FEW: Final = 4000
"""Smaller trees are looked at here: that takes 8 ms at most."""
_PROCESSES: Final = min(4, os.cpu_count() or 1)

_log = structlog.get_logger()


class Sentries:
    """Looks at the open tree `root` again, once; with processes of its own where that is faster. A context manager,
    whose end ends them. For one thread at a time, but for `kill`.

    `most`: entries that a tree may have. Processes that fail cost time, nothing else: this one does their work.
    """

    def __init__(self, root: int, most: int) -> None:
        self._root = root
        self._most = most
        self._listing: Listing = {}
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Sentries:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    _shut(pipe)

    def start(self, entries: int) -> None:
        """Start the processes ahead of time, for a tree of about as many entries."""
        if self._processes or entries < FEW or _PROCESSES < 2:
            return
        try:
            for _ in range(_PROCESSES):
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-I", "-m", "cloudclaw.snapshots.rescan", str(self._root)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        pass_fds=(self._root,),
                        cwd="/",
                        env={},
                    )
                )
        except OSError as error:
            _log.warning("no process can be started to look at a tree", error=str(error))
            self.kill()

    def post(self, listing: Listing) -> None:
        """Hand out the listing, and wait until all is ready to look."""
        self._listing = listing
        self.start(sum(map(len, listing.values())))
        if not self._processes:
            return
        try:
            for process, part in zip(self._processes, _parts(listing, len(self._processes)), strict=True):
                stdin, _ = _pipes(process)
                stdin.write(framed(marshal.dumps((self._most, part))))
                stdin.flush()
            for process in self._processes:
                if not _pipes(process)[1].read(1):
                    raise EOFError("a process ended before it was ready")
        except (OSError, EOFError) as error:
            self._failed(error)

    def look(self) -> list[Difference]:
        """What differs by now. Raises as `rescan`."""
        if not self._processes or any(process.poll() is not None for process in self._processes):
            return rescan(self._root, self._listing, self._most)
        try:
            for process in self._processes:
                stdin, _ = _pipes(process)
                stdin.write(b"g")
                stdin.flush()
            found: list[Difference] = []
            for process in self._processes:
                found += marshal.loads(read_framed(_pipes(process)[1].read))  # noqa: S302 - from our own process
            return found
        except (OSError, EOFError) as error:
            self._failed(error)
            return rescan(self._root, self._listing, self._most)

    def kill(self) -> None:
        """End the processes at once, so that nobody waits for them any longer."""
        for process in self._processes:
            process.kill()

    def _failed(self, error: Exception) -> None:
        _log.warning("a process that looks at a tree failed", error=str(error))
        self.kill()
        for process in self._processes:
            process.wait()


def _parts(listing: Listing, count: int) -> list[dict[bytes, dict[str, tuple[int, int]]]]:
    """The listing in `count` parts of about as many entries, each directory in one."""
    parts: list[dict[bytes, dict[str, tuple[int, int]]]] = [{} for _ in range(count)]
    total, at = sum(len(names) + 1 for names in listing.values()), 0
    for path, names in listing.items():
        parts[at * count // total if total else 0][path] = dict(names)
        at += len(names) + 1
    return parts


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    if process.stdin is None or process.stdout is None:
        raise EOFError("the process has no pipes")
    return process.stdin, process.stdout


def _shut(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        _log.debug("a process that looks at a tree left before it read all")
