"""Which task of a pool goes next (rule 10): tenants share slots evenly, then priority, then age.

The tenant with the fewest running tasks in the pool goes first, and of equals the one served longest ago. Every
operation costs O(log n), so a hundred thousand waiting tasks make no step slower.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

_SLACK: Final = 64


@dataclass(frozen=True, slots=True)
class Waiting:
    """A task that could run now."""

    tenant: str
    task: str
    runtime: str
    priority: int
    order: int

    @property
    def key(self) -> tuple[str, str]:
        return (self.tenant, self.task)


class _Line:
    """Tasks of one runtime: a heap for each tenant, and a heap of the tenants that have any."""

    def __init__(self) -> None:
        self.tasks: dict[str, list[tuple[int, int, str]]] = {}
        self.turns: list[tuple[int, int, str]] = []
        self.turn: dict[str, tuple[int, int, str]] = {}

    def place(self, tenant: str, running: int, served: int) -> None:
        """Give `tenant` its place among the tenants; an earlier place lapses."""
        turn = (running, served, tenant)
        if self.turn.get(tenant) == turn:
            return
        self.turn[tenant] = turn
        heapq.heappush(self.turns, turn)
        if len(self.turns) > 4 * len(self.turn) + _SLACK:
            self.turns = sorted(self.turn.values())


class FairQueue:
    """The waiting tasks of one pool."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._waiting: dict[tuple[str, str], Waiting] = {}
        self._running: dict[str, int] = {}
        self._served: dict[str, int] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._waiting

    def add(self, waiting: Waiting) -> None:
        """Put a task in; one that is there already stays."""
        if waiting.key in self._waiting:
            return
        self._waiting[waiting.key] = waiting
        line = self._lines.setdefault(waiting.runtime, _Line())
        heapq.heappush(line.tasks.setdefault(waiting.tenant, []), (-waiting.priority, waiting.order, waiting.task))
        self._place(line, waiting.tenant)

    def discard(self, key: tuple[str, str]) -> bool:
        """Take a task out; answers whether it was there. Its place in the heap lapses by itself."""
        return self._waiting.pop(key, None) is not None

    def started(self, tenant: str) -> None:
        """The tenant holds one more slot of the pool."""
        self._running[tenant] = self._running.get(tenant, 0) + 1
        self._replace(tenant)

    def stopped(self, tenant: str) -> None:
        """The tenant holds one slot less."""
        left = self._running.get(tenant, 0) - 1
        if left > 0:
            self._running[tenant] = left
        else:
            self._running.pop(tenant, None)
        self._replace(tenant)

    def pop(self, runtimes: Iterable[str], fits: Callable[[Waiting], bool]) -> Waiting | None:
        """Take out the next task whose runtime is one of `runtimes`. One that does not `fits` is taken out too,
        and left to the caller, who parked it."""
        while True:
            best: tuple[tuple[int, int, str], _Line] | None = None
            for runtime in runtimes:
                line = self._lines.get(runtime)
                turn = self._first(line) if line else None
                if line and turn and (best is None or turn < best[0]):
                    best = (turn, line)
            if best is None:
                return None
            turn, line = best
            tenant = turn[2]
            waiting = self._waiting.pop((tenant, heapq.heappop(line.tasks[tenant])[2]))
            if fits(waiting):
                self._turn += 1
                self._served[tenant] = self._turn
                self._replace(tenant)
                return waiting

    def _first(self, line: _Line) -> tuple[int, int, str] | None:
        """The place of the line's next tenant; lapsed places and tasks are dropped on the way."""
        while line.turns:
            turn = line.turns[0]
            tenant = turn[2]
            tasks = line.tasks.get(tenant, [])
            while tasks and (tenant, tasks[0][2]) not in self._waiting:
                heapq.heappop(tasks)
            if line.turn.get(tenant) == turn and tasks:
                return turn
            heapq.heappop(line.turns)
            if not tasks:
                line.tasks.pop(tenant, None)
                line.turn.pop(tenant, None)
        return None

    def _place(self, line: _Line, tenant: str) -> None:
        line.place(tenant, self._running.get(tenant, 0), self._served.get(tenant, 0))

    def _replace(self, tenant: str) -> None:
        for line in self._lines.values():
            if tenant in line.tasks:
                self._place(line, tenant)
