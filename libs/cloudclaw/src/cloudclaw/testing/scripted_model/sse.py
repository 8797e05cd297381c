"""Server-sent events, as bytes."""

from __future__ import annotations

import json
from typing import Any


def event(data: dict[str, Any], name: str = "") -> bytes:
    """One event with JSON `data`, named when the protocol names its events."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()
