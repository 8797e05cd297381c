"""Nodes with agents, for the tests of what a node does beside one."""

from __future__ import annotations

from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_pool_manager.app.manager import Behaviour
from tests.support.fake_agent import NAME, Parrot, say
from tests.support.fake_slots import FakeSupervisor
from tests.unit.pool_manager.rig import Rig, settle

TALK = task_pb2.Conversation()
CHECKPOINT = task_pb2.SnapshotRef(snapshot_id="ckpt-1", manifest_digest="ab" * 32, uid="att-0")


async def agents(parrot: Parrot | None = None, *, slots: int = 2, **of_rig: object) -> Rig:
    """A connected node that offers parrots; its probe is answered."""
    rig = Rig(slots=slots, behaviour=Behaviour(slot_wait=2.0, turn_spacing=0.0))
    parrot = parrot or Parrot()
    rig.runtimes[NAME] = parrot
    for name, value in of_rig.items():
        setattr(rig, name, value)
    await rig.start()
    await probed(rig)
    return rig


async def probed(rig: Rig, *, code: int = 0) -> None:
    """Answer the probe."""
    await rig.until(lambda: any(uid.startswith("probe-") for uid in rig.host.running()))
    uid = next(uid for uid in rig.host.running() if uid.startswith("probe-"))
    sandbox = rig.host.of(uid)
    sandbox.write(b"1.2.3\n")
    sandbox.finish(code)
    await rig.until(lambda: sandbox.attempt is None)
    await settle()


async def asked(rig: Rig, prompt: str = "do it", **more: object) -> tuple[pb.Assignment, FakeSupervisor]:
    """A parrot at work."""
    assignment = await rig.assign(runtime=NAME, prompt=prompt, **more)  # type: ignore[arg-type]
    await rig.until(lambda: assignment.uid in rig.host.running())
    return assignment, rig.host.of(assignment.uid)


def message(number: int, text: str = "and then?") -> pb.TaskInput:
    return pb.TaskInput(number=number, message_id=f"m-{number}", text=text)


async def deliver(rig: Rig, task: pb.Assignment, *inputs: pb.TaskInput, closing: bool = False) -> None:
    """The leader says so."""
    rig.leader.say(
        deliver_input=pb.DeliverInput(
            tenant=task.tenant, task_id=task.task_id, token=task.token, inputs=inputs, closing=closing
        )
    )
    await settle()


async def answer(rig: Rig, sandbox: FakeSupervisor, text: str = "done") -> None:
    """The agent works and answers."""
    say(sandbox, {"session": "s-1"}, {"says": "well"}, {"turn": 1}, {"used": 7}, {"done": text})
    await settle()
    await rig.pass_time(0.2)
