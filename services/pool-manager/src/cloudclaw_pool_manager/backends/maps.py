"""Which files the processes of a sandbox have mapped, as the kernel tells in `/proc/PID/maps`."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from typing import Final

from cloudclaw_pool_manager.ports.backend import EVERY_INODE
from cloudclaw_supervisor.processes import descendants

READ_LIMIT: Final = 8 << 20
"""Bytes of all processes' maps together: some 100,000 mappings, which an honest task is far from."""

_AT_ONCE: Final = 1 << 16
_SHARED: Final = re.compile(rb"^[0-9a-f]+-[0-9a-f]+ ...s [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ ([1-9][0-9]*)", re.M)
"""`address perms offset device inode path`, with an inode: anonymous shared memory has none. Whatever may be done
there now: a page that was written before its mapping was protected is written again, once it may be, without a fault,
and so without a trace in the file's times."""


def shared_maps(supervisor: int, pids: Sequence[int] | None) -> Collection[int]:
    """Inodes that processes of a frozen sandbox have mapped shared; `EVERY_INODE` where that cannot be told
    (`Slot.mapped`).

    Args:
        supervisor: host pid of the slot's supervisor.
        pids: processes of the sandbox; None: find them by walking down from the supervisor.
    """
    found: set[int] = set()
    room = READ_LIMIT
    for pid in descendants(supervisor) if pids is None else pids:
        try:
            data = _maps(pid, room)
        except (FileNotFoundError, ProcessLookupError):
            continue  # gone, and its memory with it
        except PermissionError:
            if _is_ours(pid, supervisor):
                continue
            return EVERY_INODE
        room -= len(data)
        if room <= 0:
            return EVERY_INODE
        found.update(map(int, _SHARED.findall(data)))
    return found


def _maps(pid: int, room: int) -> bytes:
    """The maps of a process, or somewhat more than their first `room` bytes."""
    parts: list[bytes] = []
    descriptor = os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while room > 0 and (data := os.read(descriptor, _AT_ONCE)):
            parts.append(data)
            room -= len(data)
    finally:
        os.close(descriptor)
    return b"".join(parts)


def _is_ours(pid: int, supervisor: int) -> bool:
    """Bubblewrap, or the first process below it: they have nothing of the tree mapped, and nobody may look."""
    parent = _parent(pid)
    return supervisor in (parent, _parent(parent))


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
