"""Checkpoints of running attempts: recorded under the token, each once, and the next attempt begins there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from cloudclaw.coordination import keys
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.coordination.port import CreateIs, Delete, Guard
from cloudclaw.coordination.records import SnapshotPointer, TaskRecord, WorkspaceRecord
from cloudclaw.coordination.transactions import Token, Transactions, Versioned
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_scheduler.app.checkpoints import Checkpoints
from cloudclaw_scheduler.app.links import Links, NodeLink
from cloudclaw_scheduler.app.metrics import Metrics
from cloudclaw_scheduler.app.results import Results
from cloudclaw_scheduler.app.spawner import Spawner
from tests.unit.scheduler.node import Node
from tests.unit.scheduler.plane import Plane, User, duration, soon, until

RUNNING = task_pb2.TASK_STATE_RUNNING
SUCCEEDED, FAILED, CANCELED = (
    task_pb2.TASK_STATE_SUCCEEDED,
    task_pb2.TASK_STATE_FAILED,
    task_pb2.TASK_STATE_CANCELED,
)
COMMITTED = pb.ReportVerdict.VERDICT_COMMITTED
FENCED = pb.ReportVerdict.VERDICT_FENCED
RETRY = pb.ReportVerdict.VERDICT_RETRY
AGAIN = task_pb2.RetryPolicy(
    max_attempts=3, initial_backoff=duration(0.01), retry_on=[task_pb2.END_REASON_NONZERO_EXIT]
)
NONZERO: dict[str, Any] = {
    "state": task_pb2.ATTEMPT_STATE_FAILED,
    "reason": task_pb2.END_REASON_NONZERO_EXIT,
    "exit_code": 3,
}


async def workspace(plane: Plane, head: str = "snap-1") -> None:
    pointer = SnapshotPointer(id=head, manifest="d1")
    record = WorkspaceRecord(name="ws", created=1.0, updated=1.0, op_id="op", head=pointer)
    await plane.transactions.create_workspace("acme", record, snapshot=pointer)


async def listed(plane: Plane) -> list[str]:
    """Snapshots of the workspace, by their keys."""
    found = await plane.kv.range(keys.snapshot("acme", "ws", ""), keys_only=True)
    return [keys.parts(entry.key)[-1] for entry in found.entries]


async def stored(plane: Plane, task_id: str) -> Versioned[TaskRecord]:
    found = await plane.transactions.get_task("acme", task_id)
    assert found is not None
    return found


async def test_a_checkpoint_is_recorded_and_shown(plane: Plane, user: User) -> None:
    await workspace(plane)
    node = await Node(plane).connect()
    task_id = await user.submit(workspace=task_pb2.WorkspaceSelection(name="ws"))
    assignment = await node.next()
    assert await node.checkpoint(assignment, "c-1", frozen=duration(0.02)) == COMMITTED
    task = await user.get(task_id)
    assert (task.checkpoint.snapshot_id, task.checkpoint.uid) == ("c-1", assignment.uid)
    assert task.checkpoint_time.ToMilliseconds() >= task.attempts[0].start_time.ToMilliseconds()
    assert len(task.events) == 2, "a checkpoint is no transition"
    assert await node.checkpoint(assignment, "c-2") == COMMITTED
    assert await listed(plane) == ["c-2", "snap-1"], "the one before is nobody's start any more"


async def test_the_next_attempt_starts_from_the_checkpoint_and_is_told_so(plane: Plane, user: User) -> None:
    await workspace(plane)
    node = await Node(plane).connect()
    task_id = await user.submit(workspace=task_pb2.WorkspaceSelection(name="ws"), retry=AGAIN)
    first = await node.next()
    assert (first.base.snapshot_id, first.head.snapshot_id, first.resumes) == ("snap-1", "snap-1", False)
    await node.checkpoint(first, "c-1")
    await node.finish(first, **NONZERO)
    second = await node.next()
    assert (second.base.snapshot_id, second.base.uid) == ("c-1", first.uid)
    assert (second.head.snapshot_id, second.resumes) == ("snap-1", True)
    task = await user.get(task_id)
    assert [(a.base_snapshot_id, a.resumed) for a in task.attempts] == [("snap-1", False), ("c-1", True)]
    snapshot = task_pb2.SnapshotRef(snapshot_id="end", manifest_digest="e", parent_id="snap-1")
    await node.finish(second, snapshot=snapshot)
    assert not (await user.get(task_id)).HasField("checkpoint")
    assert await listed(plane) == ["end", "snap-1"]


async def test_a_task_without_a_workspace_has_checkpoints_too(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    await user.submit(retry=AGAIN)
    first = await node.next()
    assert not first.HasField("base")
    await node.checkpoint(first, "c-1")
    await node.finish(first, **NONZERO)
    second = await node.next()
    assert (second.base.snapshot_id, second.resumes, second.HasField("head")) == ("c-1", True, False)


async def test_a_resumed_fork_is_still_told_against_the_head_it_began_with(plane: Plane, user: User) -> None:
    await workspace(plane)
    node = await Node(plane).connect()
    fork = task_pb2.WorkspaceSelection(name="ws", mode=task_pb2.WORKSPACE_MODE_FORK)
    await user.submit(workspace=fork, retry=AGAIN)
    first = await node.next()
    await node.checkpoint(first, "c-1")
    token = await plane.transactions.acquire_writer("acme", "ws", "upload", await plane.kv.grant(60))
    found = await plane.transactions.get_workspace("acme", "ws")
    assert found is not None
    moved = SnapshotPointer(id="snap-2", manifest="d2")
    after = WorkspaceRecord(name="ws", created=1.0, updated=2.0, op_id="op-2", head=moved, generation=1)
    await plane.transactions.commit_workspace("acme", found, after, moved, token)
    await node.finish(first, **NONZERO)
    second = await node.next()
    assert (second.base.snapshot_id, second.head.snapshot_id) == ("c-1", "snap-1")


async def test_a_repeated_checkpoint_is_recorded_once(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    assert await node.checkpoint(assignment, "c-1") == COMMITTED
    before = await stored(plane, task_id)
    assert [await node.checkpoint(assignment, "c-1") for _ in range(3)] == [COMMITTED] * 3
    assert (await stored(plane, task_id)).mod_revision == before.mod_revision


async def test_a_repeated_checkpoint_never_replaces_the_one_after_it(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    for _ in range(5):
        await node.save(assignment, "c-1")
    await soon(node.kept.get())
    await node.save(assignment, "c-2")
    while (await soon(node.kept.get())).snapshot_id != "c-2":
        pass
    assert (await user.get(task_id)).checkpoint.snapshot_id == "c-2"


@pytest.mark.parametrize("ended", ["finished", "lost", "another token", "another node"])
async def test_a_checkpoint_of_an_attempt_that_is_no_longer_the_holders_is_fenced(
    plane: Plane, user: User, ended: str
) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit(retry=task_pb2.RetryPolicy(max_attempts=1))
    assignment = await node.next()
    if ended == "finished":
        await node.finish(assignment)
    elif ended == "lost":
        token = Token("node-1", "acme", task_id, assignment.token)
        await plane.kv.txn([], [Delete(token.key)])
        await user.wait(task_id)
    elif ended == "another token":
        assignment.token -= 1
    else:
        node = await Node(plane, "node-2").connect()
    assert await node.checkpoint(assignment, "late") == FENCED
    assert (await stored(plane, task_id)).record.checkpoint is None


async def test_a_cancel_that_comes_between_does_not_cost_the_checkpoint(
    plane: Plane, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    real = Transactions.checkpoint
    tries = 0

    async def racing(
        self: Transactions, token: Token, task: Versioned[TaskRecord], after: TaskRecord, snapshot: SnapshotPointer
    ) -> Versioned[TaskRecord]:
        nonlocal tries
        tries += 1
        if tries == 1:
            await user.cancel(task_id)
        return await real(self, token, task, after, snapshot)

    monkeypatch.setattr(Transactions, "checkpoint", racing)
    assert await node.checkpoint(assignment, "c-1") == COMMITTED
    record = (await stored(plane, task_id)).record
    assert (tries, record.cancel_requested, record.checkpoint is not None) == (2, True, True)


async def test_etcds_silence_puts_a_checkpoint_off_and_an_unknown_outcome_is_read_back(
    plane: Plane, user: User
) -> None:
    assert isinstance(plane.kv, MemoryKeyValue)
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    plane.kv.fail_next("txn", applied=False)
    assert await node.checkpoint(assignment, "c-1") == RETRY
    assert (await stored(plane, task_id)).record.checkpoint is None
    plane.kv.fail_next("txn", applied=True)
    assert await node.checkpoint(assignment, "c-1") == COMMITTED


async def test_a_checkpoint_whose_verdict_the_old_leader_took_along_is_committed_by_the_new_one(
    plane: Plane, user: User
) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    await node.save(assignment, "c-1")

    async def recorded() -> bool:
        return (await stored(plane, task_id)).record.checkpoint is not None

    await until("it is recorded", recorded)
    await node.disconnect()
    await plane.stop()
    await plane.start()
    before = await stored(plane, task_id)
    while not node.kept.empty():
        node.kept.get_nowait()
    node.term = 0
    await node.connect()
    assert await node.checkpoint(assignment, "c-1") == COMMITTED
    assert (await stored(plane, task_id)).mod_revision == before.mod_revision


async def test_a_checkpoint_that_the_old_leader_did_not_record_is_recorded_by_the_new_one(
    plane: Plane, user: User
) -> None:
    assert isinstance(plane.kv, MemoryKeyValue)
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    plane.kv.fail_next("txn", applied=False)
    assert await node.checkpoint(assignment, "c-1") == RETRY
    await node.disconnect()
    await plane.stop()
    await plane.start()
    await node.connect()
    assert await node.checkpoint(assignment, "c-1") == COMMITTED
    assert (await stored(plane, task_id)).record.checkpoint is not None


class Deposed:
    """A leadership whose key is gone."""

    term = 1

    def guard(self) -> Guard:
        return CreateIs(keys.election("scheduler", 1), 1)


async def test_a_leader_that_was_replaced_records_nothing(plane: Plane, user: User) -> None:
    """It was stopped while it held the report; by now another has recorded that checkpoint, and the next one."""
    node = await Node(plane).connect()
    task_id = await user.submit()
    assignment = await node.next()
    await node.checkpoint(assignment, "c-1")
    await node.checkpoint(assignment, "c-2")
    link = NodeLink(pb.Hello(node="node-1", incarnation=1), 1, 0.0)
    async with asyncio.TaskGroup() as group:
        old = Checkpoints(
            plane.kv, plane.scheduler.mirror, Deposed(), plane.transactions, Links(), Results(plane.objects),
            Spawner(group), plane.clock, Metrics(CollectorRegistry()),
        )  # fmt: skip
        old.report(
            link,
            pb.CheckpointReport(
                tenant="acme", task_id=task_id, token=assignment.token, uid=assignment.uid,
                snapshot=task_pb2.SnapshotRef(snapshot_id="c-1", manifest_digest="d"),
            ),
        )  # fmt: skip
    link.outbox.close()
    assert [message.checkpoint_verdict.verdict async for message in link.outbox] == [RETRY]
    assert (await user.get(task_id)).checkpoint.snapshot_id == "c-2"


async def test_the_verdict_goes_to_the_stream_that_the_node_has_now(
    plane: Plane, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await Node(plane).connect()
    await user.submit()
    assignment = await node.next()
    real = Transactions.checkpoint
    reached, let_go = asyncio.Event(), asyncio.Event()

    async def slow(self: Transactions, *args: Any) -> Versioned[TaskRecord]:
        reached.set()
        await let_go.wait()
        return await real(self, *args)

    monkeypatch.setattr(Transactions, "checkpoint", slow)
    await node.save(assignment, "c-1")
    await soon(reached.wait())
    await node.disconnect()
    await node.connect()
    await node.save(assignment, "c-1")
    await node.heard(1)
    let_go.set()
    assert (await soon(node.kept.get())).verdict == COMMITTED
    await node.heard(1)
    assert node.kept.empty(), "the repeated report was the one that was being judged"


@pytest.mark.parametrize("end", ["fails", "is canceled", "is canceled in backoff", "loses its node"])
async def test_a_task_that_does_not_succeed_keeps_its_checkpoint_for_its_user(
    plane: Plane, user: User, end: str
) -> None:
    await workspace(plane)
    node = await Node(plane).connect()
    backoff = task_pb2.RetryPolicy(
        max_attempts=2, initial_backoff=duration(600), retry_on=[task_pb2.END_REASON_NONZERO_EXIT]
    )
    retry = backoff if end == "is canceled in backoff" else task_pb2.RetryPolicy(max_attempts=1)
    task_id = await user.submit(workspace=task_pb2.WorkspaceSelection(name="ws"), retry=retry)
    assignment = await node.next()
    await node.checkpoint(assignment, "c-1")
    changed = [task_pb2.ChangedFile(path="f", change=task_pb2.ChangedFile.CHANGE_ADDED)]
    match end:
        case "fails":
            await node.finish(assignment, changed_files=changed, **NONZERO)
        case "is canceled":
            await user.cancel(task_id)
            await node.finish(assignment, changed_files=changed, state=task_pb2.ATTEMPT_STATE_CANCELED)
        case "is canceled in backoff":
            await node.finish(assignment, **NONZERO)
            await user.cancel(task_id)
        case _:
            assert isinstance(plane.kv, MemoryKeyValue)
            await node.disconnect()
            plane.kv.expire(node.lease)
    task = await user.wait(task_id)
    assert task.checkpoint.snapshot_id == "c-1"
    result = await user.result(task_id)
    assert (result.snapshot_id, list(result.changed_files)) == ("c-1", [])
    assert await listed(plane) == ["c-1", "snap-1"]
    found = await plane.transactions.get_workspace("acme", "ws")
    assert found is not None
    assert found.record.head is not None
    assert found.record.head.id == "snap-1"


async def test_checkpoints_are_counted_and_their_freezes_measured(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    await user.submit()
    assignment = await node.next()
    for _ in range(2):
        await node.checkpoint(assignment, "c-1", frozen=duration(0.03))
    await node.checkpoint(assignment, failure="a device at dev/x")
    assignment.token -= 1
    await node.checkpoint(assignment, "c-2")
    registry = plane.scheduler.metrics.registry
    counts = [
        registry.get_sample_value("cloudclaw_checkpoints_total", {"outcome": outcome})
        for outcome in ("committed", "failed", "fenced")
    ]
    assert counts == [1, 1, 1]
    assert registry.get_sample_value("cloudclaw_checkpoint_freeze_seconds_count") == 1
    assert registry.get_sample_value("cloudclaw_checkpoint_freeze_seconds_sum") == pytest.approx(0.03)
