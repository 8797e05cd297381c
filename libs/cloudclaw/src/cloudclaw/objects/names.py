"""Which object names are allowed: the port's rule, checked before any store is touched."""

from __future__ import annotations

import re
from typing import Final

from cloudclaw.errors import InvalidArgumentError

MAX_NAME: Final = 900
"""Bytes; S3 allows 1024, and an operator's bucket layout may put something in front."""

MAX_SEGMENT: Final = 250
"""Bytes; file systems, and S3 servers that keep objects in one, stop at 255."""

_SEGMENTS: Final = re.compile(r"[A-Za-z0-9._=-]+(/[A-Za-z0-9._=-]+)*")
_PREFIX: Final = re.compile(r"([A-Za-z0-9._=-]+/)*[A-Za-z0-9._=-]*")


def check_object_name(name: str) -> str:
    """`name` when it may name an object, otherwise `InvalidArgumentError(field="name")`."""
    segments = name.split("/")
    if (
        len(name) > MAX_NAME
        or not _SEGMENTS.fullmatch(name)
        or any(segment in (".", "..") or len(segment) > MAX_SEGMENT for segment in segments)
    ):
        raise InvalidArgumentError(
            f"an object's name is 1 to {MAX_NAME} bytes in segments of [A-Za-z0-9._=-] (each at most"
            f" {MAX_SEGMENT}, none '.' or '..') joined by '/'; got {name[:80]!r}",
            field="name",
        )
    return name


def check_prefix(prefix: str) -> str:
    """`prefix` when an object's name can begin with it (the empty one included), else an error.

    Raises `InvalidArgumentError(field="prefix")`.
    """
    # The last step may still grow, so only the finished ones must not be dots.
    finished = prefix.split("/")[:-1]
    if len(prefix) > MAX_NAME or not _PREFIX.fullmatch(prefix) or any(segment in (".", "..") for segment in finished):
        raise InvalidArgumentError(f"no object's name can begin with {prefix[:80]!r}", field="prefix")
    return prefix


def check_range(offset: int, length: int | None) -> None:
    """Refuse a negative offset or length: `InvalidArgumentError` for that field."""
    if offset < 0:
        raise InvalidArgumentError(f"must not be negative; got {offset}", field="offset")
    if length is not None and length < 0:
        raise InvalidArgumentError(f"must not be negative; got {length}", field="length")
