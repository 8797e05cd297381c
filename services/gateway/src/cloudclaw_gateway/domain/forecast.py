"""What a request may use at most, read from its body before it is sent.

Input is at most a token for each byte of the body, as no tokenizer makes more of them. Output is what the request names
as its most, for each of the answers that it wants. What lies elsewhere (a conversation or a prompt that the upstream
keeps) cannot be foreseen. Nothing that the body only points to (files, addresses of pictures) is looked up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from cloudclaw_gateway.domain.refusal import Mark, Refusal
from cloudclaw_gateway.domain.use import Tokens

_MOST: Final = 1 << 40


class _Once:
    """A field's value; made anew for each time that the field stands in the body."""

    def __init__(self, value: Any) -> None:
        self.value = value


_ABSENT: Final = _Once(None)


class _Fields(msgspec.Struct):
    """What is read; those of Gemini are known by two names each."""

    model: _Once = _ABSENT
    max_tokens: _Once = _ABSENT
    max_completion_tokens: _Once = _ABSENT
    max_output_tokens: _Once = _ABSENT
    n: _Once = _ABSENT
    best_of: _Once = _ABSENT
    background: _Once = _ABSENT
    service_tier: _Once = _ABSENT
    speed: _Once = _ABSENT
    previous_response_id: _Once = _ABSENT
    conversation: _Once = _ABSENT
    prompt: _Once = _ABSENT
    cached_content: _Once = _ABSENT
    cached_content_too: _Once = msgspec.field(name="cachedContent", default=_ABSENT)
    generation: _Once = msgspec.field(name="generation_config", default=_ABSENT)
    generation_too: _Once = msgspec.field(name="generationConfig", default=_ABSENT)


_TIERS: Final = ("service_tier", "speed")
_PLAIN_TIERS: Final = (None, "auto", "default", "standard", "standard_only", "flex")
"""Of these an upstream takes its plain price, or less."""

_NAMES: Final = _Fields.__struct_fields__


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a body tells of its request.

    Attributes:
        model: empty when it names none.
        tokens: at most; None when that cannot be foreseen.
        dearer: what it asks for that costs more than the model's price; empty for nothing.
    """

    model: str
    tokens: Tokens | None
    dearer: str = ""


def foresee(body: bytes | bytearray, *, writes: bool, unnamed_output: int) -> Forecast | None:
    """What `body` may use; None when it is no JSON object.

    Args:
        writes: the operation has answers that count as output.
        unnamed_output: tokens of one answer when the request names no most.

    Raises `Refusal` for what upstreams could read in another way than it is read here, and for answers that are never
    told.
    """
    read = 0

    def once(kind: type, value: Any) -> _Once:
        nonlocal read
        read += 1
        if read > len(_NAMES):
            raise ValueError("a field stands there twice")
        return _Once(value)

    try:
        fields = msgspec.json.decode(body, type=_Fields, dec_hook=once)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if read > len(_NAMES):
            raise _twice() from None
        return None
    found = {name: held.value for name in _NAMES if (held := getattr(fields, name)) is not _ABSENT}
    if len(found) != read:
        raise _twice()
    if found.get("background"):
        raise Refusal(400, Mark.BAD_REQUEST, "the answer to a request in the background could not be counted")
    model = found.get("model")
    return Forecast(
        model if isinstance(model, str) else "",
        Tokens(len(body), _output(found, unnamed_output) if writes else 0) if _is_whole(found) else None,
        next((f"{name} {value!s:.20}" for name in _TIERS if (value := found.get(name)) not in _PLAIN_TIERS), ""),
    )


def _twice() -> Refusal:
    return Refusal(400, Mark.BAD_REQUEST, "the body has a field twice, and it is not known which one counts")


def _is_whole(found: dict[str, Any]) -> bool:
    """All of the input is in the body. A prompt that is an object names one that the upstream keeps."""
    elsewhere = ("previous_response_id", "conversation", "cached_content", "cached_content_too")
    return not any(found.get(name) for name in elsewhere) and not isinstance(found.get("prompt"), dict)


def _output(found: dict[str, Any], unnamed: int) -> int:
    groups = [found] + [part for name in ("generation", "generation_too") if isinstance(part := found.get(name), dict)]
    most = _counts(groups, "max_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens")
    answers = _counts(groups, "n", "best_of", "candidateCount", "candidate_count")
    prompt = found.get("prompt")
    # A list of numbers is one prompt, in tokens.
    prompts = sum(not isinstance(one, int) for one in prompt) if isinstance(prompt, list) else 1
    return min(max(most, default=unnamed) * max(answers, default=1) * max(prompts, 1), _MOST)


def _counts(groups: Iterable[dict[str, Any]], *names: str) -> list[int]:
    values = (group.get(name) for group in groups for name in names)
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and 0 < v <= _MOST]
