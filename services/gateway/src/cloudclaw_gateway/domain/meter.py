"""Counts a response's tokens as its bytes pass by, without keeping or delaying them.

One parser serves all protocols, because their fields tell them apart:

| protocol | where | cached tokens |
|---|---|---|
| Anthropic Messages | `usage`; in `message_start.message.usage` and `message_delta.usage` | beside `input_tokens` |
| OpenAI Chat, Completions, Embeddings | `usage`; in the last chunk, when it was asked for | within `prompt_tokens` |
| OpenAI Responses | `usage`; in the event `response.completed.response.usage` | within `input_tokens` |
| Gemini | `usageMetadata`, in every event | within `promptTokenCount` |

What an upstream does not say is estimated, so that leaving a stream early, or not asking for its usage, is not free:
a token for four bytes of the request, of the text in an event (one at least), and of whatever cannot be read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, TypeVar

import msgspec

from cloudclaw_gateway.domain.use import Tokens

MAX_DOCUMENT: Final = 1 << 20
"""Bytes of an event, or of a body that is no stream, that are looked into; larger ones are estimated."""
_BYTES_PER_TOKEN: Final = 4
_MOST: Final = 1 << 40


_T = TypeVar("_T")


class _Document(msgspec.Struct):
    """The fields that are looked at, of a body."""

    type: Any = None
    model: Any = None
    usage: Any = None
    message: Any = None
    response: Any = None
    model_version: Any = msgspec.field(name="modelVersion", default=None)
    usage_metadata: Any = msgspec.field(name="usageMetadata", default=None)
    output: Any = None


class _Event(_Document):
    """Those of an event: also what it writes."""

    delta: Any = None
    choices: Any = None
    candidates: Any = None
    item: Any = None


# Gemini's streams are one array unless events are asked for.
_DOCUMENT: Final = msgspec.json.Decoder(_Document | list[_Document])
_EVENT: Final = msgspec.json.Decoder(_Event)
_NO_TEXT: Final = frozenset({"role", "type", "id", "name", "logprobs"})


class ResponseMeter:
    """Reads one response.

    Args:
        streamed: it is a stream of events, not one JSON document.
        readable: its bytes are not compressed.

    Attributes:
        tokens: as the upstream said so far.
        model: as the upstream calls it; empty until it does.
    """

    def __init__(self, *, streamed: bool, readable: bool = True) -> None:
        self.tokens = Tokens()
        self.model = ""
        self._streamed = streamed
        self._readable = readable
        self._rest = bytearray()
        self._event: list[bytes] = []
        self._event_bytes = 0
        self._dropping = not readable
        self._unread = 0
        self._written = 0
        self._said_input = False
        self._said_output = False

    def feed(self, data: bytes) -> bool:
        """Look at the next bytes; True when `tokens` changed."""
        if not self._readable or not self._streamed:
            self._keep(data)
            return False
        before = self.tokens
        *lines, rest = data.split(b"\n")
        for line in lines:
            if self._dropping:
                self._unread += len(line)
                self._dropping = False
                continue
            if self._rest:
                self._rest += line
                line = bytes(self._rest)
                self._rest.clear()
            self._line(line)
        self._keep(rest)
        return self.tokens != before

    def finish(self, *, request_bytes: int) -> tuple[Tokens, bool]:
        """All tokens of the response, and whether some of them are an estimate. Call it once, after the last byte."""
        rest = bytes(self._rest)
        self._rest.clear()
        if self._streamed:
            if rest:
                self._line(rest)
            self._end_event()
        else:
            self._unread += len(rest)
            self._look(_decoded(_DOCUMENT, rest))
        estimate = Tokens(
            0 if self._said_input else request_bytes // _BYTES_PER_TOKEN,
            0 if self._said_output else self._written + self._unread // _BYTES_PER_TOKEN,
        )
        self.tokens = self.tokens.most(estimate)
        return self.tokens, not (self._said_input and self._said_output)

    def _keep(self, data: bytes) -> None:
        if self._dropping:
            self._unread += len(data)
            return
        self._rest += data
        if len(self._rest) > MAX_DOCUMENT:
            self._unread += len(self._rest)
            self._rest.clear()
            self._dropping = True

    def _line(self, line: bytes) -> None:
        """An event ends with an empty line; its data are all its `data` lines together."""
        line = line.removesuffix(b"\r")
        if not line:
            self._end_event()
        elif line.startswith(b"data:"):
            self._event.append(line[5:])
            self._event_bytes += len(line)
            if self._event_bytes > MAX_DOCUMENT:
                self._unread += self._event_bytes
                self._clear_event()

    def _end_event(self) -> None:
        if not self._event:
            return
        data = b"\n".join(self._event)
        self._clear_event()
        found = _decoded(_EVENT, data)
        if isinstance(found, _Event):
            self._written += max(1, _text((found.delta, found.choices, found.candidates)) // _BYTES_PER_TOKEN)
            if found.type == "response.output_item.done":
                self._searched([found.item])
            self._look(found)
        else:
            self._written += max(1, len(data) // _BYTES_PER_TOKEN)

    def _clear_event(self) -> None:
        self._event.clear()
        self._event_bytes = 0

    def _look(self, found: _Document | list[_Document] | None) -> None:
        for one in found if isinstance(found, list) else [found] if found else []:
            self._told(one)

    def _told(self, found: _Document) -> None:
        inner = next((part for part in (found.message, found.response) if isinstance(part, dict)), {})
        model = found.model or found.model_version or inner.get("model")
        if isinstance(model, str) and model:
            self.model = model
        self._searched(found.output)
        usage = found.usage or found.usage_metadata or inner.get("usage")
        if not isinstance(usage, dict):
            return
        self.tokens = self.tokens.then(_tokens(usage))
        self._said_input = True
        # What a message starts with is not yet what it wrote.
        begun = found.type == "message_start" or (usage is found.usage_metadata and "candidatesTokenCount" not in usage)
        self._said_output = self._said_output or not begun

    def _searched(self, items: Any) -> None:
        """Responses has each search as an item of its answer."""
        found = (
            [i for i in items if isinstance(i, dict) and i.get("type") == "web_search_call"]
            if isinstance(items, list)
            else []
        )
        self.tokens = replace(self.tokens, searches=self.tokens.searches + len(found))


def _decoded(decoder: msgspec.json.Decoder[_T], data: bytes) -> _T | None:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _text(found: Any) -> int:
    """Characters in all strings of `found` but those that say what it is."""
    size, rest = 0, [found]
    while rest:
        match rest.pop():
            case str() as text:
                size += len(text)
            case dict() as fields:
                rest += [value for name, value in fields.items() if name not in _NO_TEXT]
            case list() | tuple() as several:
                rest += several
    return size


def _tokens(usage: dict[str, Any]) -> Tokens:
    read = _first(usage, "prompt_tokens", "input_tokens", "promptTokenCount")
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    tools = usage.get("server_tool_use")
    within = _count(details, "cached_tokens") if isinstance(details, dict) else _count(usage, "cachedContentTokenCount")
    return Tokens(
        input=max(read - within, 0) + _count(usage, "toolUsePromptTokenCount"),
        output=_first(usage, "completion_tokens", "output_tokens", "candidatesTokenCount")
        + _count(usage, "thoughtsTokenCount"),
        cache_read=within or _count(usage, "cache_read_input_tokens"),
        cache_write=_count(usage, "cache_creation_input_tokens"),
        searches=_count(tools, "web_search_requests") if isinstance(tools, dict) else 0,
    )


def _first(fields: dict[str, Any], *names: str) -> int:
    return next((count for name in names if (count := _count(fields, name))), 0)


def _count(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST else 0
