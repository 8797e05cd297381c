"""Tasks that wait for a workspace's writer: parked until the writer's key is released (rule 10).

On a release one task is let go, the best of those that wait for that workspace, and the workspace is kept for it
until it has taken the writer or has gone; so a thousand tasks of one workspace cost nothing while they wait.
"""

from __future__ import annotations

import heapq

Key = tuple[str, str]


class Parking:
    """Who waits for which workspace; workspaces by (tenant, name), tasks by (tenant, id)."""

    def __init__(self) -> None:
        self._heaps: dict[Key, list[tuple[int, int, Key]]] = {}
        self._parked: dict[Key, Key] = {}
        self._kept: dict[Key, Key] = {}

    def __contains__(self, task: Key) -> bool:
        return task in self._parked

    def __len__(self) -> int:
        return len(self._parked)

    def may_go(self, workspace: Key, task: Key, holder: str) -> bool:
        """Whether `task` may be claimed now, the writer's key being held by `holder` ("" for nobody); if so, the
        workspace is kept for it."""
        if holder:
            return holder == task[1]
        return self._kept.setdefault(workspace, task) == task

    def park(self, workspace: Key, task: Key, priority: int, order: int) -> None:
        """`task` waits for `workspace`."""
        if task not in self._parked:
            self._parked[task] = workspace
            heapq.heappush(self._heaps.setdefault(workspace, []), (-priority, order, task))

    def taken(self, workspace: Key) -> None:
        """Somebody holds the writer now; it need not be kept any longer."""
        self._kept.pop(workspace, None)

    def next(self, workspace: Key) -> Key | None:
        """The writer is free: the task to let go, for which the workspace is kept now; None when nobody waits or it
        is kept for one already."""
        if workspace in self._kept:
            return None
        heap = self._heaps.get(workspace, [])
        while heap:
            task = heapq.heappop(heap)[2]
            if self._parked.get(task) == workspace:
                del self._parked[task]
                self._kept[workspace] = task
                return task
        self._heaps.pop(workspace, None)
        return None

    def gone(self, workspace: Key, task: Key) -> bool:
        """`task` does not wait any more. True when the workspace was kept for it: call `next`."""
        self._parked.pop(task, None)
        if self._kept.get(workspace) == task:
            del self._kept[workspace]
            return True
        return False
