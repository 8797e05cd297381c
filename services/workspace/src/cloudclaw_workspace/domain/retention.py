"""Which snapshots of a workspace are kept."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

MAX_LAST: Final = 10_000
MAX_DAILY: Final = 3650
DAY: Final = 86_400


@dataclass(frozen=True, slots=True)
class Retention:
    """How many snapshots are kept beside the head: the newest `last`, and of each of the last `daily` days (UTC, the
    current one among them) the newest. As a workspace's own setting, 0 means the service's default."""

    last: int = 0
    daily: int = 0

    def over(self, default: Retention) -> Retention:
        """This setting, with the default where it says nothing."""
        return Retention(self.last or default.last, self.daily or default.daily)


DEFAULT: Final = Retention()
"""A workspace that says nothing."""


@dataclass(frozen=True, slots=True)
class Version:
    """A snapshot as retention sees it; `created` in seconds since the epoch, by its writer's clock."""

    id: str
    created: float


def surplus(
    versions: Sequence[Version], *, head: str, pinned: Collection[str], retention: Retention, now: float
) -> list[str]:
    """Ids of the snapshots that go, oldest first.

    `versions` are oldest first, in the order of their commits: that decides what is newest, not the clocks. Never
    among them: the head, and what is `pinned` (tasks that have not ended began from it, or will go on from it). These
    count like any other: with `last` 1 and nothing daily, only the head stays. A snapshot from a day still to come (a
    clock that ran fast) counts as one of the last days.
    """
    kept = {head, *pinned}
    kept.update(version.id for version in versions[max(0, len(versions) - retention.last) :])
    first_day = int(now // DAY) - retention.daily + 1
    newest_of_day = {int(version.created // DAY): version.id for version in versions}
    kept.update(name for day, name in newest_of_day.items() if day >= first_day)
    return [version.id for version in versions if version.id not in kept]
