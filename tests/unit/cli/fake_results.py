"""The calls of consumers of results, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from cloudclaw.errors import NotFoundError, UnavailableError
from cloudclaw.rpc.auth import caller
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2


class FakeResults:
    """Delivers the results of `tasks` that are not in `acked`; receipts in `late` come too late.

    A stream breaks after each message as often as `breaks` says.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, task_pb2.Task] = {}
        self.breaks = 0
        self.streams: list[pb.StreamResultsRequest] = []
        self.acked: dict[str, list[str]] = {}
        self.late: set[str] = set()

    async def GetResult(self, request: pb.GetResultRequest, context: Any) -> pb.GetResultResponse:
        raise NotImplementedError

    async def StreamResults(
        self, request: pb.StreamResultsRequest, context: Any
    ) -> AsyncIterator[pb.StreamResultsResponse]:
        self.streams.append(pb.StreamResultsRequest.FromString(request.SerializeToString()))
        acked = self.acked.setdefault(request.consumer, [])
        for task_id, task in self.tasks.items():
            if f"receipt-{task_id}" in acked or task.tenant != caller().tenant:
                continue
            result = (await self.GetResult(pb.GetResultRequest(task_id=task_id), context)).result
            yield pb.StreamResultsResponse(result=result, receipt=f"receipt-{task_id}")
            if self.breaks > 0:
                self.breaks -= 1
                raise UnavailableError("restarting")
        if not request.drain:
            await asyncio.Event().wait()

    async def AckResults(self, request: pb.AckResultsRequest, context: Any) -> pb.AckResultsResponse:
        acked = self._consumer(request.consumer)
        expired = [receipt for receipt in request.receipts if receipt in self.late]
        acked += [receipt for receipt in request.receipts if receipt not in self.late]
        return pb.AckResultsResponse(expired=expired)

    async def ListConsumers(self, request: Any, context: Any) -> pb.ListConsumersResponse:
        consumers = [pb.Consumer(name=name, backlog=len(self.tasks) - len(acked)) for name, acked in self.acked.items()]
        return pb.ListConsumersResponse(consumers=consumers)

    async def DeleteConsumer(self, request: Any, context: Any) -> pb.DeleteConsumerResponse:
        self._consumer(request.consumer)
        del self.acked[request.consumer]
        return pb.DeleteConsumerResponse()

    def _consumer(self, name: str) -> list[str]:
        if name not in self.acked:
            raise NotFoundError(f"no consumer {name!r}")
        return self.acked[name]
