"""What tokens cost, by model."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass

from cloudclaw_gateway.domain.use import Tokens


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens of each kind, and for a thousand searches."""

    input: float
    output: float
    cache_read: float
    cache_write: float
    search: float = 0.0

    def cost(self, tokens: Tokens) -> float:
        """What `tokens` cost, in US dollars."""
        return (
            tokens.input * self.input
            + tokens.output * self.output
            + tokens.cache_read * self.cache_read
            + tokens.cache_write * self.cache_write
        ) / 1e6 + tokens.searches * self.search / 1e3

    def most(self, tokens: Tokens) -> float:
        """What `tokens` cost when the input is of the dearest kind."""
        return (tokens.input * max(self.input, self.cache_read, self.cache_write) + tokens.output * self.output) / 1e6


class PriceList:
    """Prices by model name or glob. The name itself goes first, then the longest glob that matches."""

    def __init__(self, prices: Mapping[str, Price]) -> None:
        self._exact = dict(prices)
        self._globs = sorted((p for p in prices if set(p) & set("*?[")), key=lambda p: (-len(p), p))

    def find(self, model: str) -> Price | None:
        """The price of `model`, None when there is none."""
        if (exact := self._exact.get(model)) is not None:
            return exact
        for pattern in self._globs:
            if fnmatch.fnmatchcase(model, pattern):
                return self._exact[pattern]
        return None
