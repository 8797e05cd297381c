"""Rows of figures, and the table they end in."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        what: what was measured.
        value: as measured, in `unit`.
        unit: of value and budget.
        budget: the most (or, with `at_least`, the least) that is allowed; None for a baseline.
        at_least: the budget is a minimum.
        note: a ratio, a count, or where the time goes.
    """

    what: str
    value: float
    unit: str
    budget: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.budget is None:
            return None
        return self.value >= self.budget if self.at_least else self.value <= self.budget


def percentile(values: list[float], share: float) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def show(rows: list[Row]) -> None:
    """Print the table."""
    table = Table("", "measured", "budget", "", "", title="CloudClaw, one run", title_justify="left")
    for row in rows:
        budget = "" if row.budget is None else f"{'≥' if row.at_least else '≤'} {row.budget:g} {row.unit}"
        verdict = "" if row.met is None else "met" if row.met else f"missed ×{_factor(row):.2f}"
        table.add_row(row.what, f"{row.value:.4g} {row.unit}", budget, verdict, row.note)
    Console(width=150).print(table)


def _factor(row: Row) -> float:
    assert row.budget is not None
    return row.budget / row.value if row.at_least else row.value / row.budget
