"""A node with agents, and a user who talks to them, as tests play both."""

from __future__ import annotations

from typing import Any

from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from tests.unit.scheduler.node import Node
from tests.unit.scheduler.plane import Plane, User, duration, soon, until

AGENT = "claude-code"
COMMITTED = pb.ReportVerdict.VERDICT_COMMITTED


class Host(Node):
    """A node whose slots offer an agent."""

    def __init__(self, plane: Plane, name: str = "node-1", slots: int = 1, **more: Any) -> None:
        super().__init__(plane, name, slots, runtimes=("command", AGENT), **more)

    def take(self, assignment: pb.Assignment) -> None:
        super().take(assignment)
        running = self.running[assignment.token]
        running.inputs = max([assignment.inputs_done, *(given.number for given in assignment.inputs)])
        running.closing = assignment.closing

    async def given(self) -> pb.DeliverInput:
        """The next input that the leader brings; the node says that it has it."""
        delivery = await soon(self.inputs.get())
        running = self.running[delivery.token]
        running.inputs = max([running.inputs, *(given.number for given in delivery.inputs)])
        running.closing = running.closing or delivery.closing
        return delivery

    async def park(self, assignment: pb.Assignment, snapshot: str, inputs: int = 0, **outcome: Any) -> int:
        """Report that the attempt waits for input, and answer the verdict."""
        outcome.setdefault("session_id", "session-1")
        return await self.finish(
            assignment,
            state=task_pb2.ATTEMPT_STATE_FAILED,
            reason=task_pb2.END_REASON_PARKED,
            snapshot=task_pb2.SnapshotRef(snapshot_id=snapshot, manifest_digest="d", uid=assignment.uid),
            inputs=inputs,
            **outcome,
        )


class Talker(User):
    """A user with a conversation."""

    async def talk(self, prompt: str = "hello", idle: float = 3600.0, **spec: Any) -> str:
        """A new conversation."""
        talk = task_pb2.Conversation(idle_timeout=duration(idle))
        spec.setdefault("retry", task_pb2.RetryPolicy(initial_backoff=duration(0.01)))
        whole = task_pb2.TaskSpec(runtime=AGENT, prompt=prompt, conversation=talk, **spec)
        return (await self.stub.SubmitTask(pb.SubmitTaskRequest(spec=whole))).task.task_id

    async def say(
        self, task: str, message_id: str, text: str = "", *, end: bool = False, delay: float = 0.0
    ) -> pb.SendInputResponse:
        """One message; without `text` the id is its text."""
        request = pb.SendInputRequest(
            task_id=task, message_id=message_id, text=text or ("" if end else message_id), end=end
        )
        if delay:
            request.delay.CopyFrom(duration(delay))
        return await self.stub.SendInput(request)

    async def parked(self, task: str) -> task_pb2.Task:
        """The task, once it is parked."""

        async def is_parked() -> bool:
            return (await self.get(task)).parked

        await until(f"{task} is parked", is_parked)
        return await self.get(task)


def texts(given: Any) -> list[tuple[int, str]]:
    """Number and text of inputs."""
    return [(one.number, one.text) for one in given]


async def parked(host: Host, talker: Talker, idle: float = 3600.0) -> str:
    """A conversation that waits for input, and has said hello."""
    task = await talker.talk(idle=idle)
    assert await host.park(await host.next(), "c-1", final_message="hello") == COMMITTED
    await talker.parked(task)
    return task


async def keys_of(plane: Plane, prefix: str) -> list[str]:
    """What is stored below a prefix, by key."""
    return [entry.key for entry in (await plane.kv.range(prefix)).entries]
