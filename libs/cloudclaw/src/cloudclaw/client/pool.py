"""One node's slots, for operators."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Final

import grpc

from cloudclaw.client.retry import Patience
from cloudclaw.v1 import pool_manager_pb2 as pb
from cloudclaw.v1 import pool_manager_pb2_grpc

CALL_TIMEOUT: Final = 30.0


class Pool:
    """The pool-manager of one node. All calls need the role `operator`, else `PermissionDeniedError`."""

    def __init__(self, channel: grpc.aio.Channel, patience: Patience):
        self._stub = pool_manager_pb2_grpc.PoolManagerServiceStub(channel)
        self._patience = patience

    async def get(self, pool: str = "") -> Sequence[pb.Pool]:
        """The node's pools, or the one named. Raises `NotFoundError`."""
        request = pb.GetPoolRequest(pool=pool)
        return (await self._patience.call(lambda: self._stub.GetPool(request, timeout=CALL_TIMEOUT))).pools

    async def slots(self, pool: str = "") -> AsyncGenerator[pb.Slot, None]:
        """The node's slots, page after page."""
        request = pb.ListSlotsRequest(pool=pool)
        while True:
            page = await self._patience.call(lambda: self._stub.ListSlots(request, timeout=CALL_TIMEOUT))
            for slot in page.slots:
                yield slot
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def resize(self, pool: str, slots: int) -> pb.Pool:
        """Change the number of slots. Raises `NotFoundError`, `InvalidArgumentError` above the hard cap."""
        request = pb.ResizePoolRequest(pool=pool, slots=slots)
        return (await self._patience.call(lambda: self._stub.ResizePool(request, timeout=CALL_TIMEOUT))).pool

    async def drain(self, *, hand_over: bool = False) -> int:
        """Take no new work; answers how many attempts still run.

        With `hand_over` a checkpoint of each running attempt is taken, and its task goes on from it elsewhere.
        """
        request = pb.DrainNodeRequest(hand_over=hand_over)
        return (await self._patience.call(lambda: self._stub.DrainNode(request, timeout=CALL_TIMEOUT))).running

    async def undrain(self) -> None:
        """Take work again."""
        request = pb.UndrainNodeRequest()
        await self._patience.call(lambda: self._stub.UndrainNode(request, timeout=CALL_TIMEOUT))

    async def recycle(self, slot: str, *, force: bool = False) -> pb.Slot:
        """Replace a slot. Raises `NotFoundError`, `PreconditionError` while it is in use and `force` is not set."""
        # Not retried: a second call would replace the replacement.
        return (await self._stub.RecycleSlot(pb.RecycleSlotRequest(slot=slot, force=force), timeout=CALL_TIMEOUT)).slot
