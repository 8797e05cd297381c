"""An attempt's use of models, as the node's gateway counts it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelUse:
    """What a task's model calls came to.

    Attributes:
        requests: calls that an upstream was asked.
        input_tokens: tokens read at full price; those from a cache are not among them.
        output_tokens: tokens written.
        cache_read_tokens, cache_write_tokens: of prompt caches.
        spend_usd: what all of it costs by the gateway's price list.
    """

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    spend_usd: float = 0.0

    def most(self, other: ModelUse) -> ModelUse:
        """What was used when both counts are of the same calls, and either may have forgotten some."""
        return ModelUse(
            max(self.requests, other.requests),
            max(self.input_tokens, other.input_tokens),
            max(self.output_tokens, other.output_tokens),
            max(self.cache_read_tokens, other.cache_read_tokens),
            max(self.cache_write_tokens, other.cache_write_tokens),
            max(self.spend_usd, other.spend_usd),
        )

    def since(self, earlier: ModelUse) -> ModelUse:
        """What came on top of `earlier`, which is part of it."""
        return ModelUse(
            self.requests - earlier.requests,
            self.input_tokens - earlier.input_tokens,
            self.output_tokens - earlier.output_tokens,
            self.cache_read_tokens - earlier.cache_read_tokens,
            self.cache_write_tokens - earlier.cache_write_tokens,
            self.spend_usd - earlier.spend_usd,
        )


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """How much a task may use, earlier attempts included; 0 is no limit."""

    requests: int = 0
    tokens: int = 0
    spend_usd: float = 0.0
