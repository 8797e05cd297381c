"""Dispatch (rule 10): from the mirror's change straight to the claim, several claims at a time, no polling.

Leader only. A step costs O(log n) in the number of waiting tasks. Fairness, parking and capacity are kept apart
(`domain/fairness.py`, `domain/parking.py`, `capacity.py`); this module moves tasks between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination import keys, life
from cloudclaw.coordination.records import EndReason, TaskRecord, TaskState
from cloudclaw.coordination.transactions import Transactions, Versioned
from cloudclaw.errors import AbortedError, CloudClawError, DataLossError, UnavailableError
from cloudclaw.ids import new_id
from cloudclaw_scheduler.app.assign import Assigner
from cloudclaw_scheduler.app.capacity import Capacity
from cloudclaw_scheduler.app.links import Links, NodeLink
from cloudclaw_scheduler.app.metrics import Metrics
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.spawner import Spawner
from cloudclaw_scheduler.app.state import Attempt, Change, Kind, Queued, State, TaskKey, Workspace
from cloudclaw_scheduler.domain.fairness import FairQueue, Waiting
from cloudclaw_scheduler.domain.parking import Parking

_log = structlog.get_logger()

CLAIMS_AT_ONCE: Final = 32
_MOMENT: Final = 0.02
"""Seconds before a task whose claim lost a race is offered again."""
_PAUSE: Final = 0.5
"""Seconds before a task whose claim failed for an outage is offered again."""


class Dispatcher:
    """Follows the mirror and the links, and claims what can run."""

    def __init__(
        self,
        mirror: Mirror,
        links: Links,
        assigner: Assigner,
        transactions: Transactions,
        spawner: Spawner,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._mirror = mirror
        self._assigner = assigner
        self._transactions = transactions
        self._spawner = spawner
        self._clock = clock
        self._metrics = metrics
        self._capacity = Capacity(links)
        self._queues: dict[str, FairQueue] = {}
        self._parking = Parking()
        self._claiming: set[TaskKey] = set()

    @property
    def parked(self) -> int:
        """Tasks that wait for a writer."""
        return len(self._parking)

    def is_parked(self, tenant: str, task: str) -> bool:
        """Whether the task waits for its workspace's writer."""
        return (tenant, task) in self._parking

    # -- what changed --

    def reloaded(self) -> None:
        """Build everything anew from the mirror."""
        state = self._mirror.state
        self._capacity.load(state)
        self._queues.clear()
        self._parking = Parking()
        for tenant, pool in self._capacity.held_by():
            self._queue(pool).started(tenant)
        for queued in sorted(state.queue.values(), key=lambda q: (-q.priority, q.order)):
            self._enqueue(queued)
        self.pump()

    def changed(self, changes: Sequence[Change]) -> None:
        for change in changes:
            value = change.value
            match change.kind:
                case Kind.QUEUED:
                    assert isinstance(value, Queued)
                    self._enqueue(value)
                case Kind.UNQUEUED:
                    assert isinstance(value, Queued)
                    self._gone(value)
                case Kind.CLAIMED:
                    assert isinstance(value, Attempt)
                    task = self._state.task(*value.key)
                    pool = task.record.plan.pool if task else ""
                    if self._capacity.claimed(value, pool):
                        self._queue(pool).started(value.tenant)
                case Kind.RELEASED:
                    assert isinstance(value, Attempt)
                    released = self._capacity.released(value)
                    if released is not None:
                        self._queue(released).stopped(value.tenant)
                case Kind.WRITER_TAKEN:
                    assert isinstance(value, tuple)
                    self._parking.taken(value)
                case Kind.WRITER_FREE:
                    assert isinstance(value, tuple)
                    self._unpark(value)
                case _:
                    pass
        self.pump()

    def pump(self) -> None:
        """Start as many claims as slots and tasks allow. Called after every change of either."""
        for pool, queue in tuple(self._queues.items()):
            while len(queue) and len(self._claiming) < CLAIMS_AT_ONCE:
                nodes = self._open_nodes(pool)
                runtimes = {runtime for link, _ in nodes for runtime in link.pools[pool].runtimes}
                waiting = queue.pop(sorted(runtimes), self._fits) if nodes else None
                if waiting is None:
                    break
                self._start(waiting, pool, queue, nodes)

    def _open_nodes(self, pool: str) -> list[tuple[NodeLink, int]]:
        """Connected, registered nodes that have a slot of `pool` left, and how many."""
        return [(link, free) for link, free in self._capacity.open_nodes(pool) if link.node in self._state.nodes]

    # -- the queue --

    @property
    def _state(self) -> State:
        return self._mirror.state

    def _queue(self, pool: str) -> FairQueue:
        queue = self._queues.get(pool)
        if queue is None:
            queue = self._queues[pool] = FairQueue()
        return queue

    def _enqueue(self, queued: Queued) -> None:
        """Put a queued task where it belongs: ready, or parked for its writer."""
        task = self._state.task(*queued.key)
        if task is None or queued.key in self._claiming:
            return  # the claim's end puts it back when it must
        plan = task.record.plan
        if plan.writes:
            workspace = (queued.tenant, plan.workspace)
            if not self._parking.may_go(workspace, queued.key, self._state.writers.get(workspace, "")):
                self._parking.park(workspace, queued.key, queued.priority, queued.order)
                return
        self._queue(queued.pool).add(Waiting(queued.tenant, queued.task, plan.runtime, queued.priority, queued.order))

    def _gone(self, queued: Queued) -> None:
        """A task left the queue: claimed by us, canceled, or timed out."""
        self._queue(queued.pool).discard(queued.key)
        task = self._state.task(*queued.key)
        if task is not None and task.record.plan.writes:
            workspace = (queued.tenant, task.record.plan.workspace)
            if self._parking.gone(workspace, queued.key) and workspace not in self._state.writers:
                self._unpark(workspace)

    def _unpark(self, workspace: TaskKey) -> None:
        """The writer is free: let the best of those that wait for it go."""
        while workspace not in self._state.writers:
            key = self._parking.next(workspace)
            if key is None:
                return
            queued = self._state.queue.get(key)
            if queued is not None:
                self._enqueue(queued)
                return
            self._parking.gone(workspace, key)

    def _fits(self, waiting: Waiting) -> bool:
        """Whether a task taken from the ready ones can be claimed; otherwise it has been dealt with."""
        queued = self._state.queue.get(waiting.key)
        task = self._state.task(*waiting.key)
        if queued is None or task is None or task.record.state is not TaskState.QUEUED:
            return False
        plan = task.record.plan
        workspace = (waiting.tenant, plan.workspace)
        if plan.workspace and workspace not in self._state.workspaces:
            self._claiming.add(waiting.key)
            self._spawner.spawn(self._workspace_gone(task, plan.workspace))
            return False
        if plan.writes and not self._parking.may_go(workspace, waiting.key, self._state.writers.get(workspace, "")):
            self._parking.park(workspace, waiting.key, waiting.priority, waiting.order)
            return False
        return True

    # -- the claim --

    def _start(self, waiting: Waiting, pool: str, queue: FairQueue, nodes: list[tuple[NodeLink, int]]) -> None:
        task = self._state.task(*waiting.key)
        assert task is not None
        plan = task.record.plan
        workspace = self._state.workspaces.get((waiting.tenant, plan.workspace)) if plan.workspace else None
        link = self._choose(task.record, pool, workspace, nodes)
        self._claiming.add(waiting.key)
        self._capacity.reserve(waiting.key, link.node, pool)
        queue.started(waiting.tenant)
        spec = self._state.spec(waiting.key)
        self._spawner.spawn(self._claim(waiting, task, link, pool, workspace, spec))

    def _choose(
        self, record: TaskRecord, pool: str, workspace: Workspace | None, nodes: list[tuple[NodeLink, int]]
    ) -> NodeLink:
        """The node that has the task's tree, else the one with most slots left; never waits for either."""
        offering = [(link, free) for link, free in nodes if record.plan.runtime in link.pools[pool].runtimes]
        start = record.checkpoint or (workspace.record.head if workspace else None)
        if start is not None:
            warm = [(link, free) for link, free in offering if link.has_cached(record.tenant, start.id)]
            offering = warm or offering
        return max(offering, key=lambda each: each[1])[0]

    async def _claim(
        self,
        waiting: Waiting,
        task: Versioned[TaskRecord],
        link: NodeLink,
        pool: str,
        workspace: Workspace | None,
        spec: bytes | None,
    ) -> None:
        pause = 0.0
        claimed = False
        try:
            node = self._state.nodes.get(link.node)
            if node is None:
                raise AbortedError(f"node {link.node} is not registered")
            done = await self._assigner.claim(task, node.entry, link.node, workspace, spec)
            claimed = True
            self._claiming.discard(waiting.key)
            queued = self._state.queue.get(waiting.key)
            if queued is not None and self._state.revision >= done.mod_revision:
                self._enqueue(queued)  # the attempt is lost already, and the task in the queue again
        except DataLossError as error:
            await self._fail(task, EndReason.INTERNAL, error.message)
        except CloudClawError as error:
            self._metrics.claims_lost.inc()
            pause = _MOMENT if isinstance(error, AbortedError) else _PAUSE
            _log.info("claim failed", tenant=waiting.tenant, task=waiting.task, node=link.node, error=error.message)
        finally:
            if claimed:
                self.pump()
            else:
                self._spawner.spawn(self._settle(waiting, pool, pause))

    async def _settle(self, waiting: Waiting, pool: str, pause: float) -> None:
        """After a failed claim: see what became of the task, and offer it again when it still waits."""
        while True:
            if pause:
                await self._clock.sleep(pause)
            try:
                await self._mirror.sync(keys.task(*waiting.key))
                break
            except UnavailableError:
                pause = _PAUSE  # nothing is known and nothing can be claimed until etcd answers
        if self._capacity.drop(waiting.key):
            self._queue(pool).stopped(waiting.tenant)
        self._claiming.discard(waiting.key)
        queued = self._state.queue.get(waiting.key)
        if queued is not None:
            self._enqueue(queued)
        self.pump()

    async def _workspace_gone(self, task: Versioned[TaskRecord], workspace: str) -> None:
        key = (task.record.tenant, task.record.task)
        try:
            # The mirror is one watch behind at most: a workspace that it does not have may have come just now.
            if not await self._mirror.sync(keys.workspace(task.record.tenant, workspace)):
                await self._fail(task, EndReason.WORKSPACE_GONE, f"the workspace {workspace} was deleted")
            await self._mirror.sync(keys.task(*key))
        except UnavailableError:
            await self._clock.sleep(_PAUSE)
        finally:
            self._claiming.discard(key)
        queued = self._state.queue.get(key)
        if queued is not None:
            self._enqueue(queued)
        self.pump()

    async def _fail(self, task: Versioned[TaskRecord], reason: EndReason, message: str) -> None:
        after = life.failed(task.record, self._clock.wall(), reason, message, op_id=new_id("op"))
        try:
            await self._transactions.cancel(task, after)
            self._metrics.ended.labels(after.state.value).inc()
        except AbortedError as error:
            _log.info("the task changed meanwhile", task=task.record.task, error=error.message)
