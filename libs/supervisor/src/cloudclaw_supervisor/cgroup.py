"""The slot's control groups as its supervisor uses them: enter, freeze, and read what was hit.

The manager makes the groups, sets the limits and hands over the names of the files; the supervisor may
write only `cgroup.procs` and the freezer of its own slot.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


class Groups:
    """Files of one slot's groups, empty strings where the node has none.

    Attributes:
        procs: `cgroup.procs` of every group that a sandbox enters.
        freezer: `freezer.state` (v1) or `cgroup.freeze` (v2).
        freezer_state: where to read that all is frozen: the same file (v1) or `cgroup.events` (v2).
        oom: file with an `oom_kill N` line.
        pids_events: file with a `max N` line.
        unified: the freezer is that of cgroup v2. Said where the files' names do not tell.
    """

    def __init__(self, config: dict[str, Any]):
        self.procs: Sequence[str] = tuple(config.get("procs", ()))
        self.freezer: str = config.get("freezer", "")
        self.freezer_state: str = config.get("freezer_state", "")
        self.oom: str = config.get("oom", "")
        self.pids_events: str = config.get("pids_events", "")
        self.unified: bool = config.get("unified", self.freezer.endswith("cgroup.freeze"))
        self._open: dict[str, int] = {}

    def take(self, pid: int) -> None:
        """Move a process in; what it starts from then on is inside too."""
        for path in self.procs:
            _write(path, b"%d" % pid)

    def freeze(self) -> None:
        """Ask for a freeze; `frozen` says when it is done."""
        _write(self.freezer, b"1" if self.unified else b"FROZEN")

    def thaw(self) -> None:
        _write(self.freezer, b"0" if self.unified else b"THAWED")

    def frozen(self) -> bool:
        if self.unified:
            return _count(self.freezer_state, "frozen") == 1
        return _read(self.freezer_state).strip() == "FROZEN"

    def oom_kills(self) -> int:
        """Processes that the kernel killed here for memory, ever."""
        return self._counter(self.oom, "oom_kill") if self.oom else 0

    def refused_forks(self) -> int:
        """Forks that the kernel refused here for the number of processes, ever."""
        return self._counter(self.pids_events, "max") if self.pids_events else 0

    def _counter(self, path: str, key: str) -> int:
        """As `_count`, of a file that every attempt reads: it stays open."""
        fd = self._open.get(path)
        if fd is None:
            fd = self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return _find(os.pread(fd, 4096, 0).decode(), key)


def _write(path: str, data: bytes) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(data)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _count(path: str, key: str) -> int:
    return _find(_read(path), key)


def _find(text: str, key: str) -> int:
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0
