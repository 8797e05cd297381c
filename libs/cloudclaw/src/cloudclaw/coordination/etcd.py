"""The key-value port on etcd 3.5 and later, over the generated stubs of `etcd3aio`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
import grpc.aio
from etcd3aio._protobuf import (
    Compare,
    DeleteRangeRequest,
    KVStub,
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseRevokeRequest,
    LeaseStub,
    MaintenanceStub,
    PutRequest,
    RangeRequest,
    RequestOp,
    StatusRequest,
    TxnRequest,
    WatchStub,
)

from cloudclaw.cancellation import cancelling
from cloudclaw.clock import Clock
from cloudclaw.coordination import etcd_watch
from cloudclaw.coordination.etcd_channel import EtcdTls, open_channel
from cloudclaw.coordination.port import (
    Absent,
    CompactedError,
    CreateIs,
    Entry,
    Exists,
    Guard,
    LeaseLostError,
    ModIs,
    Put,
    RangeResult,
    TxnResult,
    ValueIs,
    WatchBatch,
    Write,
)
from cloudclaw.errors import OutOfRangeError, UnavailableError

DEADLINE: Final = 2.0
"""Seconds for a call, waiting for the connection included."""

KEEP_ALIVE_DEADLINE: Final = 1.0

PAGE: Final = 500
"""Keys asked for at a time, at most 8 KiB each."""

_OUTAGE: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        # By the transport or the server; our own cancellation is asyncio's.
        grpc.StatusCode.CANCELLED,
        # A stream that was reset, and raft's own errors: whether the call took effect is unknown, as above.
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)


class EtcdSettings(Protocol):
    """What `open_etcd` reads of `cloudclaw.config.EtcdSettings`."""

    @property
    def endpoints(self) -> list[str]: ...
    @property
    def ca(self) -> Path | None: ...
    @property
    def cert(self) -> Path | None: ...
    @property
    def key(self) -> Path | None: ...


def open_etcd(settings: EtcdSettings, clock: Clock) -> EtcdKeyValue:
    """The store that the settings name; reads the certificates. Needs the running event loop."""
    tls = None
    if settings.ca is not None:
        tls = EtcdTls(
            ca=settings.ca.read_bytes(),
            cert=settings.cert.read_bytes() if settings.cert is not None else None,
            key=settings.key.read_bytes() if settings.key is not None else None,
        )
    return EtcdKeyValue(settings.endpoints, tls, clock)


class EtcdKeyValue:
    """`KeyValue` on an etcd cluster.

    Nothing is retried here: a call is sent once, when the connection is there, within its deadline. Only `watch`
    and `range` (over its pages) are made of more than one call.
    """

    def __init__(self, endpoints: Sequence[str], tls: EtcdTls | None, clock: Clock) -> None:
        self._clock = clock
        self._channel = open_channel(endpoints, tls)
        self._kv = KVStub(self._channel)
        self._lease = LeaseStub(self._channel)
        self._watch = WatchStub(self._channel)
        self._maintenance = MaintenanceStub(self._channel)

    async def get(self, key: str) -> Entry | None:
        response = await _answer(
            self._kv.Range(RangeRequest(key=key.encode()), timeout=DEADLINE, wait_for_ready=True), "get"
        )
        return _entry(response.kvs[0]) if response.kvs else None

    async def range(
        self,
        prefix: str,
        *,
        start_after: str = "",
        limit: int = 0,
        revision: int = 0,
        newest_first: bool = False,
        keys_only: bool = False,
        created_before: int = 0,
    ) -> RangeResult:
        first = max(prefix.encode(), start_after.encode() + b"\0") if start_after else prefix.encode() or b"\0"
        request = RangeRequest(
            key=first,
            range_end=prefix_end(prefix.encode()),
            revision=revision,
            keys_only=keys_only,
            max_create_revision=created_before - 1 if created_before else 0,
            min_create_revision=1 << 62 if created_before == 1 else 0,  # nothing, since a maximum of 0 is none
        )
        by_age = newest_first and 0 < limit <= PAGE
        if by_age:
            request.sort_order, request.sort_target = RangeRequest.DESCEND, RangeRequest.CREATE
        kvs: list[Any] = []
        while True:
            # etcd gives a limited number of the newest; all of them are sorted here.
            want = limit - len(kvs) if limit and (by_age or not newest_first) else PAGE
            request.limit = min(PAGE, want)
            response = await _answer(
                self._kv.Range(request, timeout=DEADLINE, wait_for_ready=True), "range", request.revision
            )
            kvs.extend(response.kvs)
            request.revision = request.revision or response.header.revision
            if not response.more or by_age or (not newest_first and len(kvs) == limit):
                break
            request.key = response.kvs[-1].key + b"\0"
        entries, more = [_entry(kv) for kv in kvs], response.more
        if newest_first and not by_age:
            entries.sort(key=lambda entry: -entry.create_revision)
            more = bool(limit) and len(entries) > limit
            entries = entries[:limit] if limit else entries
        return RangeResult(entries, request.revision, more)

    async def txn(
        self, guards: Sequence[Guard], writes: Sequence[Write], *, read_on_failure: Sequence[str] = ()
    ) -> TxnResult:
        request = TxnRequest(
            compare=[_compare(guard) for guard in guards],
            success=[_request(write) for write in writes],
            failure=[RequestOp(request_range=RangeRequest(key=key.encode())) for key in read_on_failure],
        )
        response = await _answer(self._kv.Txn(request, timeout=DEADLINE, wait_for_ready=True), "txn")
        if response.succeeded:
            return TxnResult(True, response.header.revision)
        read = [_entry(kv) for answer in response.responses for kv in answer.response_range.kvs]
        return TxnResult(False, response.header.revision, read)

    def watch(self, prefix: str, after_revision: int) -> AsyncGenerator[WatchBatch, None]:
        key = prefix.encode() or b"\0"
        return etcd_watch.watch(self._watch, self._clock, key, prefix_end(prefix.encode()), after_revision)

    async def grant(self, ttl: int) -> int:
        request = LeaseGrantRequest(TTL=ttl)
        response = await _answer(self._lease.LeaseGrant(request, timeout=DEADLINE, wait_for_ready=True), "grant")
        return int(response.ID)

    async def keep_alive(self, lease: int) -> int:
        requests = iter((LeaseKeepAliveRequest(ID=lease),))
        call = self._lease.LeaseKeepAlive(requests, timeout=KEEP_ALIVE_DEADLINE, wait_for_ready=True)
        try:
            response = await call.read()
        except grpc.aio.AioRpcError as error:
            if cancelling():
                raise asyncio.CancelledError from error
            raise translated(error, "keep_alive") from error
        finally:
            call.cancel()
        if response is grpc.aio.EOF:
            raise UnavailableError("etcd ended the keep-alive without an answer")
        if response.TTL <= 0:
            raise LeaseLostError(f"lease {lease:x} is gone")
        return int(response.TTL)

    async def revoke(self, lease: int) -> None:
        request = LeaseRevokeRequest(ID=lease)
        try:
            await _answer(self._lease.LeaseRevoke(request, timeout=DEADLINE, wait_for_ready=True), "revoke")
        except LeaseLostError:
            return

    async def database_size(self) -> tuple[int, int]:
        call = self._maintenance.Status(StatusRequest(), timeout=DEADLINE, wait_for_ready=True)
        response = await _answer(call, "status")
        # Pages in use: free pages are written again, though the file never shrinks without a defragmentation.
        return int(response.dbSizeInUse), int(response.dbSizeQuota)

    async def close(self) -> None:
        await self._channel.close()


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that begin with `prefix`; our prefixes are text, so the last byte can be raised."""
    return prefix[:-1] + bytes([prefix[-1] + 1]) if prefix else b"\0"


def translated(error: grpc.aio.AioRpcError, call: str, revision: int = 0) -> Exception:
    """The port's error for etcd's; one that can only be a fault of ours is answered as it is."""
    code, details = error.code(), error.details() or ""
    if code in _OUTAGE or "too many requests" in details:
        return UnavailableError(f"etcd did not answer ({call}): {code.name}: {details[:200]}")
    if "database space exceeded" in details:
        # An outage to whoever waits for it to end; that it is full is for operators (the reason) to act on.
        return UnavailableError(
            "etcd is full and refuses writes; raise its quota or compact, defragment, and disarm its alarm",
            retry_after=5.0,
            reason="COORDINATION_FULL",
        )
    if code is grpc.StatusCode.NOT_FOUND and "lease not found" in details:
        return LeaseLostError("the lease is gone")
    if code is grpc.StatusCode.OUT_OF_RANGE and "compacted" in details:
        return CompactedError(revision + 1)  # etcd does not say how far; at least the one asked for is gone
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return ValueError(f"etcd refused the {call}: {details[:200]}")
    if code is grpc.StatusCode.OUT_OF_RANGE:
        return OutOfRangeError(f"etcd refused revision {revision}: {details[:200]}")
    return error


async def _answer(call: Awaitable[Any], name: str, revision: int = 0) -> Any:  # etcd3aio's stubs are untyped
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        if cancelling():
            raise asyncio.CancelledError from error
        raise translated(error, name, revision) from error


def _entry(kv: Any) -> Entry:
    return Entry(kv.key.decode(), kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def _compare(guard: Guard) -> Any:
    key = guard.key.encode()
    match guard:
        case CreateIs(revision=revision):
            return Compare(key=key, target=Compare.CREATE, create_revision=revision)
        case ModIs(revision=revision):
            return Compare(key=key, target=Compare.MOD, mod_revision=revision)
        case Absent():
            return Compare(key=key, target=Compare.CREATE, create_revision=0)
        case Exists():
            return Compare(key=key, target=Compare.CREATE, result=Compare.GREATER, create_revision=0)
        case ValueIs(value=value):
            return Compare(key=key, target=Compare.VALUE, value=value)


def _request(write: Write) -> Any:
    if isinstance(write, Put):
        return RequestOp(request_put=PutRequest(key=write.key.encode(), value=write.value, lease=write.lease))
    return RequestOp(request_delete_range=DeleteRangeRequest(key=write.key.encode()))
