"""Page sizes and page tokens."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Final

import msgspec

from cloudclaw.errors import InvalidArgumentError

DEFAULT_SIZE: Final = 100
MAX_SIZE: Final = 1000


class _Token(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    scope: str
    cursor: tuple[str, ...]


def page_size(wanted: int) -> int:
    """The size to use; 0 means the default. Raises `InvalidArgumentError(field="page_size")`."""
    if not 0 <= wanted <= MAX_SIZE:
        raise InvalidArgumentError(f"must be 0 (for {DEFAULT_SIZE}) to {MAX_SIZE}, got {wanted}", field="page_size")
    return wanted or DEFAULT_SIZE


def encode(scope: tuple[str, ...], cursor: tuple[str, ...]) -> str:
    """An opaque token that goes on after `cursor`, in a listing of `scope` (kind, tenant and what was asked for)."""
    return base64.urlsafe_b64encode(msgspec.json.encode(_Token(_hash(scope), cursor))).decode("ascii").rstrip("=")


def decode(scope: tuple[str, ...], token: str, length: int) -> tuple[str, ...] | None:
    """The cursor of `length` parts in `token`; None for no token.

    Raises `InvalidArgumentError(field="page_token")` for one that is not of this listing.
    """
    if not token:
        return None
    try:
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        found = msgspec.json.decode(base64.b64decode(padded, altchars=b"-_", validate=True), type=_Token)
    except (UnicodeEncodeError, binascii.Error, msgspec.DecodeError) as error:
        raise InvalidArgumentError("not a page token of this service", field="page_token") from error
    if found.scope != _hash(scope) or len(found.cursor) != length:
        raise InvalidArgumentError("a page token goes with the request that it came from", field="page_token")
    return found.cursor


def _hash(scope: tuple[str, ...]) -> str:
    return hashlib.sha256(msgspec.json.encode(scope)).hexdigest()[:16]
