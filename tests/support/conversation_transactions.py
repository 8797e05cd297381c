"""The transactions on conversations, as cases like the others."""

from __future__ import annotations

from collections.abc import Awaitable

from msgspec.structs import replace

from cloudclaw.coordination import conversation, keys, life
from cloudclaw.coordination.records import AttemptState, EndReason, InputRecord, TaskRecord, TaskState, decode
from cloudclaw.coordination.transactions import Versioned, waiting_key
from cloudclaw.errors import AbortedError, AlreadyExistsError
from tests.support.checkpoint_transactions import snapshot_key
from tests.support.coordination import NOW, TALK, TENANT, Scene, input_of, pointer
from tests.support.task_transactions import (
    CHANGED,
    DEPOSED,
    OWN_WRITER,
    TOKEN,
    Break,
    Breaks,
    Case,
    Send,
    attempt_key,
    queue_key,
    writer,
)

SOON = NOW + 10.0
LATER = NOW + 20.0


def input_key(task: Versioned[TaskRecord], message_id: str = "m") -> str:
    """The key of a message."""
    return keys.input_(TENANT, task.record.task, message_id)


def _sending(scene: Scene, task: Versioned[TaskRecord], *, end: bool = False, due: float = 0.0) -> Send:
    def send(op: str) -> Awaitable[Versioned[TaskRecord]]:
        after = conversation.sent(task.record, NOW, op_id=op, text=not end, end=end, due=due)
        return scene.tx.send_input(task, after, "m", input_of(after, task.record, due))

    return send


async def send_queued(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    task = await scene.queued(TALK)
    return task, _sending(scene, task)


async def send_running(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    _, task = await scene.running(TALK)
    return task, _sending(scene, task)


async def send_parked(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    task = await scene.parked()
    return task, _sending(scene, task)


async def send_parked_later(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    task = await scene.parked()
    return task, _sending(scene, task, due=SOON)


async def end_parked(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    task = await scene.parked()
    return task, _sending(scene, task, end=True)


async def park(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    token, task = await scene.checkpointed("before", TALK)

    def send(op: str) -> Awaitable[Versioned[TaskRecord]]:
        after = conversation.parked(task.record, NOW, pointer("after"), op_id=op)
        return scene.tx.park(token, task, after, pointer("after"))

    return task, send


async def park_with_input(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    token, task = await scene.running(TALK)
    task = await scene.told(task, "m")

    def send(op: str) -> Awaitable[Versioned[TaskRecord]]:
        after = conversation.parked(task.record, NOW, pointer("after"), op_id=op)
        return scene.tx.park(token, task, after, pointer("after"))

    return task, send


async def _coming_due(scene: Scene, task: Versioned[TaskRecord]) -> tuple[Versioned[TaskRecord], Send]:
    old = await scene.tx.get_input(TENANT, task.record.task, "m")
    assert old is not None
    leadership = scene.leadership
    new = replace(old.record, number=task.record.inputs + 1)

    def send(op: str) -> Awaitable[Versioned[TaskRecord]]:
        after = conversation.came_due(task.record, SOON, 1, LATER, op_id=op)
        return scene.tx.came_due(leadership, task, after, [("m", old, new)])

    return task, send


async def come_due_parked(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    task = await scene.told(await scene.parked(), "m", SOON)
    return await _coming_due(scene, await scene.told(task, "n", LATER))


async def come_due_running(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    _, task = await scene.running(TALK)
    return await _coming_due(scene, await scene.told(task, "m", SOON))


async def idle(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    task = await scene.parked()
    leadership = scene.leadership
    return task, lambda op: scene.tx.idled(leadership, task, conversation.idled(task.record, NOW, op_id=op))


async def cancel_parked(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    task = await scene.parked()
    return task, lambda op: scene.tx.cancel(task, life.canceled(task.record, NOW, op_id=op))


async def succeed_resumed(scene: Scene) -> tuple[Versioned[TaskRecord], Send]:
    """The last attempt of a conversation, from what it was parked as."""
    task = await scene.parked(name="used")
    after = conversation.sent(task.record, NOW, op_id=scene.op(), text=False, end=True)
    task = await scene.tx.send_input(task, after, "end", input_of(after, task.record))
    token, task = await scene.running(task=task)

    def send(op: str) -> Awaitable[Versioned[TaskRecord]]:
        done = life.reported(task.record, NOW, AttemptState.SUCCEEDED, EndReason.COMPLETED, op_id=op, exit_code=0)
        return scene.tx.finish(token, task, done, snapshot=pointer("new"), move_head=True)

    return task, send


async def _take_id(scene: Scene, task: Versioned[TaskRecord]) -> None:
    await scene.place(input_key(task), b"{}")


async def _touch_input(scene: Scene, task: Versioned[TaskRecord]) -> None:
    entry = await scene.entry(input_key(task))
    assert decode(entry.value, InputRecord).waits
    await scene.touch(entry.key)


TAKEN: tuple[Break, type[AlreadyExistsError], str] = (_take_id, AlreadyExistsError, "MESSAGE_ID_TAKEN")
SEND: Breaks = {"task changed": CHANGED, "id taken": TAKEN}
NOT_DELAYED: tuple[Break, type[AbortedError], str] = (
    lambda scene, task: scene.remove(waiting_key(task.record)),
    AbortedError,
    "CONFLICT",
)
INPUT_CHANGED: tuple[Break, type[AbortedError], str] = (_touch_input, AbortedError, "CONFLICT")


def delayed_key(task: Versioned[TaskRecord]) -> str:
    """Where the task waited."""
    return waiting_key(task.record)


CONVERSATION_CASES = [
    Case("send to queued", send_queued, there=[queue_key, input_key], breaks=SEND),
    Case(
        "send to running",
        send_running,
        there=[attempt_key, writer, input_key],
        state=TaskState.RUNNING,
        breaks=SEND,
    ),
    Case("send to parked", send_parked, gone=[delayed_key], there=[queue_key, writer, input_key], breaks=SEND),
    Case(
        "send later to parked",
        send_parked_later,
        gone=[delayed_key, queue_key],
        there=[writer, input_key],
        breaks=SEND,
    ),
    Case("end parked", end_parked, gone=[delayed_key], there=[queue_key, writer, input_key], breaks=SEND),
    Case(
        "park",
        park,
        gone=[attempt_key, queue_key, lambda task: snapshot_key("before")],
        there=[writer, lambda task: snapshot_key("after")],
        breaks={"task changed": CHANGED, **TOKEN, **OWN_WRITER},
    ),
    Case(
        "park with input",
        park_with_input,
        gone=[attempt_key],
        there=[writer, queue_key, input_key, lambda task: snapshot_key("after")],
        breaks={"task changed": CHANGED, **TOKEN, **OWN_WRITER},
    ),
    Case(
        "input due while parked",
        come_due_parked,
        gone=[delayed_key],
        there=[queue_key, writer],
        breaks={
            "deposed": DEPOSED,
            "task changed": CHANGED,
            "not delayed": NOT_DELAYED,
            "input changed": INPUT_CHANGED,
        },
    ),
    Case(
        "input due while running",
        come_due_running,
        there=[attempt_key, writer],
        state=TaskState.RUNNING,
        breaks={"deposed": DEPOSED, "task changed": CHANGED, "input changed": INPUT_CHANGED},
    ),
    Case(
        "idle",
        idle,
        gone=[delayed_key],
        there=[queue_key, writer],
        breaks={"deposed": DEPOSED, "task changed": CHANGED, "not delayed": NOT_DELAYED},
    ),
    Case(
        "cancel parked",
        cancel_parked,
        gone=[delayed_key, writer],
        there=[lambda task: snapshot_key("parked")],
        state=TaskState.CANCELED,
        breaks={"task changed": CHANGED},
    ),
    Case(
        "success after parking",
        succeed_resumed,
        gone=[attempt_key, writer, lambda task: snapshot_key("used")],
        there=[lambda task: snapshot_key("new")],
        state=TaskState.SUCCEEDED,
        breaks={"task changed": CHANGED, **TOKEN, **OWN_WRITER},
    ),
]
