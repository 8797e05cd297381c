"""How many slots each node has left: reported slots, minus leases held there, minus claims on their way.

A claim's reservation lasts until the mirror shows its lease, or the claim is known to have failed; so the number of
slots is never exceeded by a claim whose answer came before its watch event.
"""

from __future__ import annotations

from cloudclaw_scheduler.app.links import Links, NodeLink
from cloudclaw_scheduler.app.state import Attempt, State, TaskKey

Place = tuple[str, str]
"""(node, pool)."""


class Capacity:
    """Counts by node and pool."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._used: dict[Place, int] = {}
        self._reserved: dict[TaskKey, Place] = {}
        self._held: dict[tuple[str, TaskKey], Place] = {}

    def load(self, state: State) -> None:
        """Count anew from the mirror; reservations of claims on their way stay."""
        self._used.clear()
        self._held.clear()
        for attempts in state.attempts.values():
            for attempt in attempts.values():
                self._reserved.pop(attempt.key, None)
                self.claimed(attempt, _pool_of(state, attempt.key))
        for place in self._reserved.values():
            self._used[place] = self._used.get(place, 0) + 1

    def free(self, link: NodeLink, pool: str) -> int:
        """Slots of `pool` on the node that may be claimed now."""
        capacity = link.pools.get(pool)
        if capacity is None or link.draining or pool in link.refused:
            return 0
        return capacity.slots - self._used.get((link.node, pool), 0)

    def open_nodes(self, pool: str) -> list[tuple[NodeLink, int]]:
        """Nodes that have a slot of `pool` left, and how many."""
        found = ((link, self.free(link, pool)) for link in self._links)
        return [(link, free) for link, free in found if free > 0]

    def reserve(self, key: TaskKey, node: str, pool: str) -> None:
        """A claim of `key` on the node begins."""
        self._reserved[key] = (node, pool)
        self._add((node, pool), 1)

    def drop(self, key: TaskKey) -> bool:
        """The claim of `key` failed; False when its lease had been seen, which counts instead."""
        place = self._reserved.pop(key, None)
        if place is None:
            return False
        self._add(place, -1)
        return True

    def claimed(self, attempt: Attempt, pool: str) -> bool:
        """The mirror shows a lease; False when a reservation had counted it already."""
        place = (attempt.node, pool)
        self._held[attempt.node, attempt.key] = place
        if self._reserved.get(attempt.key) == place:
            del self._reserved[attempt.key]
            return False
        self._add(place, 1)
        return True

    def released(self, attempt: Attempt) -> str | None:
        """The lease is gone; answers its pool."""
        place = self._held.pop((attempt.node, attempt.key), None)
        if place is None:
            return None
        self._add(place, -1)
        return place[1]

    def held_by(self) -> list[tuple[str, str]]:
        """(tenant, pool) of every slot in use, reservations included."""
        held = [(key[0], place[1]) for (_, key), place in self._held.items()]
        return held + [(key[0], place[1]) for key, place in self._reserved.items()]

    def _add(self, place: Place, count: int) -> None:
        left = self._used.get(place, 0) + count
        if left:
            self._used[place] = left
        else:
            self._used.pop(place, None)


def _pool_of(state: State, key: TaskKey) -> str:
    task = state.task(*key)
    return task.record.plan.pool if task else ""
