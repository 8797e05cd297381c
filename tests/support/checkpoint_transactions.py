"""The transactions that checkpoints are recorded, asked for, used and given up by, as cases like the others."""

from __future__ import annotations

from collections.abc import Awaitable

from cloudclaw.coordination import keys, life
from cloudclaw.coordination.records import AttemptState, EndReason, TaskRecord, TaskState
from cloudclaw.coordination.transactions import Versioned
from cloudclaw.errors import AbortedError
from tests.support.coordination import FORK, NODE, NOW, TENANT, WORKSPACE, Scene, pointer
from tests.support.task_transactions import CHANGED, CLAIM, OWN_WRITER, TOKEN, Case, Send, attempt_key, writer


def snapshot_key(name: str) -> str:
    """The key of the snapshot called `name` in the scene's workspace."""
    return keys.snapshot(TENANT, WORKSPACE, pointer(name).id)


async def claim_fork(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    task = await scene.queued(FORK)
    leadership, node, workspace = scene.leadership, await scene.node_entry(), await scene.workspace_entry()

    def send(op: str) -> Awaitable[Versioned[TaskRecord]]:
        claimed = life.claimed(task.record, NODE, "uid-" + op, pointer("head"), NOW, op)
        return scene.tx.claim(leadership, task, claimed, node, workspace=workspace)

    return task, send


async def checkpoint_again(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    token, task = await scene.checkpointed("one")

    def send(op: str) -> Awaitable[Versioned[TaskRecord]]:
        after = life.checkpointed(task.record, NOW, pointer("two"), op_id=op)
        return scene.tx.checkpoint(token, task, after, pointer("two"))

    return task, send


async def checkpoint_fork(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    token, task = await scene.running(FORK)

    def send(op: str) -> Awaitable[Versioned[TaskRecord]]:
        after = life.checkpointed(task.record, NOW, pointer("forked"), op_id=op)
        return scene.tx.checkpoint(token, task, after, pointer("forked"))

    return task, send


async def want(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    _, task = await scene.running()
    return task, lambda op: scene.tx.want_checkpoint(task, life.checkpoint_wanted(task.record, NOW, op_id=op))


async def serve(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    token, task = await scene.running()
    task = await scene.tx.want_checkpoint(task, life.checkpoint_wanted(task.record, NOW, op_id=scene.op()))

    def send(op: str) -> Awaitable[Versioned[TaskRecord]]:
        after = life.checkpoint_refused(task.record, NOW, "quota", op_id=op, request=1)
        return scene.tx.serve_checkpoint(token, task, after)

    return task, send


async def succeed(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    token, task = await scene.checkpointed("used")

    def send(op: str) -> Awaitable[Versioned[TaskRecord]]:
        after = life.reported(task.record, NOW, AttemptState.SUCCEEDED, EndReason.COMPLETED, op_id=op, exit_code=0)
        return scene.tx.finish(token, task, after, snapshot=pointer("new"), move_head=True)

    return task, send


async def fail(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    token, task = await scene.checkpointed("left")

    def send(op: str) -> Awaitable[Versioned[TaskRecord]]:
        after = life.reported(task.record, NOW, AttemptState.FAILED, EndReason.NONZERO_EXIT, op_id=op, exit_code=1)
        return scene.tx.finish(token, task, after)

    return task, send


async def drain(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    token, task = await scene.checkpointed("handed-over")

    def send(op: str) -> Awaitable[Versioned[TaskRecord]]:
        after = life.reported(task.record, NOW, AttemptState.FAILED, EndReason.DRAINED, op_id=op)
        return scene.tx.finish(token, task, after)

    return task, send


CHECKPOINT_CASES = [
    Case(
        "claim fork",
        claim_fork,
        there=[attempt_key],
        state=TaskState.RUNNING,
        breaks={
            **CLAIM,
            "base's snapshot gone": (
                lambda scene, task: scene.remove(snapshot_key("head")),
                AbortedError,
                "WORKSPACE_CHANGED",
            ),
        },
    ),
    Case(
        "checkpoint again",
        checkpoint_again,
        gone=[lambda task: snapshot_key("one")],
        there=[attempt_key, writer, lambda task: snapshot_key("two"), lambda task: snapshot_key("head")],
        state=TaskState.RUNNING,
        breaks={"task changed": CHANGED, **TOKEN},
    ),
    Case(
        "checkpoint fork",
        checkpoint_fork,
        there=[attempt_key, lambda task: snapshot_key("forked")],
        state=TaskState.RUNNING,
        breaks={"task changed": CHANGED, **TOKEN},
    ),
    Case(
        "want checkpoint",
        want,
        there=[attempt_key, writer],
        state=TaskState.RUNNING,
        breaks={"task changed": CHANGED},
    ),
    Case(
        "serve checkpoint",
        serve,
        there=[attempt_key, writer],
        state=TaskState.RUNNING,
        breaks={"task changed": CHANGED, **TOKEN},
    ),
    Case(
        "success after checkpoint",
        succeed,
        gone=[attempt_key, writer, lambda task: snapshot_key("used")],
        there=[lambda task: snapshot_key("new"), lambda task: snapshot_key("head")],
        state=TaskState.SUCCEEDED,
        breaks={"task changed": CHANGED, **TOKEN, **OWN_WRITER},
    ),
    Case(
        "failure after checkpoint",
        fail,
        gone=[attempt_key, writer],
        there=[lambda task: snapshot_key("left")],
        state=TaskState.FAILED,
        breaks={"task changed": CHANGED, **TOKEN, **OWN_WRITER},
    ),
    Case(
        "hand-over",
        drain,
        gone=[attempt_key],
        there=[writer, lambda task: snapshot_key("handed-over")],
        breaks={"task changed": CHANGED, **TOKEN, **OWN_WRITER},
    ),
]
