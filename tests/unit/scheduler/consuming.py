"""Consumers of results, as tests play them."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from prometheus_client import CollectorRegistry

from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.v1 import scheduler_pb2 as pb
from tests.support.kv import ManualClock
from tests.unit.scheduler.plane import Plane, User, duration, soon

VISIBILITY = 5.0
Response = pb.StreamResultsResponse


class Consumer:
    """One consumer's streams, as the test opens them."""

    def __init__(self, plane: Plane, name: str = "c", tenant: str = "acme") -> None:
        self.stub = plane.stub(tenant)
        self.name = name

    def open(self, **request: Any) -> Stream:
        request.setdefault("visibility_timeout", duration(VISIBILITY))
        request.setdefault("from_oldest", True)
        return Stream(self.stub.StreamResults(pb.StreamResultsRequest(consumer=self.name, **request)))

    async def drain(self, **request: Any) -> list[Response]:
        """All that is to be had now."""
        async with asyncio.timeout(10):
            return await self.open(drain=True, **request).rest()

    async def ack(self, *responses: Response) -> list[str]:
        request = pb.AckResultsRequest(consumer=self.name, receipts=[r.receipt for r in responses])
        return list((await self.stub.AckResults(request)).expired)

    async def standing(self) -> pb.Consumer:
        listed = await self.stub.ListConsumers(pb.ListConsumersRequest())
        (found,) = [consumer for consumer in listed.consumers if consumer.name == self.name]
        return found


class Stream:
    def __init__(self, call: Any) -> None:
        self.call = call

    async def take(self, count: int) -> list[Response]:
        found = []
        for _ in range(count):
            response = await soon(self.call.read())
            assert response is not grpc.aio.EOF
            found.append(response)
        return found

    async def rest(self) -> list[Response]:
        found = []
        while (response := await self.call.read()) is not grpc.aio.EOF:
            found.append(response)
        return found

    def close(self) -> None:
        self.call.cancel()


def ids(responses: list[Response]) -> list[str]:
    return [response.result.task_id for response in responses]


async def canceled(user: User, count: int = 1) -> list[str]:
    """Tasks that ended, in the order of their ends."""
    tasks = [await user.submit() for _ in range(count)]
    for task in tasks:
        await user.cancel(task)
    return tasks


async def lapse(plane: Plane, clock: ManualClock) -> None:
    """The visibility timeout passes for all that is out."""
    await clock.advance(VISIBILITY)
    assert isinstance(plane.kv, MemoryKeyValue)
    plane.kv.tick()


def out(plane: Plane, name: str = "c") -> int:
    return len(plane.scheduler.mirror.state.deliveries.get(("acme", name), {}))


def counted(plane: Plane, metric: str, **labels: str) -> float:
    registry = plane.scheduler.metrics.registry
    assert isinstance(registry, CollectorRegistry)
    return registry.get_sample_value(metric, labels) or 0.0
