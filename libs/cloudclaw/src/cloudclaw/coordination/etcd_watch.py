"""One watch on etcd that goes on through reconnects, without a gap and without a repetition."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

import grpc
import grpc.aio
import structlog
from etcd3aio._protobuf import WatchCreateRequest, WatchRequest, WatchStub

from cloudclaw.cancellation import cancelling
from cloudclaw.clock import Clock
from cloudclaw.coordination.port import CompactedError, Entry, KeyEvent, Op, WatchBatch

_log = structlog.get_logger(__name__)

_REQUIRE_LEADER: Final = (("hasleader", "true"),)
"""A member that lost its leader ends the stream instead of going silent."""

_PAUSE: Final = 0.1
"""Seconds between two streams; the channel itself waits for etcd."""


async def watch(
    stub: WatchStub, clock: Clock, key: bytes, range_end: bytes, after_revision: int
) -> AsyncGenerator[WatchBatch, None]:
    """Batches of whole revisions after `after_revision`. Raises `CompactedError`; ends only when closed.

    A new stream begins at the revision after the last one delivered. That is the mod revision of the last event, or
    the revision of a progress mark; the header of a response with events is of no use for this, since it shows the
    store's revision, which a watch that is catching up has not reached.
    """
    following = after_revision + 1
    while True:
        stream = stub.Watch(metadata=_REQUIRE_LEADER, wait_for_ready=True)
        try:
            await stream.write(_create(key, range_end, following))
            async with contextlib.aclosing(_batches(stream, following)) as batches:
                async for batch in batches:
                    following = batch.revision + 1
                    yield batch
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            # InvalidStateError: the stream ended before the request could be written to it.
            if cancelling():
                raise asyncio.CancelledError from error
            code = error.code().name if isinstance(error, grpc.aio.AioRpcError) else "CLOSED"
            _log.info("the watch broke; resuming", key=key.decode(), after=following - 1, code=code)
        finally:
            stream.cancel()
        await clock.sleep(_PAUSE)


async def _batches(stream: Any, following: int) -> AsyncGenerator[WatchBatch, None]:  # grpc's streams are untyped
    """The batches of one stream, from revision `following` on, until it ends."""
    events: list[Any] = []
    while (response := await stream.read()) is not grpc.aio.EOF:
        if response.compact_revision:
            raise CompactedError(response.compact_revision)
        if response.canceled:
            _log.warning("etcd canceled the watch; resuming", reason=response.cancel_reason)
            return
        if response.created:
            continue
        events.extend(response.events)
        if response.fragment:
            continue  # the rest of these revisions follows
        if events:
            batch = WatchBatch(events[-1].kv.mod_revision, _converted(events))
            events = []
        elif response.header.revision >= following - 1:
            batch = WatchBatch(response.header.revision, ())  # sent only to a watch that has caught up
        else:
            continue
        following = batch.revision + 1
        yield batch


def _create(key: bytes, range_end: bytes, start_revision: int) -> WatchRequest:
    return WatchRequest(
        create_request=WatchCreateRequest(
            key=key, range_end=range_end, start_revision=start_revision, progress_notify=True, fragment=True
        )
    )


def _converted(events: Sequence[Any]) -> list[KeyEvent]:
    converted = []
    for event in events:
        kv = event.kv
        if event.type:
            entry = Entry(kv.key.decode(), b"", 0, kv.mod_revision)
            converted.append(KeyEvent(Op.DELETE, entry))
        else:
            entry = Entry(kv.key.decode(), kv.value, kv.create_revision, kv.mod_revision, kv.lease)
            converted.append(KeyEvent(Op.PUT, entry))
    return converted
