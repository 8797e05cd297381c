"""Looking at, and doing violence to, processes by id."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path


async def eventually(
    what: str, check: Callable[[], bool] | Callable[[], Awaitable[bool]], deadline: float = 30.0
) -> None:
    """Return as soon as `check` holds; fail after `deadline` seconds, naming `what`."""
    end = time.monotonic() + deadline
    while True:
        held = check()
        if not isinstance(held, bool):
            held = await held
        if held:
            return
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline} s: {what}")
        await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    """The process exists and is not a zombie."""
    try:
        return state(pid) not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def with_variable(name: str) -> list[int]:
    """Processes of this machine that have the environment variable, as far as they may be looked at."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{name}=".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def state(pid: int) -> str:
    """The one-letter state of a process, as in `/proc/PID/stat`."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat[stat.rindex(")") + 2]


def with_marker(marker: str) -> list[int]:
    """Ids of living processes that have `marker` in their command line (this one excepted)."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            line = Path(f"/proc/{entry}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if marker.encode() in line and alive(int(entry)):
            found.append(int(entry))
    return found


def kill(*pids: int, signum: int = signal.SIGKILL) -> None:
    """Send `signum` to each; one that is gone already is no error."""
    for pid in pids:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            continue
