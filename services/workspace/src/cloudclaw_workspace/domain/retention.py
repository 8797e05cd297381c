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
    """How many versions are kept beside the head: the newest `last`, and of each of the last `daily` days (UTC, the
    current one among them) the newest. As many again are kept of the snapshots that never were the head. As a
    workspace's own setting, 0 means the service's default."""

    last: int = 0
    daily: int = 0

    def over(self, default: Retention) -> Retention:
        """This setting, with the default where it says nothing."""
        return Retention(self.last or default.last, self.daily or default.daily)


DEFAULT: Final = Retention()
"""A workspace that says nothing."""


@dataclass(frozen=True, slots=True)
class Version:
    """A snapshot as retention sees it; `created` in seconds since the epoch, by its writer's clock. `head`: it was the
    workspace's head; else a checkpoint, or what a task left that did not write to the workspace."""

    id: str
    created: float
    head: bool = True


def surplus(
    versions: Sequence[Version], *, head: str, pinned: Collection[str], retention: Retention, now: float
) -> list[str]:
    """Ids of the snapshots that go, oldest first.

    `versions` are oldest first, in the order of their commits: that decides what is newest, not the clocks. Never
    among them: the head, and what is `pinned` (tasks that have not ended began from it, or will go on from it). These
    count like any other: with `last` 1 and nothing daily, only the head stays. A snapshot from a day still to come (a
    clock that ran fast) counts as one of the last days.

    What never was the head is thinned apart, by the same numbers: however many tasks take checkpoints, they cost the
    workspace none of its versions. There what is pinned does not count: running tasks cost the ended ones nothing.
    """
    kept = {head, *pinned}
    heads = [version for version in versions if version.head or version.id == head]
    others = [version for version in versions if not version.head and version.id not in kept]
    for group in (heads, others):
        kept.update(_newest(group, retention, now))
    return [version.id for version in versions if version.id not in kept]


def _newest(versions: Sequence[Version], retention: Retention, now: float) -> set[str]:
    """Of snapshots of one kind, those that retention keeps."""
    kept = {version.id for version in versions[max(0, len(versions) - retention.last) :]}
    first_day = int(now // DAY) - retention.daily + 1
    newest_of_day = {int(version.created // DAY): version.id for version in versions}
    kept.update(name for day, name in newest_of_day.items() if day >= first_day)
    return kept
