"""Acting on files as another user, in one thread."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_QUERY: Final = ctypes.c_uint(0xFFFFFFFF)


@contextmanager
def acting_as(uid: int | None) -> Iterator[None]:
    """Within the block this thread's file operations are those of `uid` (and the group of that number).

    What is created belongs to `uid` from its first moment, and root's right to pass permission checks is laid down.
    With None, or the own uid, nothing changes. Only root may name another; raises `PermissionError` otherwise.
    """
    if uid is None or uid == os.geteuid():
        yield
        return
    try:
        _set(_libc.setfsgid, uid)
        _set(_libc.setfsuid, uid)
        yield
    finally:
        _set(_libc.setfsuid, os.geteuid())
        _set(_libc.setfsgid, os.getegid())


def _set(call: ctypes._NamedFuncPointer, number: int) -> None:
    """These calls answer the former id and report no failure, so ask again what holds."""
    call(ctypes.c_uint(number))
    if call(_QUERY) != number:
        raise PermissionError(f"may not act on files as {number}")
