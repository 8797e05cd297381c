"""Counts a response's tokens as its bytes pass by, without keeping or delaying them.

One parser serves all protocols, because their fields tell them apart:

| protocol | where | cached tokens |
|---|---|---|
| Anthropic Messages | `usage`; in `message_start.message.usage` and `message_delta.usage` | beside `input_tokens` |
| OpenAI Chat, Completions, Embeddings | `usage`; in the last chunk, when it was asked for | within `prompt_tokens` |
| OpenAI Responses | `usage`; in the event `response.completed.response.usage` | within `input_tokens` |
| Gemini | `usageMetadata`, in every event | within `promptTokenCount` |

What an upstream does not say is estimated, so that leaving a stream early, or not asking for its usage, is not free:
a token for four bytes of the request, and one for each event of the stream or four bytes of the body.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from cloudclaw_gateway.domain.use import Tokens

MAX_DOCUMENT: Final = 1 << 20
"""Bytes of an event, or of a body that is no stream, that are looked into; larger ones are estimated."""
_BYTES_PER_TOKEN: Final = 4
_MOST: Final = 1 << 40


class _Document(msgspec.Struct):
    """The fields that are looked at, of a body or an event."""

    type: Any = None
    model: Any = None
    usage: Any = None
    message: Any = None
    response: Any = None
    model_version: Any = msgspec.field(name="modelVersion", default=None)
    usage_metadata: Any = msgspec.field(name="usageMetadata", default=None)


_DECODER: Final = msgspec.json.Decoder(_Document)


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
        self._dropping = not readable
        self._bytes = 0
        self._events = 0
        self._said_input = False
        self._said_output = False

    def feed(self, data: bytes) -> bool:
        """Look at the next bytes; True when `tokens` changed."""
        self._bytes += len(data)
        before = self.tokens
        if not self._streamed:
            self._keep(data)
            return False
        *lines, rest = data.split(b"\n")
        for line in lines:
            if self._rest:
                self._rest += line
                line = bytes(self._rest)
                self._rest.clear()
            if self._dropping:
                self._dropping = not self._readable
                continue
            self._line(line)
        self._keep(rest)
        return self.tokens != before

    def finish(self, *, request_bytes: int) -> tuple[Tokens, bool]:
        """All tokens of the response, and whether some of them are an estimate. Call it once, after the last byte."""
        if not self._streamed and not self._dropping:
            self._look(bytes(self._rest))
        self._rest.clear()
        estimate = Tokens(
            0 if self._said_input else request_bytes // _BYTES_PER_TOKEN,
            0 if self._said_output else max(self._events, 0 if self._streamed else self._bytes // _BYTES_PER_TOKEN),
        )
        self.tokens = self.tokens.most(estimate)
        return self.tokens, not (self._said_input and self._said_output)

    def _keep(self, data: bytes) -> None:
        if self._dropping:
            return
        self._rest += data
        if len(self._rest) > MAX_DOCUMENT:
            self._rest.clear()
            self._dropping = True

    def _line(self, line: bytes) -> None:
        if not line.startswith(b"data:"):
            return
        self._events += 1
        if b'"usage"' in line or b'"usageMetadata"' in line or not self.model:
            self._look(line[5:])

    def _look(self, document: bytes) -> None:
        try:
            found = _DECODER.decode(document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        inner = next((part for part in (found.message, found.response) if isinstance(part, dict)), {})
        model = found.model or found.model_version or inner.get("model")
        if isinstance(model, str) and model:
            self.model = model
        usage = found.usage or found.usage_metadata or inner.get("usage")
        if not isinstance(usage, dict):
            return
        self.tokens = self.tokens.then(_tokens(usage))
        self._said_input = True
        # What a message starts with is not yet what it wrote.
        self._said_output = found.type != "message_start"


def _tokens(usage: dict[str, Any]) -> Tokens:
    read = _first(usage, "prompt_tokens", "input_tokens", "promptTokenCount")
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    within = _count(details, "cached_tokens") if isinstance(details, dict) else _count(usage, "cachedContentTokenCount")
    return Tokens(
        input=max(read - within, 0),
        output=_first(usage, "completion_tokens", "output_tokens", "candidatesTokenCount")
        + _count(usage, "thoughtsTokenCount"),
        cache_read=within or _count(usage, "cache_read_input_tokens"),
        cache_write=_count(usage, "cache_creation_input_tokens"),
    )


def _first(fields: dict[str, Any], *names: str) -> int:
    return next((count for name in names if (count := _count(fields, name))), 0)


def _count(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST else 0
