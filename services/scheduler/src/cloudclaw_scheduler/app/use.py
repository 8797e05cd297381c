"""Use of models between the API's words and the records'. What a node says of it is measured by nobody here, and so not
believed blindly: a number that means nothing counts as none."""

from __future__ import annotations

import math
from typing import Any, Final

from google.protobuf.message import Message

from cloudclaw.coordination.records import ModelUse, Usage
from cloudclaw.v1 import task_pb2

MAX_COUNT: Final = 2**60
"""Of tokens, so that sums stay within what the API can say."""
MAX_TURNS: Final = 2**32 - 1
"""What the API can say: attempts that each lie about their turns do so together, too."""


def usage_of(message: Message, field: str = "usage") -> Usage | None:
    """The agent's usage in `message`; None when it has none."""
    if not message.HasField(field):
        return None
    usage: task_pb2.Usage = getattr(message, field)
    told: dict[str, Any] = {
        name: sane(getattr(usage, name)) for name in Usage.__struct_fields__ if usage.HasField(name)
    }
    return Usage(**told) if told else None


def model_use_of(message: Message, field: str = "model_use") -> ModelUse | None:
    """The gateway's count in `message`; None when it has none."""
    if not message.HasField(field):
        return None
    use: task_pb2.ModelUse = getattr(message, field)
    told: dict[str, Any] = {name: sane(getattr(use, name)) for name in ModelUse.__struct_fields__}
    return ModelUse(**told)


def usage_message(usage: Usage | None) -> task_pb2.Usage | None:
    """As the API shows it: what is not known stays absent."""
    if usage is None:
        return None
    told = {name: getattr(usage, name) for name in Usage.__struct_fields__}
    known: dict[str, Any] = {name: _most(value) for name, value in told.items() if value is not None}
    if "turns" in known:
        known["turns"] = min(known["turns"], MAX_TURNS)
    return task_pb2.Usage(**known)


def model_use_message(use: ModelUse | None) -> task_pb2.ModelUse | None:
    """As the API shows it."""
    if use is None:
        return None
    known: dict[str, Any] = {name: _most(getattr(use, name)) for name in ModelUse.__struct_fields__}
    return task_pb2.ModelUse(**known)


def sane(value: float) -> float:
    """`value`, if it can be a count or a sum of money; otherwise 0, or the most that is believed."""
    return min(value, MAX_COUNT) if math.isfinite(value) and value >= 0 else 0


def _most(value: float) -> float:
    return min(value, 8 * MAX_COUNT)
