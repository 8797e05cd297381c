"""Ended tasks, and an archiver that a test drives by hand."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from cloudclaw.clock import Clock
from cloudclaw.coordination import life
from cloudclaw.coordination.port import KeyValue
from cloudclaw.coordination.records import Plan, TaskRecord
from cloudclaw.coordination.transactions import Transactions, Versioned
from cloudclaw.history.bundles import ArchivedTask
from cloudclaw.history.store import BundleStore
from cloudclaw.objects.port import ObjectStore
from cloudclaw.v1.scheduler_pb2 import ListTasksRequest
from cloudclaw.v1.task_pb2 import Task, TaskSpec
from cloudclaw_scheduler.app.archiver import Archiver, Held, Rules
from cloudclaw_scheduler.app.metrics import Metrics
from cloudclaw_scheduler.app.mirror import Mirror
from tests.unit.scheduler.plane import Plane, User, until

AT_ONCE = Rules(retention=0.0, batch_window=0.0)


def ended_task(number: int, *, tenant: str = "acme", created: float = 1000.0, **changes: Any) -> ArchivedTask:
    """A CANCELED task, `number` the create revision, with its spec."""
    record = life.queued(tenant=tenant, task=f"task-{number:016d}", plan=Plan(), now=created, op_id="op")
    record = replace(life.canceled(record, created + 1, op_id="op-2"), **changes)
    return ArchivedTask(Versioned(record, number, number + 1), TaskSpec(argv=["echo", str(number)]).SerializeToString())


async def end(
    transactions: Transactions, task: str, *, tenant: str = "acme", created: float = 1000.0, ended: float = 1000.0
) -> Versioned[TaskRecord]:
    """Submit and cancel a task at these times."""
    record = life.queued(tenant=tenant, task=task, plan=Plan(), now=created, op_id=task)
    spec = TaskSpec(argv=["echo", task]).SerializeToString()
    queued = (await transactions.submit(record, spec)).task
    return await transactions.cancel(queued, life.canceled(queued.record, ended, op_id=f"{task}-end"))


def archiver_of(
    kv: KeyValue,
    objects: ObjectStore,
    mirror: Mirror,
    clock: Clock,
    rules: Rules = AT_ONCE,
    held: Held = lambda _: None,
) -> Archiver:
    """An archiver that does what `sweep` is called for."""
    metrics = Metrics(CollectorRegistry())
    return Archiver(kv, mirror, Transactions(kv), BundleStore(objects), clock, metrics, rules, held)


async def archive(plane: Plane, *, leave: int = 0) -> None:
    """Archive all ended tasks of a plane but the latest `leave`, and wait until its mirror shows it."""
    mirror = plane.scheduler.mirror
    await mirror.caught_up()

    def held(tenant: str) -> int | None:
        revisions = [revision for revision, _ in mirror.state.ended_after(tenant, 0)]
        return revisions[-leave] - 1 if len(revisions) >= leave else 0

    archiver = archiver_of(plane.kv, plane.objects, mirror, plane.clock, held=held if leave else lambda _: None)
    await archiver.sweep()

    def gone() -> bool:
        left = [len(list(mirror.state.ended_after(tenant, 0))) for tenant in mirror.state.tenants]
        return all(count <= leave for count in left)

    await until("the mirror shows what was archived", gone)


async def canceled(user: User, count: int, **spec: Any) -> list[str]:
    """Ids of so many tasks that were canceled, oldest first."""
    tasks = [await user.submit(**spec) for _ in range(count)]
    for task in tasks:
        await user.cancel(task)
    return tasks


async def walk(user: User, **request: Any) -> list[list[Task]]:
    """All pages of a list."""
    pages: list[list[Task]] = []
    token = ""
    while True:
        page = await user.stub.ListTasks(ListTasksRequest(page_token=token, **request))
        pages.append(list(page.tasks))
        token = page.next_page_token
        if not token:
            return pages
