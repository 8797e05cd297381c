"""Messages between a manager and a supervisor: JSON objects, one a line, over the slot's Unix socket.

A request is `{"id": n, "op": name, …}` and is answered by `{"id": n, "ok": …}` or
`{"id": n, "error": kind, "message": text}`; an answer may carry the slot's `status` too. Without being
asked the supervisor sends `{"status": …}` when something changed, and `{"fenced": true}` before it drops
a manager for a newer one.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_MESSAGE = 64 << 20
"""Bytes of one line at most."""

SOCKET = "sock"
EGRESS_SOCKET = "egress"
SPOOL = "spool"
"""Names inside the slot's control directory."""

FENCED = "fenced"
FAILED = "failed"
INPUT_CLOSED = "input_closed"
INPUT_FULL = "input_full"
NOT_WARM = "not_warm"
NO_EGRESS = "no_egress"
"""Kinds of error."""

REFUSALS = frozenset((INPUT_CLOSED, INPUT_FULL, NOT_WARM))
"""Those that say nothing against the slot."""

MAX_INPUT = 16 << 20
"""Bytes that wait for a program to read them, at most."""
MAX_INPUT_ID = 256
"""Characters of a message's id, and of a warm program's key."""

WARMING, READY, COLD = "warming", "ready", ""
WARM_FAILED = "failed: "
"""What a status says of a warm program; the last one goes before the reason."""

VERSION = 3
"""1: the first. 2: `resume`, and `paused` in a status. 3: `input`, `warm`, the listener, and what they add to `start`,
`prepare` and a status."""


def encode(message: dict[str, Any]) -> bytes:
    """One message, ready to send."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Lines:
    """Cuts a byte stream into messages."""

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._limit = limit

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that `data` completes.

        Raises:
            ValueError: a line is too long, or is no JSON object.
        """
        messages: list[dict[str, Any]] = []
        *lines, rest = data.split(b"\n")
        for line in lines:
            message = json.loads(b"".join([*self._parts, line]))
            self._parts, self._size = [], 0
            if not isinstance(message, dict):
                raise ValueError("a message is a JSON object")  # noqa: TRY004 - one error for bad input
            messages.append(message)
        if rest:
            self._parts.append(rest)
            self._size += len(rest)
            if self._size > self._limit:
                raise ValueError("message too long")
        return messages
