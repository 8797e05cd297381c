"""From bytes of a log to events: the contract of parsers, and what those of JSON lines share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec

from cloudclaw.agents.events import AnyEvent, Message, Note, cut

STDOUT: Final = 1
STDERR: Final = 2
SYSTEM: Final = 3
"""Log streams, as `cloudclaw.v1.LogStream` numbers them."""

MAX_LINE: Final = 8 << 20
"""Bytes of one line; a longer one is no event."""
MAX_PARTS: Final = 200_000
"""Values of one line, about; one with more is no event: it would cost seconds and a hundred times its size."""
_FEW: Final = MAX_PARTS
"""Bytes of a line that cannot have too many values."""
_LEAST: Final = 8
"""Bytes of a line that can say anything."""
MARK: Final = "cloudclaw"
"""The one key of a line by which CloudClaw itself says something in a log's SYSTEM stream."""


class StreamParser(Protocol):
    """Turns one attempt's log into events. Deterministic: the same bytes give the same events, however they are cut.

    Input is hostile: nothing that an agent writes raises, and what is held is bounded.
    """

    def feed(self, stream: int, data: bytes) -> list[AnyEvent]:
        """The next bytes of `stream` (STDOUT, STDERR or SYSTEM); the events that they complete."""
        ...

    def close(self) -> list[AnyEvent]:
        """The log has ended; the events of what was incomplete."""
        ...

    def dump(self) -> bytes:
        """All that it remembers, for a parser of the same class to go on from (`load`)."""
        ...

    def load(self, state: bytes) -> None:
        """Go on where `dump` was called. `ValueError` for bytes that are no such state."""
        ...


class Memory(msgspec.Struct):
    """What a parser of JSON lines remembers; agents' parsers extend it with what they need."""

    stdout: bytes = b""
    system: bytes = b""
    skipping: bool = False


class JsonLines:
    """Base of parsers whose agents write one JSON object a line.

    A subclass sets `memory_type`, keeps what it must remember in `self.memory`, and implements `on_object`. Lines that
    are no JSON objects are passed over: the raw log has them.
    """

    memory_type: type[Memory] = Memory

    def __init__(self) -> None:
        self.memory = self.memory_type()
        # The line that is not complete: joined once, however small its pieces are.
        self._pieces: list[bytes] = []
        self._held = 0

    def feed(self, stream: int, data: bytes) -> list[AnyEvent]:
        if stream == STDOUT:
            return self._stdout_lines(data)
        if stream == SYSTEM:
            *lines, rest = (self.memory.system + data).split(b"\n")
            self.memory.system = rest if len(rest) <= MAX_LINE else b""
            return [event for line in lines for event in self._line(line, system=True)]
        return self.on_stderr(data)

    def close(self) -> list[AnyEvent]:
        self._join_held()
        events: list[AnyEvent] = []
        if self.memory.stdout and not self.memory.skipping:
            events += self._line(self.memory.stdout, system=False)
        if self.memory.system:
            events += self._line(self.memory.system, system=True)
        self.memory.stdout = self.memory.system = b""
        return [*events, *self.on_end()]

    def dump(self) -> bytes:
        self._join_held()
        return msgspec.msgpack.encode(self.memory)

    def load(self, state: bytes) -> None:
        try:
            self.memory = msgspec.msgpack.decode(state, type=self.memory_type)
        except msgspec.DecodeError as error:
            raise ValueError(f"no state of {type(self).__name__}: {error}") from error
        self._pieces, self._held = [], 0

    def on_object(self, line: Mapping[str, Any]) -> list[AnyEvent]:
        """One object of the agent's. May raise `KeyError`, `TypeError`, `ValueError`, `AttributeError` for one that is
        not as expected: it is passed over."""
        raise NotImplementedError

    def on_stderr(self, data: bytes) -> list[AnyEvent]:
        """Bytes of standard error."""
        return []

    def on_end(self) -> list[AnyEvent]:
        """The log is over."""
        return []

    def _stdout_lines(self, data: bytes) -> list[AnyEvent]:
        *lines, rest = data.split(b"\n")
        events: list[AnyEvent] = []
        for line in lines:
            whole = self._line_ended(line)
            if whole is not None:
                events += self._line(whole, system=False)
        self._hold(rest)
        return events

    def _line_ended(self, end: bytes) -> bytes | None:
        """The line that ends with `end`; None for one that was too long."""
        if self.memory.skipping:
            self.memory.skipping = False
            return None
        if not self._pieces and not self.memory.stdout:
            return end
        self._pieces.append(end)
        self._join_held()
        line, self.memory.stdout = self.memory.stdout, b""
        return line

    def _hold(self, rest: bytes) -> None:
        if self.memory.skipping or not rest:
            return
        self._pieces.append(rest)
        self._held += len(rest)
        if self._held + len(self.memory.stdout) > MAX_LINE:
            self._pieces, self._held, self.memory.stdout = [], 0, b""
            self.memory.skipping = True

    def _join_held(self) -> None:
        if self._pieces:
            self.memory.stdout = b"".join((self.memory.stdout, *self._pieces))
            self._pieces, self._held = [], 0

    def _line(self, line: bytes, *, system: bool) -> list[AnyEvent]:
        if not _LEAST <= len(line) <= MAX_LINE or not line.lstrip().startswith(b"{") or _crowded(line):
            return []
        try:
            value = decoded(line)
            return marked(value) if system else self.on_object(value)
        except Exception:  # noqa: BLE001 - hostile input: whatever a line breaks, it breaks for itself alone
            return []


def decoded(line: bytes) -> Any:
    """The JSON in `line`, in words that UTF-8 can hold. `ValueError` or `RecursionError` for what is none.

    As UTF-8 and nothing else: given bytes, `json` would guess other encodings, and let halves of surrogate pairs pass.
    """
    text = line.decode()
    return _clean(json.loads(text)) if "\\u" in text else json.loads(text)


def _crowded(line: bytes) -> bool:
    """It may hold more values than are worth their while."""
    return len(line) > _FEW and line.count(b",") + line.count(b"[") + line.count(b"{") > MAX_PARTS


def _clean(value: Any) -> Any:
    """Without the halves of surrogate pairs that JSON can escape and UTF-8 cannot hold."""
    text = json.dumps(value, ensure_ascii=False)
    return value if _encodes(text) else json.loads(text.encode("utf-8", "replace"))


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def mark(event: str, **fields: str | int) -> bytes:
    """A line for a log's SYSTEM stream, by which CloudClaw tells parsers something."""
    return json.dumps({MARK: {"event": event, **fields}}, separators=(",", ":")).encode() + b"\n"


def marked(line: Mapping[str, Any]) -> list[AnyEvent]:
    """The events of such a line."""
    said = line[MARK]
    event = str(said["event"])
    if event in ("prompt", "input"):
        text, message_id = cut(str(said.get("text", ""))), str(said.get("id", ""))
        return [Message("user", text, message_id, int(said.get("number", 0)))]
    return [Note(event, cut(str(said.get("message", ""))))]


class PlainParser(JsonLines):
    """For programs that say nothing of themselves: only CloudClaw's own marks become events."""

    def on_object(self, line: Mapping[str, Any]) -> list[AnyEvent]:
        return []
