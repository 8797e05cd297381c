"""What etcd holds, decoded, at one revision: the mirror's data, and how one event changes it."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import structlog
from msgspec.structs import replace

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Entry
from cloudclaw.coordination.records import (
    PAGE,
    AttemptRecord,
    ConsumerRecord,
    DeliveryRecord,
    InputRecord,
    ModelKeyRecord,
    NodeRecord,
    QueueRecord,
    TaskRecord,
    TaskState,
    WorkspaceRecord,
    WriterRecord,
    decode,
    decode_page,
)
from cloudclaw.coordination.transactions import Token, Versioned
from cloudclaw.errors import DataLossError
from cloudclaw_scheduler.app.tenant_tasks import TenantTasks

_log = structlog.get_logger()

TaskKey = tuple[str, str]
"""(tenant, task); also (tenant, workspace) for writers and workspaces."""

SPEC_BYTES: Final = 8 * 1024 * 1024
"""Bytes of inline specs kept for dispatch, so that a claim costs no further read."""


@dataclass(frozen=True, slots=True)
class Queued:
    """A task in `queue/`. Lower (`-priority`, `order`) runs first."""

    pool: str
    tenant: str
    task: str
    priority: int
    order: int

    @property
    def key(self) -> TaskKey:
        return (self.tenant, self.task)


@dataclass(frozen=True, slots=True)
class Delayed:
    """A task in `delayed/`; `due` in seconds of the leader's wall clock."""

    pool: str
    due: float
    tenant: str
    task: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """A key in `attempts/`: the lease on a running attempt."""

    node: str
    tenant: str
    task: str
    number: int
    uid: str
    revision: int

    @property
    def key(self) -> TaskKey:
        return (self.tenant, self.task)

    @property
    def token(self) -> Token:
        """Its fencing token."""
        return Token(node=self.node, tenant=self.tenant, task=self.task, revision=self.revision)


@dataclass(frozen=True, slots=True)
class Node:
    """A key in `nodes/`."""

    entry: Entry
    record: NodeRecord


@dataclass(frozen=True, slots=True)
class Workspace:
    """A key in `workspaces/`."""

    entry: Entry
    record: WorkspaceRecord


@dataclass(frozen=True, slots=True)
class Delivery:
    """A key in `deliveries/`: a result that waits for its acknowledgement. `revision`: of the task's end; `token`: the
    key's create revision."""

    tenant: str
    consumer: str
    task: str
    revision: int
    token: int


@dataclass(frozen=True, slots=True)
class Input:
    """A key in `inputs/`, without its text. `number` is 0 while it is not due, and for a mere end; `due` is 0 for one
    that never waited."""

    message_id: str
    number: int
    due: float


class Kind(enum.Enum):
    """What changed; the value that comes with it in brackets."""

    TASK = "task"  # Versioned[TaskRecord]
    QUEUED = "queued"  # Queued
    UNQUEUED = "unqueued"  # Queued
    DELAYED = "delayed"  # Delayed
    UNDELAYED = "undelayed"  # Delayed
    CLAIMED = "claimed"  # Attempt
    RELEASED = "released"  # Attempt
    NODE = "node"  # str, its id
    REMOVED = "removed"  # TaskKey, a task that was archived, or deleted with its tenant
    WRITER_TAKEN = "writer taken"  # TaskKey
    WRITER_FREE = "writer free"  # TaskKey
    BURIED = "buried"  # str, a tenant that is being deleted
    CONSUMER = "consumer"  # TaskKey, (tenant, consumer)
    UNDELIVERED = "undelivered"  # Delivery, which was acknowledged or whose time is over


@dataclass(frozen=True, slots=True)
class Change:
    """One change of the mirror."""

    kind: Kind
    value: object


class State:
    """All of it. Read freely; only `apply` writes. `queued_by`: lengths of the queue by (pool, tenant)."""

    def __init__(self, revision: int = 0) -> None:
        self.revision = revision
        self.tenants: dict[str, TenantTasks] = {}
        self.running: set[TaskKey] = set()
        self.queue: dict[TaskKey, Queued] = {}
        self.queued_by: Counter[tuple[str, str]] = Counter()
        self.delayed: dict[TaskKey, Delayed] = {}
        self.attempts: dict[str, dict[TaskKey, Attempt]] = {}
        self.nodes: dict[str, Node] = {}
        self.writers: dict[TaskKey, str] = {}
        self.workspaces: dict[TaskKey, Workspace] = {}
        self.buried: set[str] = set()
        """Tenants that are being deleted."""
        self.consumers: dict[TaskKey, Versioned[ConsumerRecord]] = {}
        self.deliveries: dict[TaskKey, dict[str, Delivery]] = {}
        """What is being delivered, by (tenant, consumer) and task."""
        self.inputs: dict[TaskKey, dict[str, Input]] = {}
        """Of conversations that have any, by message id. A task that is shown has all of its own."""
        self.earlier: dict[TaskKey, dict[int, bytes]] = {}
        """Attempts that long conversations have no room for in their records, by page."""
        self.parked: set[TaskKey] = set()
        self.model_keys: dict[str, dict[str, str]] = {}
        """Tenants' keys for models by upstream, sealed."""
        self.pools: dict[str, set[str]] = {}
        self._specs: dict[TaskKey, bytes] = {}
        self._spec_bytes = 0

    def task(self, tenant: str, task: str) -> Versioned[TaskRecord] | None:
        """One task, or None."""
        tasks = self.tenants.get(tenant)
        return tasks.records.get(task) if tasks else None

    def whole(self, record: TaskRecord) -> TaskRecord:
        """`record`, which is as old as this or older, with all of its attempts."""
        pages = self.earlier.get((record.tenant, record.task), {}) if record.earlier else {}
        wanted = range(record.earlier // PAGE)
        if not pages or any(page not in pages for page in wanted):
            return record
        earlier = tuple(attempt for page in wanted for attempt in decode_page(pages[page]))
        return replace(record, attempts=earlier + record.attempts, earlier=0, earlier_log=0)

    def attempt(self, node: str, tenant: str, task: str) -> Attempt | None:
        """The lease that `node` holds on a task, or None."""
        held = self.attempts.get(node)
        return held.get((tenant, task)) if held else None

    def ended_after(self, tenant: str, revision: int) -> Iterator[tuple[int, str]]:
        """As `TenantTasks.ended_after`, of any tenant."""
        tasks = self.tenants.get(tenant)
        return tasks.ended_after(revision) if tasks else iter(())

    def spec(self, key: TaskKey) -> bytes | None:
        """The inline spec of a queued task, when it is still at hand."""
        return self._specs.get(key)

    def apply(self, entry: Entry, deleted: bool) -> Change | None:
        """Take one event in. An unreadable value is logged and left out; it never stops the mirror."""
        try:
            return self._apply(entry, deleted)
        except DataLossError as error:
            _log.error("a key cannot be read", key=entry.key, error=error.message)
            return None

    def _apply(self, entry: Entry, deleted: bool) -> Change | None:
        parts = keys.parts(entry.key)
        match parts:
            case ["tasks", tenant, task]:
                return self._task(entry, deleted, (tenant, task))
            case ["queue", pool, tenant, task]:
                return self._queued(entry, deleted, pool, (tenant, task))
            case ["attempts", node, tenant, task]:
                return self._attempt(entry, deleted, node, (tenant, task))
            case ["specs", tenant, task]:
                self._keep_spec((tenant, task), entry.value, deleted)
            case ["delayed", pool, due_ms, tenant, task]:
                delayed = Delayed(pool, int(due_ms) / 1000, tenant, task)
                if not deleted:
                    self.delayed[tenant, task] = delayed
                    return Change(Kind.DELAYED, delayed)
                if self.delayed.get((tenant, task)) == delayed:
                    del self.delayed[tenant, task]
                return Change(Kind.UNDELAYED, delayed)
            case ["nodes", node]:
                return self._node(entry, deleted, node)
            case ["writers", tenant, workspace]:
                if deleted:
                    self.writers.pop((tenant, workspace), None)
                    return Change(Kind.WRITER_FREE, (tenant, workspace))
                self.writers[tenant, workspace] = decode(entry.value, WriterRecord).holder
                return Change(Kind.WRITER_TAKEN, (tenant, workspace))
            case ["workspaces", tenant, workspace]:
                if deleted:
                    self.workspaces.pop((tenant, workspace), None)
                else:
                    self.workspaces[tenant, workspace] = Workspace(entry, decode(entry.value, WorkspaceRecord))
            case ["tombstones", tenant]:
                if deleted:
                    self.buried.discard(tenant)
                    return None
                self.buried.add(tenant)
                return Change(Kind.BURIED, tenant)
            case ["consumers", tenant, consumer]:
                if deleted:
                    self.consumers.pop((tenant, consumer), None)
                else:
                    record = decode(entry.value, ConsumerRecord)
                    self.consumers[tenant, consumer] = Versioned(record, entry.create_revision, entry.mod_revision)
                return Change(Kind.CONSUMER, (tenant, consumer))
            case ["inputs", tenant, task, message_id]:
                self._input(entry, deleted, (tenant, task), message_id)
            case ["earlier", tenant, task, page]:
                pages = self.earlier.setdefault((tenant, task), {})
                pages.pop(int(page), None)
                if not deleted:
                    pages[int(page)] = entry.value
                if not pages:
                    del self.earlier[tenant, task]
            case ["modelkeys", tenant, upstream]:
                kept = self.model_keys.setdefault(tenant, {})
                kept.pop(upstream, None)
                if not deleted:
                    kept[upstream] = decode(entry.value, ModelKeyRecord).sealed
                if not kept:
                    del self.model_keys[tenant]
            case ["deliveries", tenant, consumer, task]:
                return self._delivery(entry, deleted, (tenant, consumer), task)
        return None

    def _task(self, entry: Entry, deleted: bool, key: TaskKey) -> Change | None:
        tenant, task = key
        if deleted:
            self.running.discard(key)
            self.parked.discard(key)
            if tasks := self.tenants.get(tenant):
                tasks.remove(task)
                if not tasks.records:
                    del self.tenants[tenant]
            return Change(Kind.REMOVED, key)
        versioned = Versioned(decode(entry.value, TaskRecord), entry.create_revision, entry.mod_revision)
        tasks = self.tenants.get(tenant)
        if tasks is None:
            tasks = self.tenants[tenant] = TenantTasks()
        tasks.put(versioned)
        for among, is_one in (
            (self.running, versioned.record.state is TaskState.RUNNING),
            (self.parked, versioned.record.parked),
        ):
            (among.add if is_one else among.discard)(key)
        return Change(Kind.TASK, versioned)

    def _queued(self, entry: Entry, deleted: bool, pool: str, key: TaskKey) -> Change | None:
        if deleted:
            spec = self._specs.pop(key, None)
            self._spec_bytes -= len(spec) if spec else 0
            queued = self.queue.pop(key, None)
            if queued is None:
                return None
            self.queued_by[queued.pool, queued.tenant] -= 1
            if not self.queued_by[queued.pool, queued.tenant]:
                del self.queued_by[queued.pool, queued.tenant]
            return Change(Kind.UNQUEUED, queued)
        record = decode(entry.value, QueueRecord)
        queued = Queued(pool, key[0], key[1], record.priority, record.order or entry.create_revision)
        if key not in self.queue:
            self.queued_by[pool, key[0]] += 1
        self.queue[key] = queued
        return Change(Kind.QUEUED, queued)

    def _attempt(self, entry: Entry, deleted: bool, node: str, key: TaskKey) -> Change | None:
        if deleted:
            held = self.attempts.get(node, {})
            gone = held.pop(key, None)
            if not held:
                self.attempts.pop(node, None)
            return Change(Kind.RELEASED, gone) if gone else None
        record = decode(entry.value, AttemptRecord)
        attempt = Attempt(node, key[0], key[1], record.number, record.uid, entry.create_revision)
        self.attempts.setdefault(node, {})[key] = attempt
        return Change(Kind.CLAIMED, attempt)

    def _delivery(self, entry: Entry, deleted: bool, key: TaskKey, task: str) -> Change | None:
        if deleted:
            held = self.deliveries.get(key, {})
            gone = held.pop(task, None)
            if not held:
                self.deliveries.pop(key, None)
            return Change(Kind.UNDELIVERED, gone) if gone else None
        record = decode(entry.value, DeliveryRecord)
        delivery = Delivery(key[0], key[1], task, record.revision, entry.create_revision)
        self.deliveries.setdefault(key, {})[task] = delivery
        return None

    def _input(self, entry: Entry, deleted: bool, key: TaskKey, message_id: str) -> None:
        if not deleted:
            record = decode(entry.value, InputRecord)
            self.inputs.setdefault(key, {})[message_id] = Input(message_id, record.number, record.due)
            return
        inputs = self.inputs.get(key, {})
        inputs.pop(message_id, None)
        if not inputs:
            self.inputs.pop(key, None)

    def _node(self, entry: Entry, deleted: bool, node: str) -> Change:
        if deleted:
            self.nodes.pop(node, None)
        else:
            record = decode(entry.value, NodeRecord)
            self.nodes[node] = Node(entry, record)
            for pool in record.pools:
                self.pools.setdefault(pool.pool, set()).update(pool.runtimes)
        return Change(Kind.NODE, node)

    def _keep_spec(self, key: TaskKey, spec: bytes, deleted: bool) -> None:
        if not deleted and self._spec_bytes + len(spec) <= SPEC_BYTES and key not in self._specs:
            self._specs[key] = spec
            self._spec_bytes += len(spec)
