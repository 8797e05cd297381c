"""Names of agents' sessions, as they get into command lines."""

from __future__ import annotations

import re
import uuid
from typing import Final

from cloudclaw.errors import InvalidArgumentError

_KNOWN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NEW: Final = uuid.UUID("6f9f0c1e-5d57-4f0a-9a55-0f4c5a1d7b3e")


def known_session(session_id: str) -> str:
    """`session_id`, which is no option and no path. `InvalidArgumentError` otherwise."""
    if _KNOWN.fullmatch(session_id) is None:
        raise InvalidArgumentError(f"{session_id[:80]!r} is no session's id", field="spec.session_id")
    return session_id


def new_session(uid: str) -> str:
    """The id of a new session for the attempt `uid`: the same when asked twice."""
    return str(uuid.uuid5(_NEW, uid))
