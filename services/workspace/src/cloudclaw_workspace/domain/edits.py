"""What a user's write is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PutFile:
    """A file begins; its content follows as `Data`. `path` is relative to the workspace."""

    path: bytes
    mode: int


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of the file that began last."""

    content: bytes


@dataclass(frozen=True, slots=True)
class Remove:
    """A path goes, with all below it."""

    path: bytes


Edit = PutFile | Data | Remove
