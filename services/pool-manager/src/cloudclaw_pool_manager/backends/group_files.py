"""Reading a control group's files, and taking groups down."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

_EMPTY_WITHIN = 10.0


def ignoring(*numbers: int) -> contextlib.AbstractContextManager[None]:
    """Swallow an OSError with one of `numbers`."""

    @contextlib.contextmanager
    def guard() -> Any:
        try:
            yield
        except OSError as error:
            if error.errno not in numbers:
                raise

    return guard()


def read_int(path: Path) -> int:
    """The number in a cgroup file."""
    return int(path.read_text())


def pids_in(group: Path) -> list[int]:
    """Processes in a group."""
    return [int(line) for line in (group / "cgroup.procs").read_text().split()]


def kill_all(pids: list[int]) -> None:
    """SIGKILL to each that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def remove_empty(group: Path) -> None:
    """Remove a group without processes; one that is still being reaped keeps it busy for a moment.

    A sandbox that its supervisor began to build just before it was killed may enter late, and is killed too.

    Raises:
        OSError: it is still busy after ten seconds.
    """
    limit = time.monotonic() + _EMPTY_WITHIN
    while True:
        try:
            group.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > limit:
                raise
            kill_all(pids_in(group))
            time.sleep(0.001)
        else:
            return


def until_empty(group: Path, thaw: Path | None = None) -> None:
    """Kill what is in `group`, again and again, until nothing is.

    Raises:
        OSError: something did not die within ten seconds.
    """
    limit = time.monotonic() + _EMPTY_WITHIN
    while True:
        pids = pids_in(group)
        if not pids:
            return
        if time.monotonic() > limit:
            raise OSError(errno.EBUSY, f"processes {pids} do not die", str(group))
        kill_all(pids)
        if thaw is not None:
            thaw.write_text("THAWED")
        time.sleep(0.001)
