"""What tests of checkpoints do to a node, and see of it."""

from __future__ import annotations

import asyncio

from cloudclaw.v1 import scheduler_pb2 as pb
from tests.support.fake_slots import FakeSupervisor
from tests.unit.pool_manager.rig import TENANT, Rig


def ask(rig: Rig, task: pb.Assignment, request: int) -> None:
    """A checkpoint on demand."""
    rig.leader.say(
        take_checkpoint=pb.TakeCheckpoint(tenant=TENANT, task_id=task.task_id, token=task.token, request=request)
    )


def hold(rig: Rig, step: str) -> asyncio.Event:
    """Let checkpoints wait in `step` until the answer is set."""
    rig.workspaces.waiting.pop(step, None)
    gate = rig.workspaces.gates[step] = asyncio.Event()
    return gate


async def held(rig: Rig, step: str) -> None:
    """Wait until a checkpoint waits in `step`."""
    await rig.until(lambda: step in rig.workspaces.waiting)


def pauses(sandbox: FakeSupervisor) -> int:
    """Pauses that ended."""
    return sum(until is not None for _, until in sandbox.pauses)


def outcomes(rig: Rig) -> dict[str, int]:
    """Checkpoints that were counted, by outcome."""
    return {
        sample.labels["outcome"]: int(sample.value)
        for metric in rig.metrics.checkpoints.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }


def freezes(rig: Rig) -> float:
    """Freezes for want of contact that were counted."""
    return sum(s.value for m in rig.metrics.freezes.collect() for s in m.samples if s.name.endswith("_total"))


def cut_off(rig: Rig) -> None:
    """Neither leader nor etcd."""
    rig.leader.up = False
    rig.leader.cut()
    rig.kv.outage = True
    rig.kv._leases[rig.state.lease_id].expires += 100  # type: ignore[index]


def back(rig: Rig) -> None:
    """Both again."""
    rig.kv.outage = False
    rig.leader.up = True
