"""Use of models, as records keep it: what agents reported, and what the gateway counted."""

from __future__ import annotations

from typing import Final

import msgspec

PLACES: Final = 9
"""Of sums of money: a billionth of a dollar."""


class Usage(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """As in `cloudclaw.v1.Usage`; None for what no agent reported."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    cost_usd: float | None = None
    turns: int | None = None


class ModelUse(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """As in `cloudclaw.v1.ModelUse`."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    spend_usd: float = 0.0


def usage_sum(one: Usage | None, other: Usage | None) -> Usage | None:
    """Both together: a field that neither reported stays None."""
    if one is None or other is None:
        return other if one is None else one
    fields = {}
    for name in Usage.__struct_fields__:
        known = [value for value in (getattr(one, name), getattr(other, name)) if value is not None]
        fields[name] = round(sum(known), PLACES) if known else None
    return Usage(**fields)


def model_use_most(one: ModelUse | None, other: ModelUse | None) -> ModelUse | None:
    """Of two counts of the same calls, what was used: who counts may die and forget, never count what was not."""
    if one is None or other is None:
        return other if one is None else one
    return ModelUse(**{name: max(getattr(one, name), getattr(other, name)) for name in ModelUse.__struct_fields__})


def model_use_sum(one: ModelUse | None, other: ModelUse | None) -> ModelUse | None:
    """Both together; None when there is neither."""
    if one is None or other is None:
        return other if one is None else one
    return ModelUse(
        **{name: round(getattr(one, name) + getattr(other, name), PLACES) for name in ModelUse.__struct_fields__}
    )
