"""Which objects the attempts of tasks stored that somebody can still ask for."""

from __future__ import annotations

import bisect
import hashlib
from array import array
from collections.abc import Iterable

from cloudclaw.coordination.records import AttemptEnd, TaskRecord


class Outputs:
    """Logs, results and artifacts of many tasks, as 8 bytes for each: about 24 for a task, so 5 MB for 200,000 tasks.

    Objects are known by hashes. Two of them collide about once in 10^13 for a tenant with a million; then one object
    stays that could go, never the other way round.

    A task that has not ended may still choose: its results stay all, and the artifacts of all its attempts. One that
    has ended keeps the result that its record names, and the artifacts of its last attempt if it left a result, which
    is what lists them. Logs stay of every attempt that the record tells of: they are found by its number there. (A
    record that would be over 8 KiB forgets attempts from its middle, and with them how to find their logs.)
    """

    def __init__(self, hashes: Iterable[int] = ()) -> None:
        self._hashes = array("Q", hashes)
        self._sorted = 0

    def add(self, task: TaskRecord) -> None:
        """Count what `task` refers to."""
        ended = task.state.ended
        self._hashes.extend(_hash("logs", attempt.uid) for attempt in task.attempts)
        if not ended:
            self._hashes.append(_hash("task", task.task))
        if task.result_object:
            self._hashes.append(_hash("result", task.result_object))
        if not ended:
            self._hashes.extend(_hash("artifacts", task.task, attempt.uid) for attempt in task.attempts)
        elif task.attempts and (task.result or task.result_object):
            self._hashes.append(_hash("artifacts", task.task, task.attempts[-1].uid))

    def add_attempts(self, attempts: Iterable[AttemptEnd]) -> None:
        """Count the logs of attempts that a long conversation keeps apart from its record."""
        self._hashes.extend(_hash("logs", attempt.uid) for attempt in attempts)

    def merge(self, other: Outputs) -> None:
        """Count all that `other` counts."""
        self._hashes.extend(other._hashes)

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        return 128 + 8 * len(self._hashes)

    def log(self, uid: str) -> bool:
        """A task tells of the attempt, so its log is wanted."""
        return self._has("logs", uid)

    def unfinished(self, task: str) -> bool:
        """The task has not ended."""
        return self._has("task", task)

    def result(self, task: str, name: str) -> bool:
        """The task has chosen the object `name` as its result, or may still do so."""
        return self._has("result", name) or self._has("task", task)

    def artifact(self, task: str, uid: str) -> bool:
        """The artifacts of this attempt are those of its task, or may become so."""
        return self._has("artifacts", task, uid)

    def _has(self, *parts: str) -> bool:
        if self._sorted != len(self._hashes):
            self._hashes = array("Q", sorted(self._hashes))
            self._sorted = len(self._hashes)
        wanted = _hash(*parts)
        at = bisect.bisect_left(self._hashes, wanted)
        return at < len(self._hashes) and self._hashes[at] == wanted


def _hash(*parts: str) -> int:
    # No part holds a line feed: they are names of keys and objects.
    return int.from_bytes(hashlib.blake2b("\n".join(parts).encode(), digest_size=8).digest())
