"""A model request and a model answer, without their protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Tool:
    """A tool that the request offers; `parameters` is its JSON schema."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def properties(self) -> Mapping[str, Any]:
        """The schemas of its arguments, by name."""
        found = self.parameters.get("properties")
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Message:
    """One message of the conversation; system messages are not among them."""

    role: str
    """`user` or `assistant`."""
    text: str = ""
    calls: int = 0
    """Tool calls in it."""
    results: int = 0
    """Tool results in it."""


@dataclass(frozen=True)
class Request:
    """What a model is asked."""

    protocol: str
    model: str
    stream: bool
    system: str
    messages: list[Message]
    tools: list[Tool]
    size: int
    """Bytes of the request's body."""
    session: str = ""
    """What the agent itself calls the conversation, where it says so."""
    max_tokens: int | None = None


@dataclass(frozen=True)
class Call:
    """One tool call of an answer."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the model says. Tokens are numbers that the answer claims, not counted ones."""

    text: str
    calls: list[Call]
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    chunk: int = 40

    def pieces(self, text: str) -> list[str]:
        """`text` in chunks of the wanted size."""
        return [text[at : at + self.chunk] for at in range(0, len(text), self.chunk)]


def text_of(content: object) -> str:
    """The text of a message's content, given as a string or as blocks of any protocol."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [
        part if isinstance(part, str) else part.get("text", "") for part in content if isinstance(part, str | dict)
    ]
    return "\n".join(part for part in parts if isinstance(part, str) and part)
