"""The format of a spool file: frames one after another, each a header and its bytes.

Written by the supervisor and read by the pool-manager, which treats it as hostile. A file is named
`{offset of its first byte:020d}.log`; a frame that is not complete yet ends the readable part.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct("<QBxxxIQ")
"""Offset of the first byte in the attempt's log, stream number, length, wall clock in nanoseconds."""

MAX_PAYLOAD = 1 << 20
"""Bytes of one frame at most; a reader refuses more."""

STDOUT, STDERR, SYSTEM = 1, 2, 3


def file_name(offset: int) -> str:
    """Name of the spool file that begins at byte `offset` of the log."""
    return f"{offset:020d}.log"


def file_offset(name: str) -> int | None:
    """Where the spool file `name` begins, or None when it is no spool file."""
    stem, dot, suffix = name.partition(".")
    if len(stem) != 20 or not stem.isdigit() or (dot, suffix) != (".", "log"):
        return None
    return int(stem)
