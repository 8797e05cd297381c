"""`PoolManagerService`: validates, converts, calls, converts back. For operators only."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from cloudclaw.errors import InvalidArgumentError
from cloudclaw.rpc.auth import require_role
from cloudclaw.v1 import pool_manager_pb2 as pb
from cloudclaw.v1 import scheduler_pb2
from cloudclaw.v1.pool_manager_pb2_grpc import PoolManagerServiceServicer
from cloudclaw_pool_manager.app import messages
from cloudclaw_pool_manager.app.operations import Operations, SlotView
from cloudclaw_pool_manager.app.runner import Template
from cloudclaw_pool_manager.domain.slot import SlotState
from cloudclaw_pool_manager.ports.backend import Mechanism

SERVICE: Final = "cloudclaw.v1.PoolManagerService"
_PAGE: Final = 100
_MAX_PAGE: Final = 1000
_STATES: Final = {
    SlotState.PROVISIONING: pb.SLOT_STATE_PROVISIONING,
    SlotState.IDLE: pb.SLOT_STATE_IDLE,
    SlotState.ASSIGNED: pb.SLOT_STATE_ASSIGNED,
    SlotState.DRAINING: pb.SLOT_STATE_DRAINING,
    SlotState.GONE: pb.SLOT_STATE_GONE,
}
_MECHANISMS: Final = {
    Mechanism.NONE: pb.LIMIT_MECHANISM_NONE,
    Mechanism.RLIMIT: pb.LIMIT_MECHANISM_RLIMIT,
    Mechanism.CGROUP_V1: pb.LIMIT_MECHANISM_CGROUP_V1,
    Mechanism.CGROUP_V2: pb.LIMIT_MECHANISM_CGROUP_V2,
    Mechanism.WATCHED: pb.LIMIT_MECHANISM_WATCHED,
}


class PoolManagerServicer(PoolManagerServiceServicer):
    """Serves one node's operators."""

    def __init__(self, operations: Operations):
        self._operations = operations

    async def GetPool(self, request: pb.GetPoolRequest, context: Any) -> pb.GetPoolResponse:
        require_role("operator")
        return pb.GetPoolResponse(pools=[self._pool(*pool) for pool in self._operations.pools(request.pool)])

    async def ListSlots(self, request: pb.ListSlotsRequest, context: Any) -> pb.ListSlotsResponse:
        require_role("operator")
        size = request.page_size or _PAGE
        if not 1 <= size <= _MAX_PAGE:
            raise InvalidArgumentError(f"must be 1 to {_MAX_PAGE}, got {size}", field="page_size")
        views = self._operations.slots(request.pool)
        start = _start(request.page_token, views)
        page = views[start : start + size]
        more = page[-1].name if start + size < len(views) else ""
        slots = [_slot(view, *await self._operations.warmth(view)) for view in page]
        return pb.ListSlotsResponse(slots=slots, next_page_token=more)

    async def ResizePool(self, request: pb.ResizePoolRequest, context: Any) -> pb.ResizePoolResponse:
        require_role("operator")
        return pb.ResizePoolResponse(pool=self._pool(*self._operations.resize(request.pool, request.slots)))

    async def DrainNode(self, request: pb.DrainNodeRequest, context: Any) -> pb.DrainNodeResponse:
        require_role("operator")
        return pb.DrainNodeResponse(running=await self._operations.drain(hand_over=request.hand_over))

    async def UndrainNode(self, request: pb.UndrainNodeRequest, context: Any) -> pb.UndrainNodeResponse:
        require_role("operator")
        await self._operations.undrain()
        return pb.UndrainNodeResponse()

    async def RecycleSlot(self, request: pb.RecycleSlotRequest, context: Any) -> pb.RecycleSlotResponse:
        require_role("operator")
        if not request.slot:
            raise InvalidArgumentError("names no slot", field="slot")
        return pb.RecycleSlotResponse(slot=_slot(self._operations.recycle(request.slot, force=request.force)))

    def _pool(self, name: str, template: Template) -> pb.Pool:
        slots = template.slots
        return pb.Pool(
            capacity=scheduler_pb2.PoolCapacity(
                pool=name,
                slots=slots.size,
                idle=slots.count(SlotState.IDLE),
                runtimes=template.offered,
                backend=template.backend,
                runtime_status=messages.runtime_status(template.readiness),
            ),
            hard_cap=slots.hard_cap,
            node=self._operations.node,
            draining=self._operations.draining,
        )


def _start(token: str, views: list[SlotView]) -> int:
    """Index of the first slot after the one that a page token names."""
    if not token:
        return 0
    for index, view in enumerate(views):
        if view.name == token:
            return index + 1
    raise InvalidArgumentError("is not a token of this list", field="page_token")


def _slot(view: SlotView, warm: str = "", warm_memory: int = 0) -> pb.Slot:
    entry, slot = view.entry, view.entry.slot
    message = pb.Slot(
        slot=view.name,
        state=_STATES[entry.state],
        pool=entry.pool,
        state_time=Timestamp(seconds=int(entry.since), nanos=int(entry.since % 1 * 1e9)),
        attempts_served=entry.served,
        sandbox_ready=entry.sandbox_ready,
        last_failure=entry.last_failure or entry.cold_because,
        warm=warm,
        warm_memory_bytes=warm_memory,
    )
    if slot is not None:
        message.pid = slot.pid
        message.uid = slot.uid
        message.uid_shared = slot.uid_shared
        message.cpu = _MECHANISMS[slot.enforcement.cpu]
        message.memory = _MECHANISMS[slot.enforcement.memory]
        message.pids = _MECHANISMS[slot.enforcement.pids]
        message.disk = _MECHANISMS[slot.enforcement.disk]
    if view.attempt is not None:
        message.tenant = view.attempt.attempt.tenant
        message.task_id = view.attempt.attempt.task
        if (progress := messages.tree_progress(view.attempt.files.progress)) is not None:
            message.progress.CopyFrom(progress)
        if failure := view.attempt.checkpoints.last_failure:
            message.last_failure = f"no checkpoint of its attempt: {failure}"
        if waiting := view.attempt.patience.waiting:
            message.last_failure = waiting
    return message
