"""Changes of tasks for those who follow them: `WatchTasks` streams and log tails."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import Final

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import CompactedError, KeyValue, Op
from cloudclaw.coordination.records import TaskRecord, decode
from cloudclaw.coordination.transactions import Versioned
from cloudclaw.errors import InvalidArgumentError, OutOfRangeError, UnavailableError
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.state import Change, Kind, TaskKey

Task = Versioned[TaskRecord]

RING: Final = 2048
"""Changes kept for streams that resume; from further back they are read from etcd."""
BACKLOG: Final = 1024
"""Changes kept for one slow stream; then it, too, goes on from etcd."""


class _Stream:
    """What one `WatchTasks` stream has not sent yet."""

    def __init__(self) -> None:
        self.pending: deque[Task] = deque()
        self.overflowed = False
        self.signal = asyncio.Event()

    def push(self, task: Task) -> None:
        if len(self.pending) >= BACKLOG:
            self.overflowed = True
            self.pending.clear()
        if not self.overflowed:
            self.pending.append(task)
        self.signal.set()


class Feed:
    """Fans out the mirror's task changes. A slow follower costs others nothing: it goes on from etcd by itself."""

    def __init__(self, mirror: Mirror, kv: KeyValue) -> None:
        self._mirror = mirror
        self._kv = kv
        self._ring: list[Task] = []
        self._floor = 0
        self._streams: dict[str, set[_Stream]] = {}
        self._signals: dict[TaskKey, set[asyncio.Event]] = {}
        self.stopped = False
        mirror.subscribe(self)

    async def stop(self) -> None:
        """This replica is about to stop: those who follow go on elsewhere."""
        self.stopped = True
        for streams in self._streams.values():
            for stream in streams:
                stream.signal.set()
        for signals in self._signals.values():
            for signal in signals:
                signal.set()

    def check(self) -> None:
        """`UnavailableError(reason="STOPPING")` once this replica is about to stop."""
        if self.stopped:
            raise UnavailableError("this replica is stopping; go on elsewhere", retry_after=0.2, reason="STOPPING")

    def changed(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.kind is Kind.TASK and isinstance(task := change.value, Versioned):
                self._ring.append(task)
                record = task.record
                for stream in self._streams.get(record.tenant, ()):
                    stream.push(task)
                for signal in self._signals.get((record.tenant, record.task), ()):
                    signal.set()
        if len(self._ring) > 2 * RING:
            self._floor = self._ring[-RING - 1].mod_revision
            del self._ring[:-RING]

    def reloaded(self) -> None:
        self._ring.clear()
        self._floor = self._mirror.state.revision
        for streams in self._streams.values():
            for stream in streams:
                stream.overflowed = True
                stream.pending.clear()
                stream.signal.set()
        for signals in self._signals.values():
            for signal in signals:
                signal.set()

    @contextlib.contextmanager
    def signal(self, tenant: str, task: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the task changes; the follower clears it."""
        event = asyncio.Event()
        followers = self._signals.setdefault((tenant, task), set())
        followers.add(event)
        try:
            yield event
        finally:
            followers.discard(event)
            if not followers:
                self._signals.pop((tenant, task), None)

    async def watch(self, tenant: str, task: str, after: int) -> AsyncGenerator[Task, None]:
        """Every change of the tenant's tasks (of one, when `task` is given) after the revision `after`, or from now
        on when that is 0. Never ends. `OutOfRangeError` when `after` was compacted."""
        if after < 0:
            raise InvalidArgumentError("must not be negative", field="after_revision")
        stream = _Stream()
        streams = self._streams.setdefault(tenant, set())
        streams.add(stream)
        try:
            revision = after or self._mirror.state.revision
            if revision < self._floor:
                stream.overflowed = True
            else:
                first = bisect.bisect_right(self._ring, revision, key=lambda t: t.mod_revision)
                for change in self._ring[first:]:
                    if change.record.tenant == tenant:
                        stream.push(change)
            while not stream.overflowed:
                while stream.pending:
                    change = stream.pending.popleft()
                    if change.mod_revision > revision:
                        revision = change.mod_revision
                        if not task or change.record.task == task:
                            yield change
                self.check()
                stream.signal.clear()
                if not stream.overflowed:
                    await stream.signal.wait()
            async for change in self._from_etcd(tenant, task, revision):
                yield change
        finally:
            streams.discard(stream)
            if not streams:
                self._streams.pop(tenant, None)

    async def _from_etcd(self, tenant: str, task: str, after: int) -> AsyncIterator[Task]:
        try:
            async for batch in self._kv.watch(keys.task(tenant, ""), after):
                for event in batch.events:
                    entry = event.entry
                    if event.op is Op.PUT and (not task or entry.key == keys.task(tenant, task)):
                        record = decode(entry.value, TaskRecord)
                        yield Versioned(record, entry.create_revision, entry.mod_revision)
        except CompactedError as error:
            raise OutOfRangeError(
                f"the changes after revision {after} are gone: list the tasks, then watch from the list's revision",
                reason="REVISION_COMPACTED",
            ) from error
