"""Every transaction on a task, ready to be sent, and what breaks each of its guards."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from cloudclaw.coordination import keys, life
from cloudclaw.coordination.records import AttemptState, EndReason, TaskRecord, TaskState, encode
from cloudclaw.coordination.transactions import Versioned, waiting_key
from cloudclaw.coordination.transactions.store import writer_value
from cloudclaw.errors import AbortedError, CloudClawError, FencedError, PreconditionError
from tests.support.coordination import NODE, NOW, TENANT, WORKSPACE, Scene, pointer

Send = Callable[[str], Awaitable[Versioned[TaskRecord]]]
"""Sends the transaction with this op_id."""

Break = Callable[[Scene, Versioned[TaskRecord]], Awaitable[None]]
Breaks = dict[str, tuple[Break, type[CloudClawError], str]]
"""What goes wrong behind the transaction's back, and the error and reason it must end with."""

WRITER = keys.writer(TENANT, WORKSPACE)
HEAD = keys.workspace(TENANT, WORKSPACE)


@dataclass
class Case:
    """One transaction, ready to be sent. `breaks`: what can go wrong with each guard, and the error for it."""

    name: str
    prepare: Callable[[Scene], Awaitable[tuple[Versioned[TaskRecord], Send]]]
    gone: list[Callable[[Versioned[TaskRecord]], str]] = field(default_factory=list)
    there: list[Callable[[Versioned[TaskRecord]], str]] = field(default_factory=list)
    state: TaskState = TaskState.QUEUED
    breaks: Breaks = field(default_factory=dict)


# -- the transactions --


async def claim(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    return await _claim(scene, await scene.queued())


async def claim_again(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    delayed = await scene.delayed()
    after = life.became_due(delayed.record, NOW, op_id=scene.op())
    return await _claim(scene, await scene.tx.due(scene.leadership, delayed, after))


async def _claim(scene: Scene, task: Versioned[TaskRecord]) -> tuple[Versioned[TaskRecord], Send]:
    leadership, node, workspace = scene.leadership, await scene.node_entry(), await scene.workspace_entry()

    def send(op: str) -> Awaitable[Versioned[TaskRecord]]:
        claimed = life.claimed(task.record, NODE, "uid-" + op, pointer("head"), NOW, op)
        return scene.tx.claim(leadership, task, claimed, node, workspace=workspace)

    return task, send


async def unclaim(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    token, task = await scene.running()
    leadership = scene.leadership
    return task, lambda op: scene.tx.unclaim(leadership, token, task, life.unclaimed(task.record, NOW, op_id=op))


async def unclaim_second(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    token, task = await scene.second_attempt()
    leadership = scene.leadership
    return task, lambda op: scene.tx.unclaim(leadership, token, task, life.unclaimed(task.record, NOW, op_id=op))


async def expire(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    token, task = await scene.running()
    await scene.remove(token.key)
    leadership = scene.leadership
    return task, lambda op: scene.tx.expire(leadership, task, life.lost(task.record, NOW, op_id=op))


async def expire_canceled(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    token, task = await scene.running()
    task = await scene.tx.cancel(task, life.cancel_requested(task.record, NOW, op_id=scene.op()))
    await scene.remove(token.key)
    leadership = scene.leadership
    return task, lambda op: scene.tx.expire(leadership, task, life.lost(task.record, NOW, op_id=op))


async def requeue_early(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    token, task = await scene.running()
    leadership, node = scene.leadership, await scene.node_entry()
    return task, lambda op: scene.tx.requeue_early(leadership, token, task, life.lost(task.record, NOW, op_id=op), node)


async def succeed(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    token, task = await scene.running()

    def send(op: str) -> Awaitable[Versioned[TaskRecord]]:
        after = life.reported(task.record, NOW, AttemptState.SUCCEEDED, EndReason.COMPLETED, op_id=op, exit_code=0)
        return scene.tx.finish(token, task, after, snapshot=pointer("new"), move_head=True)

    return task, send


async def fail(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    token, task = await scene.running()

    def send(op: str) -> Awaitable[Versioned[TaskRecord]]:
        after = life.reported(task.record, NOW, AttemptState.FAILED, EndReason.NONZERO_EXIT, op_id=op, exit_code=1)
        return scene.tx.finish(token, task, after)

    return task, send


async def retry(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    token, task = await scene.running()

    def send(op: str) -> Awaitable[Versioned[TaskRecord]]:
        after = life.reported(task.record, NOW, AttemptState.FAILED, EndReason.INTERNAL, op_id=op)
        return scene.tx.finish(token, task, after)

    return task, send


async def checkpoint(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    token, task = await scene.running()

    def send(op: str) -> Awaitable[Versioned[TaskRecord]]:
        after = life.checkpointed(task.record, NOW, pointer("check"), op_id=op)
        return scene.tx.checkpoint(token, task, after, pointer("check"))

    return task, send


async def cancel_queued(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    task = await scene.queued()
    return task, lambda op: scene.tx.cancel(task, life.canceled(task.record, NOW, op_id=op))


async def cancel_delayed(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    task = await scene.delayed()
    return task, lambda op: scene.tx.cancel(task, life.canceled(task.record, NOW, op_id=op))


async def cancel_running(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    _, task = await scene.running()
    return task, lambda op: scene.tx.cancel(task, life.cancel_requested(task.record, NOW, op_id=op))


async def due(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    task = await scene.delayed()
    leadership = scene.leadership
    return task, lambda op: scene.tx.due(leadership, task, life.became_due(task.record, NOW, op_id=op))


# -- what breaks their guards --


async def move_head(scene: Scene) -> None:
    """A head that is not the one the task started from."""
    workspace = await scene.tx.get_workspace(TENANT, WORKSPACE)
    assert workspace is not None
    await scene.place(HEAD, encode(replace(workspace.record, head=pointer("other"))))


def attempt_key(task: Versioned[TaskRecord]) -> str:
    return keys.attempt(NODE, TENANT, task.record.task)


def queue_key(task: Versioned[TaskRecord]) -> str:
    return keys.queue(task.record.plan.pool, TENANT, task.record.task)


def writer(task: Versioned[TaskRecord]) -> str:
    return WRITER


CHANGED: tuple[Break, type[CloudClawError], str] = (lambda scene, task: scene.change(task), AbortedError, "CONFLICT")
DEPOSED: tuple[Break, type[CloudClawError], str] = (lambda scene, task: scene.depose(), AbortedError, "NOT_LEADER")
TOKEN: Breaks = {
    "attempt key gone": (lambda scene, task: scene.remove(attempt_key(task)), FencedError, "FENCED"),
    "attempt key remade": (lambda scene, task: scene.remake(attempt_key(task)), FencedError, "FENCED"),
}
OWN_WRITER: Breaks = {
    "writer gone": (lambda scene, task: scene.remove(WRITER), FencedError, "FENCED"),
    "writer of another": (lambda scene, task: scene.place(WRITER, writer_value("task-x")), FencedError, "FENCED"),
}
CLAIM: Breaks = {
    "deposed": DEPOSED,
    "task changed": CHANGED,
    "not in the queue": (lambda scene, task: scene.remove(waiting_key(task.record)), AbortedError, "CONFLICT"),
    "attempt key there": (lambda scene, task: scene.place(attempt_key(task), b"{}"), AbortedError, "CONFLICT"),
    "node gone": (lambda scene, task: scene.remove(keys.node(NODE)), AbortedError, "NODE_GONE"),
    "node remade": (lambda scene, task: scene.remake(keys.node(NODE)), AbortedError, "NODE_GONE"),
    "node's lease gone": (lambda scene, task: scene.kv.inner.revoke(scene.node_lease), AbortedError, "NODE_GONE"),
}

CASES = [
    Case(
        "claim",
        claim,
        gone=[queue_key],
        there=[attempt_key, writer],
        state=TaskState.RUNNING,
        breaks={
            **CLAIM,
            "writer busy": (
                lambda scene, task: scene.place(WRITER, writer_value("task-x")),
                AbortedError,
                "WRITER_BUSY",
            ),
            "workspace changed": (lambda scene, task: scene.touch(HEAD), AbortedError, "WORKSPACE_CHANGED"),
            "workspace gone": (lambda scene, task: scene.remove(HEAD), AbortedError, "WORKSPACE_CHANGED"),
        },
    ),
    Case(
        "claim again",
        claim_again,
        gone=[queue_key],
        there=[attempt_key, writer],
        state=TaskState.RUNNING,
        breaks={
            **CLAIM,
            "writer gone": (lambda scene, task: scene.remove(WRITER), AbortedError, "CONFLICT"),
            "writer of another": (
                lambda scene, task: scene.place(WRITER, writer_value("task-x")),
                AbortedError,
                "WRITER_BUSY",
            ),
        },
    ),
    Case(
        "unclaim",
        unclaim,
        gone=[attempt_key, writer],
        there=[queue_key],
        breaks={"deposed": DEPOSED, "task changed": CHANGED, **TOKEN},
    ),
    Case("unclaim of a second attempt", unclaim_second, gone=[attempt_key], there=[queue_key, writer]),
    Case(
        "expire",
        expire,
        gone=[attempt_key, queue_key],
        there=[writer],
        breaks={
            "deposed": DEPOSED,
            "task changed": CHANGED,
            "attempt key there": (
                lambda scene, task: scene.place(attempt_key(task), b"{}"),
                AbortedError,
                "STILL_HELD",
            ),
        },
    ),
    Case("expire after cancel", expire_canceled, gone=[attempt_key, queue_key, writer], state=TaskState.CANCELED),
    Case(
        "early requeue",
        requeue_early,
        gone=[attempt_key, queue_key],
        there=[writer],
        breaks={
            "deposed": DEPOSED,
            "task changed": CHANGED,
            "node touched": (lambda scene, task: scene.touch(keys.node(NODE)), AbortedError, "NODE_ALIVE"),
            "node's key gone": (lambda scene, task: scene.remove(keys.node(NODE)), AbortedError, "NODE_ALIVE"),
            **TOKEN,
        },
    ),
    Case(
        "success",
        succeed,
        gone=[attempt_key, writer],
        there=[lambda task: keys.snapshot(TENANT, WORKSPACE, "snap-new")],
        state=TaskState.SUCCEEDED,
        breaks={
            "task changed": CHANGED,
            "head moved": (lambda scene, task: move_head(scene), PreconditionError, "HEAD_MOVED"),
            "workspace gone": (lambda scene, task: scene.remove(HEAD), PreconditionError, "HEAD_MOVED"),
            **TOKEN,
            **OWN_WRITER,
        },
    ),
    Case(
        "failure",
        fail,
        gone=[attempt_key, writer],
        state=TaskState.FAILED,
        breaks={"task changed": CHANGED, **TOKEN, **OWN_WRITER},
    ),
    Case("retry", retry, gone=[attempt_key], there=[writer], breaks={"task changed": CHANGED, **TOKEN, **OWN_WRITER}),
    Case(
        "checkpoint",
        checkpoint,
        there=[attempt_key, writer, lambda task: keys.snapshot(TENANT, WORKSPACE, "snap-check")],
        state=TaskState.RUNNING,
        breaks={"task changed": CHANGED, **TOKEN},
    ),
    Case("cancel queued", cancel_queued, gone=[queue_key], state=TaskState.CANCELED, breaks={"task changed": CHANGED}),
    Case("cancel delayed", cancel_delayed, gone=[writer], state=TaskState.CANCELED, breaks={"task changed": CHANGED}),
    Case(
        "cancel running",
        cancel_running,
        there=[attempt_key, writer],
        state=TaskState.RUNNING,
        breaks={"task changed": CHANGED},
    ),
    Case(
        "due",
        due,
        there=[queue_key, writer],
        breaks={
            "deposed": DEPOSED,
            "task changed": CHANGED,
            "not delayed": (lambda scene, task: scene.remove(waiting_key(task.record)), AbortedError, "CONFLICT"),
        },
    ),
]
