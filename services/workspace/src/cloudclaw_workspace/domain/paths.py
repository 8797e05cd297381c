"""Paths as users write them, and as trees hold them."""

from __future__ import annotations

import re
from typing import Final

from cloudclaw.snapshots.port import WORKSPACE
from cloudclaw.snapshots.safe import check_path

TOP: Final = WORKSPACE.encode()
PREFIX: Final = TOP + b"/"
_ESCAPE: Final = re.compile(r"%[89A-F][0-9A-F]")


def to_tree(path: str) -> bytes:
    """The place in a tree of a path relative to the workspace. Raises `InvalidArgumentError(field="path")`."""
    return PREFIX + check_path(path.encode())


def candidates(path: str) -> list[bytes]:
    """Places that a path may mean when something is looked up: as it stands first, then with `%XX` for bytes that are
    not UTF-8, as listings show them."""
    exact = to_tree(path)
    return [exact, PREFIX + check_path(_unescape(path))] if _ESCAPE.search(path) else [exact]


def to_user(path: bytes) -> bytes:
    """The path relative to the workspace of a place in a tree."""
    return path[len(PREFIX) :]


def _unescape(path: str) -> bytes:
    return re.sub(rb"%([89A-F][0-9A-F])", lambda found: bytes([int(found[1], 16)]), path.encode())
