"""Kinds of trouble from prose alone, for agents that put their endpoint's status, or their own words for it, into a
sentence."""

from __future__ import annotations

import re
from typing import Final

from cloudclaw.agents.events import ErrorKind
from cloudclaw.agents.kinds import kind_of

_STATUS: Final = re.compile(
    r"(?:(?:unexpected|with) status|last status:?|status[= ]code:?|HTTP(?:/[\d.]+)?|\b(?:code|status)[\"']?\s*[:=])"
    r"\s*[\"']?([45]\d\d)\b|^\W*([45]\d\d)\b",
    re.IGNORECASE,
)
_SERVER: Final = re.compile(
    r"internal (?:server )?error|high demand|temporary errors|server (?:had an )?error|bad gateway", re.IGNORECASE
)
_RATE: Final = re.compile(r"has been exhausted|quota increase", re.IGNORECASE)
_LOOKED_AT: Final = 4096


def kind_in(text: str) -> ErrorKind:
    """The kind of error that `text` tells of; `UNKNOWN` when it tells of none."""
    text = text[:_LOOKED_AT]
    found = _STATUS.search(text)
    if found is None and _SERVER.search(text):
        return ErrorKind.SERVER
    kind = kind_of(int(found[1] or found[2]) if found else None, text)
    return ErrorKind.RATE_LIMIT if kind is ErrorKind.UNKNOWN and _RATE.search(text) else kind
