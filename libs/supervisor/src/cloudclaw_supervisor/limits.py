"""What an attempt has hit of its limits, looked at every half second and once more at its end."""

from __future__ import annotations

import os
import sys

from cloudclaw_supervisor import disk, processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloudclaw_supervisor.cgroup import Groups
    from cloudclaw_supervisor.sandbox import Sandbox

_ENTRIES_AT_ONCE = 500
_SCAN_INTERVAL = 1.0

MEMORY, PIDS, DISK = "memory_limit", "pids_limit", "disk_limit"


class Watch:
    """Looks at one attempt.

    Args:
        groups: counters of the kernel.
        sandbox: whose processes are looked at.
        roots: directories whose bytes count against `disk_bytes`.
        disk_bytes: limit of `roots` together, and of deleted files that are still open.
        memory_bytes: limit of resident memory where no group holds it, else 0.
        bwrap: path of bubblewrap, for `disk.HiddenScan`.

    Attributes:
        disk_used: bytes found by the last complete pass.
    """

    def __init__(
        self, groups: Groups, sandbox: Sandbox, roots: list[str], disk_bytes: int, memory_bytes: int, bwrap: str
    ):
        self._groups = groups
        self._sandbox = sandbox
        self._roots = roots
        self._disk_bytes = disk_bytes
        self._memory_bytes = memory_bytes
        self._oom_kills = groups.oom_kills()
        self._refused_forks = groups.refused_forks()
        self._bwrap = bwrap
        self._free_at_scan = disk.free_bytes(roots[0])
        self._scan: disk.Scan | None = None
        self._hidden_scan: disk.HiddenScan | None = None
        self._said_hidden = False
        self._next_scan = 0.0
        self._scan_began = 0.0
        self.disk_used = 0

    def oom_killed(self) -> bool:
        """The kernel killed a process of this attempt for memory."""
        return self._groups.oom_kills() > self._oom_kills

    def kernel_limit(self) -> str:
        """The limit that the kernel enforced on this attempt, empty for none."""
        if self.oom_killed():
            return MEMORY
        if self._groups.refused_forks() > self._refused_forks:
            return PIDS
        return ""

    def look(self) -> str:
        """The limit that was hit, empty for none."""
        hit = self.kernel_limit()
        if not hit and self._memory_bytes:
            inside = self._sandbox.inside()
            if processes.resident_bytes(inside) > self._memory_bytes:
                hit = MEMORY
        return hit

    @property
    def scanning(self) -> bool:
        """A pass over the disk is under way: call `look_at_disk` again soon."""
        return self._scan is not None

    def look_at_disk(self, now: float) -> str:
        """One small step of the pass over the disk; `DISK` when it found too much.

        A pass starts only when the file system's free space moved since the last one, at most once a
        second, and not before ten times the length of the last pass went by. The file system's free space is
        no evidence by itself: neighbours use it too.
        """
        if self._hidden_scan is not None:
            return self._look_at_hidden(now, self._hidden_scan)
        if self._scan is None:
            free = disk.free_bytes(self._roots[0])
            if now < self._next_scan or (free == self._free_at_scan and self._next_scan):
                return ""
            self._free_at_scan = free
            self._scan = disk.Scan(self._roots)
            self._scan_began = now
        scan = self._scan
        complete = scan.step(_ENTRIES_AT_ONCE)
        if not complete:
            return DISK if scan.total > self._disk_bytes else ""
        self._scan = None
        if scan.hidden and scan.total <= self._disk_bytes:
            self._hidden_scan = disk.HiddenScan(self._bwrap, self._roots, scan.total)
            return ""
        return self._counted(now, scan.total)

    def close(self) -> None:
        """The attempt ended: end a pass that is under way."""
        if self._hidden_scan is not None:
            self._hidden_scan.close()
            self._hidden_scan = None

    def _look_at_hidden(self, now: float, scan: disk.HiddenScan) -> str:
        if not scan.done():
            return ""
        self.close()
        if not scan.complete and not self._said_hidden:
            self._said_hidden = True
            sys.stderr.write("disk: directories without permissions could not be counted\n")
        return self._counted(now, scan.total)

    def _counted(self, now: float, total: int) -> str:
        self._next_scan = now + max(_SCAN_INTERVAL, 10 * (now - self._scan_began))
        self.disk_used = total + processes.deleted_bytes(self._sandbox.inside(), _device(self._roots[0]))
        return DISK if self.disk_used > self._disk_bytes else ""


def _device(path: str) -> int:
    return os.stat(path).st_dev
