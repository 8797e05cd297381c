"""Results for those who consume them as tasks end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from cloudclaw.client.retry import Patience
from cloudclaw.v1 import scheduler_pb2 as pb

if TYPE_CHECKING:
    from cloudclaw.v1.scheduler_pb2_grpc import SchedulerServiceAsyncStub

CALL_TIMEOUT: Final = 30.0
RECEIPTS: Final = 1000
"""Most receipts in one call."""


class Consumers:
    """The tenant's consumers of results.

    A consumer is a name, and where it stands is kept by the service: streams of one name, in any number of processes,
    share the work. A result is delivered at least once: again when its delivery was not acknowledged in time.
    """

    def __init__(self, scheduler: SchedulerServiceAsyncStub, patience: Patience):
        self._scheduler = scheduler
        self._patience = patience

    def stream(self, request: pb.StreamResultsRequest) -> AsyncGenerator[pb.StreamResultsResponse, None]:
        """Deliveries; after a break the stream goes on with what was not delivered yet."""
        return self._patience.stream(lambda: self._open(request))

    async def _open(self, request: pb.StreamResultsRequest) -> AsyncGenerator[pb.StreamResultsResponse, None]:
        call = self._scheduler.StreamResults(request)
        try:
            async for response in call:
                yield response
        finally:
            call.cancel()

    async def ack(self, consumer: str, receipts: Iterable[str]) -> Sequence[str]:
        """Acknowledge deliveries; answers the receipts that came too late. Acknowledging twice does no harm.

        Raises `NotFoundError` when there is no such consumer, `InvalidArgumentError` for what is no receipt.
        """
        given = list(receipts)
        expired: list[str] = []
        for begin in range(0, len(given), RECEIPTS):
            request = pb.AckResultsRequest(consumer=consumer, receipts=given[begin : begin + RECEIPTS])
            expired += await self._ack(request)
        return expired

    async def _ack(self, request: pb.AckResultsRequest) -> Sequence[str]:
        call = self._scheduler.AckResults
        return (await self._patience.call(lambda: call(request, timeout=CALL_TIMEOUT))).expired

    async def list(self) -> Sequence[pb.Consumer]:
        """All of them, by name."""
        request = pb.ListConsumersRequest()
        call = self._scheduler.ListConsumers
        return (await self._patience.call(lambda: call(request, timeout=CALL_TIMEOUT))).consumers

    async def delete(self, consumer: str) -> None:
        """Forget a consumer and where it stands. Raises `NotFoundError`."""
        # Not retried: a second call could not tell its own success from there being none.
        await self._scheduler.DeleteConsumer(pb.DeleteConsumerRequest(consumer=consumer), timeout=CALL_TIMEOUT)
