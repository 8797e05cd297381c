"""The calls of those who consume results."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from cloudclaw.errors import InvalidArgumentError
from cloudclaw.ids import check_name
from cloudclaw.rpc.auth import caller
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw_scheduler.app.consumers import Consumers
from cloudclaw_scheduler.app.results import timestamp
from cloudclaw_scheduler.domain.consumers import MAX_RECEIPTS, parse_receipt, wish
from cloudclaw_scheduler.server.convert import seconds

Context = grpc.aio.ServicerContext[Any, Any]


class ResultCalls:
    """Each method validates, converts, calls, converts back. All of them are of the caller's tenant."""

    def __init__(self, consumers: Consumers) -> None:
        self._consumers = consumers

    async def StreamResults(
        self, request: pb.StreamResultsRequest, context: Context
    ) -> AsyncIterator[pb.StreamResultsResponse]:
        wanted = wish(
            request.consumer,
            seconds(request, "visibility_timeout", "visibility_timeout"),
            request.from_oldest,
            request.max_outstanding,
            request.drain,
        )
        async with aclosing(self._consumers.stream(caller().tenant, wanted)) as deliveries:
            async for delivered in deliveries:
                yield pb.StreamResultsResponse(
                    result=delivered.result,
                    receipt=str(delivered.receipt),
                    visible_time=timestamp(delivered.visible),
                )

    async def AckResults(self, request: pb.AckResultsRequest, context: Context) -> pb.AckResultsResponse:
        consumer = check_name(request.consumer, "consumer")
        if len(request.receipts) > MAX_RECEIPTS:
            raise InvalidArgumentError(f"at most {MAX_RECEIPTS} at once; got {len(request.receipts)}", field="receipts")
        receipts = [parse_receipt(text, f"receipts[{index}]") for index, text in enumerate(request.receipts)]
        expired = await self._consumers.ack(caller().tenant, consumer, receipts)
        return pb.AckResultsResponse(expired=[str(receipt) for receipt in expired])

    async def ListConsumers(self, request: pb.ListConsumersRequest, context: Context) -> pb.ListConsumersResponse:
        return pb.ListConsumersResponse(
            consumers=[
                pb.Consumer(
                    name=standing.name,
                    create_time=timestamp(standing.record.created),
                    update_time=timestamp(standing.record.updated),
                    backlog=standing.backlog,
                )
                for standing in await self._consumers.standings(caller().tenant)
            ]
        )

    async def DeleteConsumer(self, request: pb.DeleteConsumerRequest, context: Context) -> pb.DeleteConsumerResponse:
        await self._consumers.delete(caller().tenant, check_name(request.consumer, "consumer"))
        return pb.DeleteConsumerResponse()
