"""The two streams of a node: `Connect` and `StreamLogs`. For the role "node", and for the leader only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import structlog

from cloudclaw.errors import CloudClawError, InvalidArgumentError
from cloudclaw.ids import check_name
from cloudclaw.rpc.auth import require_role
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw_scheduler.app.leader import Leader
from cloudclaw_scheduler.app.links import NodeLink
from cloudclaw_scheduler.app.outbox import Outbox
from cloudclaw_scheduler.app.tail import not_leader
from cloudclaw_scheduler.app.term import Term

Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request")
Response = TypeVar("Response")

_log = structlog.get_logger()


class NodeCalls:
    """Passes what nodes say to the term."""

    def __init__(self, leader: Leader) -> None:
        self._leader = leader

    async def Connect(
        self, request_iterator: AsyncIterator[pb.ConnectRequest], context: Context
    ) -> AsyncIterator[pb.ConnectResponse]:
        require_role("node")
        term = self._leader.require()
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("message") != "hello":
            raise InvalidArgumentError("the first message must be Hello", field="hello")
        _check_term(first.term, term)
        hello = first.hello
        check_name(hello.node, "hello.node")
        link = await term.hello(hello)
        with structlog.contextvars.bound_contextvars(node=hello.node):
            try:
                async for response in _duplex(
                    request_iterator, link.outbox, lambda request: self._received(term, link, request)
                ):
                    yield response
            finally:
                term.gone(link)

    async def StreamLogs(
        self, request_iterator: AsyncIterator[pb.StreamLogsRequest], context: Context
    ) -> AsyncIterator[pb.StreamLogsResponse]:
        require_role("node")
        term = self._leader.require()
        outbox: Outbox[pb.StreamLogsResponse] = Outbox()
        term.follow(outbox)

        async def received(request: pb.StreamLogsRequest) -> None:
            _check_term(request.term, term)
            await term.hub.receive(request, outbox)

        try:
            async for response in _duplex(request_iterator, outbox, received):
                yield response
        finally:
            term.unfollow(outbox)

    async def _received(self, term: Term, link: NodeLink, request: pb.ConnectRequest) -> None:
        _check_term(request.term, term)
        match request.WhichOneof("message"):
            case "heartbeat":
                term.heartbeat(link, request.heartbeat)
            case "report":
                term.report(link, request.report)
            case "checkpoint":
                term.checkpoint(link, request.checkpoint)
            case "reject":
                term.reject(link, request.reject)
            case "hello":
                raise InvalidArgumentError("Hello comes once, first", field="hello")
            case _:
                _log.debug("an empty message of a node")


async def _duplex(
    requests: AsyncIterator[Request], outbox: Outbox[Response], receive: Callable[[Request], Awaitable[None]]
) -> AsyncIterator[Response]:
    """Receive every request in order while the outbox is sent. Ends when the client has, or with the first error."""

    async def read() -> None:
        try:
            async for request in requests:
                await receive(request)
        except CloudClawError as error:
            outbox.close(error)
        finally:
            outbox.close()

    reader = asyncio.create_task(read())
    try:
        async for response in outbox:
            yield response
    finally:
        outbox.close()
        reader.cancel()
        await asyncio.wait([reader])
    if not reader.cancelled() and (failure := reader.exception()) is not None:
        raise failure


def _check_term(seen: int, term: Term) -> None:
    """A node that knows a newer term has a newer leader: this one steps aside."""
    if seen > term.term:
        raise not_leader("")
