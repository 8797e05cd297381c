"""Identifiers and the names that tenants may choose."""

from __future__ import annotations

import base64
import re
import secrets
from typing import Final

from cloudclaw.errors import InvalidArgumentError

NAME_PATTERN: Final = r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?"
"""Names of tenants, workspaces, pools and nodes: a DNS-like label of 1 to 63 characters.

They are parts of etcd keys and object names, so nothing that separates those is allowed.
"""

_NAME: Final = re.compile(NAME_PATTERN)
_OPAQUE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_FROM_BASE32: Final = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", b"0123456789abcdefghjkmnpqrstvwxyz")


def new_id(prefix: str) -> str:
    """A random id such as `task-7c9k2m4qpx3e0v8w` (80 bits, lower case, no separators of keys)."""
    return f"{prefix}-{base64.b32encode(secrets.token_bytes(10)).translate(_FROM_BASE32).decode()}"


def check_name(value: str, field: str) -> str:
    """`value` when it is a valid name, otherwise `InvalidArgumentError` for `field`.

    Two dots in a row are refused as well, so that no name is ever a step in a path.
    """
    if not _NAME.fullmatch(value) or ".." in value:
        raise InvalidArgumentError(
            "must be 1 to 63 lower-case letters, digits, '.', '_' or '-', starting and ending with a"
            f" letter or digit, and without '..'; got {value[:80]!r}",
            field=field,
        )
    return value


def check_opaque_id(value: str, field: str) -> str:
    """`value` when it is a valid client-chosen id (request, message, session), else an error.

    1 to 128 characters of `[A-Za-z0-9._:-]`, starting with a letter or digit.
    """
    if not _OPAQUE.fullmatch(value):
        raise InvalidArgumentError(
            f"must be 1 to 128 letters, digits, '.', '_', ':' or '-'; got {value[:80]!r}", field=field
        )
    return value


def opaque_or_none(value: str) -> str:
    """`value` when a client could have chosen it as an id, otherwise nothing: for ids that programs made up."""
    return value if _OPAQUE.fullmatch(value) else ""
