"""Processes of a sandbox seen from outside, by walking down from bubblewrap's own process.

Orphans inside are adopted by the sandbox's first process, so the walk finds all of them.
"""

from __future__ import annotations

import os
import signal

_STOPPED = frozenset("TtZX")


def children(pid: int) -> list[int]:
    """Direct children of all threads of `pid`; empty when it is gone."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += [int(word) for word in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return found  # it ended while we looked
    return found


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, parents first."""
    found = children(pid)
    for child in found:
        found.extend(children(child))  # grows while we walk
    return found


def send(pids: list[int], number: int) -> None:
    """Signal each of `pids`; those that have ended already are left out."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def stop_all(pid: int, accept_waiting: bool) -> bool:
    """One round of SIGSTOP over everything below `pid`; True when all of it stood still already.

    Args:
        accept_waiting: take an uninterruptible wait for standing still. A parent in vfork(2) waits so
            for its stopped child, for ever; with SIGSTOP pending it runs no more code of its own.
    """
    pids = descendants(pid)
    still = _STOPPED | {"D"} if accept_waiting else _STOPPED
    states = [(child, _state(child)) for child in pids]
    send([child for child, state in states if state not in _STOPPED], signal.SIGSTOP)
    return all(state in still for _, state in states) and descendants(pid) == pids


def resident_bytes(pids: list[int]) -> int:
    """Resident memory of `pids`; pages that they share are counted for each."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm") as file:
                total += int(file.read().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total * os.sysconf("SC_PAGE_SIZE")


def deleted_bytes(pids: list[int], device: int) -> int:
    """Bytes of files on `device` that `pids` hold open after their last name was removed."""
    seen: dict[int, int] = {}
    for pid in pids:
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                status = os.stat(f"/proc/{pid}/fd/{fd}")
                if status.st_nlink == 0 and status.st_dev == device:
                    seen[status.st_ino] = status.st_blocks * 512
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended, or not dumpable: the first process, which opens no files
    return sum(seen.values())


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
