"""What parsers of several agents share beyond lines of JSON: texts, numbers, standard error, and counting turns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Final

import msgspec

from cloudclaw.agents.events import AnyEvent, Error, ErrorKind, Finished, Turn, cut
from cloudclaw.agents.kinds import kind_of
from cloudclaw.agents.parser import JsonLines, Memory

STDERR_KEPT: Final = 4096
"""Bytes of standard error that are remembered, the last ones."""
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
MAX_CALLS: Final = 256
"""Tool calls without a result that are remembered."""
MAX_ITEMS: Final = 1000
"""Of a list in one line, as far as they are looked at."""


class AgentMemory(Memory):
    """What agents' parsers remember.

    Attributes:
        stderr: its end.
        session: the agent's session, once it told.
        model: which it uses, as far as it told.
        turns: complete turns.
        open_calls: ids of tool calls that have no result yet.
        text: the last message of the assistant.
        ended: a `Finished` was said, and nothing new begun since.
        trouble: kind and message of the last error that no answer followed.
    """

    stderr: bytes = b""
    session: str = ""
    model: str = ""
    turns: int = 0
    open_calls: list[str] = msgspec.field(default_factory=list)
    text: str = ""
    ended: bool = False
    trouble: tuple[str, str] | None = None


class AgentParser(JsonLines):
    """Base of our agents' parsers: remembers the end of standard error, and turns it into an error when the agent
    never began."""

    memory_type: type[Memory] = AgentMemory
    memory: AgentMemory

    def on_stderr(self, data: bytes) -> list[AnyEvent]:
        self.memory.stderr = (self.memory.stderr + data)[-STDERR_KEPT:]
        return []

    def on_end(self) -> list[AnyEvent]:
        if self.memory.session or self.memory.ended or not self.memory.stderr.strip():
            return []
        said = last_words(self.memory.stderr)
        kind = kind_of(None, said)
        return [Error(kind if kind is not ErrorKind.UNKNOWN else ErrorKind.CONFIGURATION, said)]

    # -- for subclasses --

    def opened(self, call_id: str) -> None:
        """A tool was called."""
        self.memory.ended = False
        if call_id not in self.memory.open_calls and len(self.memory.open_calls) < MAX_CALLS:
            self.memory.open_calls.append(call_id)

    def closed(self, call_id: str) -> bool:
        """A tool has its result; True when no other is waited for."""
        if call_id not in self.memory.open_calls:
            return False
        self.memory.open_calls.remove(call_id)
        return not self.memory.open_calls

    def turn(self) -> list[AnyEvent]:
        """A turn is complete."""
        self.memory.turns += 1
        self.memory.open_calls = []
        return [Turn(self.memory.turns)]

    def finished(self, text: str = "") -> list[AnyEvent]:
        """It has answered."""
        self.memory.ended, self.memory.trouble = True, None
        return [Finished(True, text=cut(text or self.memory.text))]

    def failed(self, kind: ErrorKind, message: str, text: str = "") -> list[AnyEvent]:
        """It has given up."""
        self.memory.ended = True
        message = cut(message, 2000)
        return [Error(kind, message), Finished(False, kind, message, cut(text))]


def last_words(stderr: bytes, lines: int = 3) -> str:
    """The last lines that say something."""
    text = _COLOURS.sub("", stderr.decode(errors="replace"))
    said = [line.strip() for line in text.splitlines() if line.strip()]
    return cut(" / ".join(said[-lines:]), 1000)


def brief(value: Any) -> str:
    """An id or a name, of a length that can be remembered."""
    return str(value)[:200]


def few(items: Iterable[Any]) -> list[Any]:
    """The first ones: whoever writes a list decides how long it is, and each item costs."""
    return list(islice(items, MAX_ITEMS))


def as_json(value: Any) -> str:
    """Arguments of a tool as JSON text."""
    return cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def as_text(content: Any) -> str:
    """A text, the texts of a list of content blocks, or JSON of whatever else it is."""
    if isinstance(content, str):
        return cut(content)
    if isinstance(content, list):
        parts = [
            cut(str(part["text"])) if isinstance(part, Mapping) and "text" in part else as_json(part)
            for part in few(content)
        ]
        more = len(content) - len(parts)
        return cut("\n".join([*parts, f"… ({more} more in the log)"] if more else parts))
    return "" if content is None else as_json(content)


def count(value: Any) -> int | None:
    """A number of tokens; None for what is none."""
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def money(value: Any) -> float | None:
    """US dollars; None for what is no sum."""
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12 else None
    )
