"""`PoolManagerService` over real gRPC, for operators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cloudclaw.clock import SystemClock
from cloudclaw.config import ServerSettings
from cloudclaw.errors import (
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnavailableError,
)
from cloudclaw.rpc.auth import Authenticator, Minter
from cloudclaw.rpc.channel import open_channel
from cloudclaw.rpc.server import RpcServer
from cloudclaw.snapshots.port import Progress
from cloudclaw.v1 import pool_manager_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw.v1.pool_manager_pb2_grpc import PoolManagerServiceStub, add_PoolManagerServiceServicer_to_server
from cloudclaw_pool_manager.app.operations import Operations
from cloudclaw_pool_manager.server.pool_manager import SERVICE, PoolManagerServicer
from tests.unit.pool_manager.pausing import ask
from tests.unit.pool_manager.rig import Rig


class Service:
    """The service of one node, and clients of it."""

    def __init__(self, rig: Rig, minter: Minter, address: str):
        self.rig = rig
        self._minter = minter
        self._address = address
        self._channels: list[Any] = []

    def stub(self, *roles: str) -> Any:
        channel = open_channel(self._address, None, self._minter.mint("acme", roles))
        self._channels.append(channel)
        return PoolManagerServiceStub(channel)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


@pytest_asyncio.fixture
async def service(rig: Rig, tmp_path: Path) -> AsyncIterator[Service]:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 64)
    server = RpcServer(ServerSettings(listen="127.0.0.1:0"), Authenticator([key]), clock=SystemClock())
    servicer = PoolManagerServicer(Operations(rig.manager))
    server.add(SERVICE, add_PoolManagerServiceServicer_to_server, servicer)
    made = Service(rig, Minter(key), await server.start())
    yield made
    await made.close()
    await server.stop(0)


CALLS = [
    ("GetPool", pb.GetPoolRequest()),
    ("ListSlots", pb.ListSlotsRequest()),
    ("ResizePool", pb.ResizePoolRequest(slots=1)),
    ("DrainNode", pb.DrainNodeRequest()),
    ("UndrainNode", pb.UndrainNodeRequest()),
    ("RecycleSlot", pb.RecycleSlotRequest(slot="slot-0")),
]


@pytest.mark.parametrize(("method", "request_"), CALLS)
async def test_only_operators_may_call(service: Service, method: str, request_: object) -> None:
    for roles in (["user"], ["node"]):
        with pytest.raises(PermissionDeniedError):
            await getattr(service.stub(*roles), method)(request_)
    assert service.rig.host.provisions == [0, 1]
    assert not service.rig.manager.table.draining


async def test_slots_show_what_they_do_and_what_holds_their_limits(service: Service) -> None:
    task, sandbox = await service.rig.running()
    answer = await service.stub("operator").ListSlots(pb.ListSlotsRequest())
    by_name = {slot.slot: slot for slot in answer.slots}
    busy = by_name[f"slot-{sandbox.number}"]
    assert (busy.state, busy.tenant, busy.task_id) == (pb.SLOT_STATE_ASSIGNED, "acme", task.task_id)
    assert (busy.pid, busy.uid, busy.uid_shared) == (sandbox.pid, 200_000 + sandbox.number, False)
    assert (busy.memory, busy.disk) == (pb.LIMIT_MECHANISM_CGROUP_V2, pb.LIMIT_MECHANISM_WATCHED)
    other = by_name[f"slot-{1 - sandbox.number}"]
    assert (other.state, other.task_id, other.sandbox_ready) == (pb.SLOT_STATE_IDLE, "", True)


async def test_slots_are_listed_in_pages(service: Service) -> None:
    stub = service.stub("operator")
    first = await stub.ListSlots(pb.ListSlotsRequest(page_size=1))
    second = await stub.ListSlots(pb.ListSlotsRequest(page_size=1, page_token=first.next_page_token))
    assert [s.slot for s in (*first.slots, *second.slots)] == ["slot-0", "slot-1"]
    assert second.next_page_token == ""
    with pytest.raises(InvalidArgumentError):
        await stub.ListSlots(pb.ListSlotsRequest(page_token="no-token"))
    with pytest.raises(InvalidArgumentError):
        await stub.ListSlots(pb.ListSlotsRequest(page_size=5000))


async def test_pools_are_shown_and_resized_within_their_cap(service: Service) -> None:
    stub = service.stub("operator")
    [pool] = (await stub.GetPool(pb.GetPoolRequest())).pools
    assert (pool.capacity.pool, pool.capacity.slots, pool.hard_cap, pool.node) == ("default", 2, 2, "n1")
    answer = await stub.ResizePool(pb.ResizePoolRequest(pool="default", slots=1))
    assert answer.pool.capacity.slots == 1
    await service.rig.until(lambda: service.rig.host.destroyed == [1])
    with pytest.raises(InvalidArgumentError):
        await stub.ResizePool(pb.ResizePoolRequest(pool="default", slots=3))
    with pytest.raises(NotFoundError):
        await stub.GetPool(pb.GetPoolRequest(pool="gpu"))


async def test_a_drain_says_how_much_still_runs(service: Service) -> None:
    await service.rig.running()
    stub = service.stub("operator")
    assert (await stub.DrainNode(pb.DrainNodeRequest())).running == 1
    assert (await stub.GetPool(pb.GetPoolRequest())).pools[0].draining
    assert service.rig.serving[-1] is False
    await stub.UndrainNode(pb.UndrainNodeRequest())
    assert service.rig.serving[-1] is True


async def test_a_drain_with_hand_over_ends_attempts_at_their_checkpoints(service: Service) -> None:
    task, _ = await service.rig.running()
    assert (await service.stub("operator").DrainNode(pb.DrainNodeRequest(hand_over=True))).running == 1
    await service.rig.gone(task)
    assert service.rig.report_of(task).reason == task_pb2.END_REASON_DRAINED


async def test_slots_show_how_far_work_on_files_has_come_and_why_a_checkpoint_failed(service: Service) -> None:
    rig = service.rig
    rig.workspaces.progress = Progress(5, 50, 10, 100)
    rig.workspaces.gates["checkout"] = asyncio.Event()
    task = await rig.assign()
    await rig.until(lambda: "checkout" in rig.workspaces.waiting)
    stub = service.stub("operator")
    [slot] = [s for s in (await stub.ListSlots(pb.ListSlotsRequest())).slots if s.task_id]
    assert (slot.progress.files, slot.progress.total_files) == (5, 10)
    rig.workspaces.gates["checkout"].set()
    await rig.until(lambda: task.uid in rig.host.running())
    rig.workspaces.errors["scan"] = [UnavailableError("no store")]
    ask(rig, task, 1)
    await rig.until(lambda: bool(rig.leader.checkpoints))
    [slot] = [s for s in (await stub.ListSlots(pb.ListSlotsRequest())).slots if s.task_id]
    assert not slot.HasField("progress")
    assert slot.last_failure == "no checkpoint of its attempt: no store"


async def test_a_busy_slot_is_recycled_only_by_force(service: Service) -> None:
    task, sandbox = await service.rig.running()
    stub = service.stub("operator")
    name = f"slot-{sandbox.number}"
    with pytest.raises(PreconditionError):
        await stub.RecycleSlot(pb.RecycleSlotRequest(slot=name))
    assert task.uid in service.rig.host.running()
    await stub.RecycleSlot(pb.RecycleSlotRequest(slot=name, force=True))
    await service.rig.gone(task)
    with pytest.raises(NotFoundError):
        await stub.RecycleSlot(pb.RecycleSlotRequest(slot="slot-9"))
    with pytest.raises(InvalidArgumentError):
        await stub.RecycleSlot(pb.RecycleSlotRequest())
