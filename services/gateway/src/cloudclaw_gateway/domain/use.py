"""What model calls use, and how much of it a task may use."""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields


class LimitKind(enum.StrEnum):
    """Which limit was reached."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    SPEND = "spend"


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of one response.

    Attributes:
        input: read at full price; those of caches are not among them.
        output: written.
        cache_read, cache_write: of prompt caches.
        searches: no tokens, but searches of the web that the upstream made, which cost beside them.
    """

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    searches: int = 0

    def then(self, later: Tokens) -> Tokens:
        """What counts after an upstream said more. What was read is replaced as a whole when it is said again, as how
        much of it came from a cache may be known late; what was written only grows."""
        read = later if later.input or later.cache_read or later.cache_write else self
        output, searches = max(self.output, later.output), max(self.searches, later.searches)
        return Tokens(read.input, output, read.cache_read, read.cache_write, searches)

    def most(self, other: Tokens) -> Tokens:
        """The greater of each."""
        return Tokens(
            max(self.input, other.input),
            max(self.output, other.output),
            max(self.cache_read, other.cache_read),
            max(self.cache_write, other.cache_write),
            max(self.searches, other.searches),
        )


@dataclass(frozen=True, slots=True)
class Use:
    """What a task used so far, by all its attempts."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    spend_usd: float = 0.0

    @classmethod
    def of(cls, tokens: Tokens, spend_usd: float) -> Use:
        """The use of one request."""
        return cls(1, tokens.input, tokens.output, tokens.cache_read, tokens.cache_write, spend_usd)

    @property
    def tokens(self) -> int:
        """Tokens of every kind together."""
        return self.input_tokens + self.output_tokens + self.cache_read_tokens + self.cache_write_tokens

    def __add__(self, other: Use) -> Use:
        return Use(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Use)))

    def __sub__(self, other: Use) -> Use:
        return Use(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(Use)))

    def most(self, other: Use) -> Use:
        """The greater of each."""
        return Use(*(max(getattr(self, f.name), getattr(other, f.name)) for f in fields(Use)))


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a task may use; 0 is no limit."""

    requests: int = 0
    tokens: int = 0
    spend_usd: float = 0.0

    @property
    def measured(self) -> bool:
        """A limit is on what requests use, and not only on how many they are."""
        return bool(self.tokens or self.spend_usd)

    def holds(self, use: Use) -> bool:
        """`use` passes no limit on tokens or spend."""
        return not (self.tokens and use.tokens > self.tokens) and not (
            self.spend_usd and use.spend_usd > self.spend_usd
        )

    def reached(self, use: Use) -> tuple[LimitKind, str] | None:
        """The limit that allows no further request after `use`, and what to say about it."""
        if self.requests and use.requests >= self.requests:
            return LimitKind.REQUESTS, f"the task's limit of {self.requests} model requests is reached"
        if self.tokens and use.tokens >= self.tokens:
            return (
                LimitKind.TOKENS,
                f"the task's limit of {self.tokens} model tokens is reached: {use.tokens} were used",
            )
        if self.spend_usd and use.spend_usd >= self.spend_usd:
            return (
                LimitKind.SPEND,
                f"the task's limit of ${self.spend_usd:.6g} for models is reached: ${use.spend_usd:.6g} were spent",
            )
        return None
