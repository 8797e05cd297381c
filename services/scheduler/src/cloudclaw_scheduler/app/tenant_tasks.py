"""The tasks of one tenant in the mirror, in the orders that they are asked for."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Final

from cloudclaw.coordination.records import TaskRecord
from cloudclaw.coordination.transactions import Versioned
from cloudclaw.history.bundles import Place, place_of

_NEAR: Final = 1000
"""Places from the end of a long order within which one insertion is cheaper than sorting it anew."""


class TenantTasks:
    """The tasks of one tenant: by id, in the order of their creation, and the ended ones in the order of their end."""

    def __init__(self) -> None:
        self.records: dict[str, Versioned[TaskRecord]] = {}
        # A load comes by id: sorted once, when it is asked for, and not at each insertion.
        self._order: list[tuple[Place, str]] = []
        self._order_sorted = True
        self._ended: list[tuple[int, str]] = []
        self._ended_sorted = True

    def put(self, task: Versioned[TaskRecord]) -> None:
        name = task.record.task
        before = self.records.get(name)
        if before is None:
            item = (place_of(task), name)
            self._insert(item)
        elif before.record.state.ended:
            self._forget_end(before)  # no writer changes an ended task; a hand with etcdctl might
        if task.record.state.ended:
            ended = (task.mod_revision, name)
            self._ended_sorted = self._ended_sorted and (not self._ended or self._ended[-1] < ended)
            self._ended.append(ended)
        self.records[name] = task

    def remove(self, task: str) -> None:
        found = self.records.pop(task, None)
        if found is not None:
            order = self._by_place()
            del order[bisect.bisect_left(order, (place_of(found), task))]
            if found.record.state.ended:
                self._forget_end(found)

    def _forget_end(self, task: Versioned[TaskRecord]) -> None:
        ended = self._by_end()
        del ended[bisect.bisect_left(ended, (task.mod_revision, task.record.task))]

    def ended_after(self, revision: int) -> Iterator[tuple[int, str]]:
        """(revision of its end, id) of the tasks that ended after `revision`, in that order. Not to be held across an
        await."""
        ended = self._by_end()
        for index in range(bisect.bisect_left(ended, (revision + 1, "")), len(ended)):
            yield ended[index]

    def _by_end(self) -> list[tuple[int, str]]:
        if not self._ended_sorted:
            self._ended.sort()
            self._ended_sorted = True
        return self._ended

    def _insert(self, item: tuple[Place, str]) -> None:
        order = self._order
        if self._order_sorted:
            # Replicas' clocks differ a little, so the newest task is not always the last.
            index = bisect.bisect_left(order, item)
            self._order_sorted = len(order) - index <= _NEAR
            if self._order_sorted:
                order.insert(index, item)
                return
        order.append(item)

    def _by_place(self) -> list[tuple[Place, str]]:
        if not self._order_sorted:
            self._order.sort()
            self._order_sorted = True
        return self._order

    def newest(self, before: Place | None = None) -> Iterator[Versioned[TaskRecord]]:
        """Newest first; those whose place is before `before`, when it is given. Not to be held across an await."""
        order = self._by_place()
        index = bisect.bisect_left(order, (before, "")) if before else len(order)
        while index > 0:
            index -= 1
            yield self.records[order[index][1]]
