"""Bytes that a tree takes on disk, counted in small steps between other work of the loop."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


_OWNER_READS = (
    # The same namespaces as a sandbox's: in a container no other set may be made.
    *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net", "--uid", "0", "--gid", "0"),
    *("--dev-bind", "/", "/", "--cap-drop", "ALL", "--cap-add", "CAP_DAC_READ_SEARCH"),
    *("--as-pid-1", "--new-session", "--die-with-parent"),
)


class Scan:
    """One pass over `roots`. Symlinks are counted, never followed; hard links count once.

    Attributes:
        total: bytes found so far.
        hidden: directories that could not be read: their owner took the permission away.
    """

    def __init__(self, roots: Sequence[str]):
        self.total = 0
        self.hidden = 0
        self._linked: set[int] = set()
        self._entries = self._walk(roots)

    def step(self, entries: int) -> bool:
        """Look at about `entries` more; True when the pass is complete."""
        return any(next(self._entries, None) is None for _ in range(entries))

    def _walk(self, roots: Sequence[str]) -> Iterator[bool]:
        # A directory is opened relative to its parent's descriptor, so no depth of nesting and no
        # swapped symlink leads anywhere else; one descriptor a level is open at a time.
        for root in roots:
            try:
                fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except OSError:
                self.hidden += 1
                continue
            yield from self._directory(fd, 0)

    def _directory(self, fd: int, depth: int) -> Iterator[bool]:
        try:
            if depth > 200:  # deeper than any sane tree and near the descriptor limit
                self.hidden += 1
                return
            with os.scandir(fd) as entries:
                for entry in entries:
                    yield True
                    try:
                        status = entry.stat(follow_symlinks=False)
                        if not self._count(status):
                            continue
                        child = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                    except FileNotFoundError:
                        continue  # removed while we look
                    except OSError:
                        self.hidden += 1
                        continue
                    yield from self._directory(child, depth + 1)
        finally:
            os.close(fd)

    def _count(self, status: os.stat_result) -> bool:
        """Add one entry; True when it is a directory to descend into."""
        if stat.S_ISDIR(status.st_mode):
            self.total += status.st_blocks * 512
            return True
        if status.st_nlink > 1:
            if status.st_ino in self._linked:
                return False
            self._linked.add(status.st_ino)
        self.total += status.st_blocks * 512
        return False


class HiddenScan:
    """One pass that counts what a `Scan` could not: directories without permissions, and any depth.

    The supervisor is the files' owner, and an owner may read everything in a user namespace of its own. So
    this is du(1) under bubblewrap, as a process beside the loop: poll `done`, then `close`.

    Args:
        bwrap: path of bubblewrap.
        roots: as `Scan`'s.
        visible: what a `Scan` found; the total is never less.

    Attributes:
        total: bytes found, when it is done.
        complete: du counted everything that it was asked for.
    """

    def __init__(self, bwrap: str, roots: Sequence[str], visible: int):
        self.total = visible
        self.complete = False
        self._data = b""
        self._output, output = os.pipe()
        os.set_blocking(self._output, False)
        self._pidfd = -1
        try:
            pid = os.posix_spawn(
                bwrap,
                ["bwrap", *_OWNER_READS, "--", "du", "-skc", "--", *roots],
                {"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, output, 1),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD],
            )
            # The loop reaps every child, so the pid alone would not be safe to signal.
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:  # no room for a process: this pass counts what is visible, the next tries again
            sys.stderr.write(f"disk: no scan of hidden directories: {error}\n")
        finally:
            os.close(output)

    def done(self) -> bool:
        """The pass is over. Never blocks."""
        while True:
            try:
                data = os.read(self._output, 4096)
            except BlockingIOError:
                return False
            if not data:
                break
            self._data += data
        last = self._data.splitlines()[-1:]
        if last and last[0].endswith(b"\ttotal"):
            self.total = max(self.total, int(last[0].split(b"\t")[0]) * 1024)
            self.complete = True
        return True

    def close(self) -> None:
        """End it, if it still runs."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.close(self._pidfd)
        os.close(self._output)


def free_bytes(path: str) -> int:
    """Free bytes of the file system that holds `path`."""
    status = os.statvfs(path)
    return status.f_bfree * status.f_frsize
