"""Channels to CloudClaw's services: tokens go along, and statuses come back as `cloudclaw.errors`.

The translation is a thin channel around gRPC's own rather than gRPC's client interceptors: those run every stream
through a queue and a task of their own, which costs more than the calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterable
from typing import Any, Final

import grpc

from cloudclaw.cancellation import cancelling
from cloudclaw.config import ClientTls
from cloudclaw.rpc.errors import from_rpc_error
from cloudclaw.rpc.server import MAX_MESSAGE, read_pem

Token = Callable[[], str] | str | None

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    # A service that was restarted is found again within half a second; gRPC's default is minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # In spite of its name this is how long one attempt to connect may take, TLS included.
    ("grpc.min_reconnect_backoff_ms", 5000),
    # A peer whose machine vanished is noticed after two plus two seconds.
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Services of one process must not share a connection: each has its own token and its own fate.
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(target: str, tls: ClientTls | None = None, token: Token = None) -> grpc.aio.Channel:
    """A channel to `target`; it connects at its first call, and again after every break.

    Args:
        target: `host:port`, `unix:PATH`, or `https://host:port` for TLS with the system's certificates.
        tls: certificates; None, or one that is not enabled, is plain text unless `target` says https.
        token: sent as bearer token with every call; a callable is asked each time, so that it can renew.

    Calls raise `cloudclaw.errors` only: `await stub.Method(request)`, `async for` over a stream, `read` and `write`.

    Raises:
        CloudClawError: a certificate cannot be read.
    """
    address = target.removeprefix("https://").removeprefix("http://").rstrip("/")
    tls = tls or ClientTls()
    if not tls.enabled and not target.startswith("https://"):
        return _Channel(grpc.aio.insecure_channel(address, options=_OPTIONS), token)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=read_pem(tls.ca) if tls.ca else None,
        private_key=read_pem(tls.key) if tls.key else None,
        certificate_chain=read_pem(tls.cert) if tls.cert else None,
    )
    options = (*_OPTIONS, ("grpc.ssl_target_name_override", tls.server_name)) if tls.server_name else _OPTIONS
    return _Channel(grpc.aio.secure_channel(address, credentials, options=options), token)


class _Channel(grpc.aio.Channel):
    """gRPC's channel with our calls."""

    def __init__(self, inner: grpc.aio.Channel, token: Token):
        self._inner = inner
        self._token = token

    def _metadata(self, given: Any) -> Any:
        token = self._token() if callable(self._token) else self._token
        if not token:
            return given
        return (*(given or ()), ("authorization", f"Bearer {token}"))

    def _method(self, make: Callable[..., Any], wrap: type[_Call], *args: Any, **kwargs: Any) -> Any:
        method = make(*args, **kwargs)

        def start(*call_args: Any, metadata: Any = None, **call_kwargs: Any) -> _Call:
            return wrap(method(*call_args, metadata=self._metadata(metadata), **call_kwargs))

        return start

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._method(self._inner.unary_unary, _SingleCall, *args, **kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._method(self._inner.unary_stream, _StreamCall, *args, **kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _with_requests(self._method(self._inner.stream_unary, _SingleCall, *args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _with_requests(self._method(self._inner.stream_stream, _StreamCall, *args, **kwargs))

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    async def __aenter__(self) -> _Channel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _with_requests(start: Callable[..., _Call]) -> Callable[..., _Call]:
    """`start` for a stream of requests, which is optional: without one they are written to the call."""

    def begin(request_iterator: Any = None, **kwargs: Any) -> _Call:
        call = start(**kwargs)
        if request_iterator is not None:
            call.send(request_iterator)
        return call

    return begin


class _Call:
    """What all four kinds share."""

    def __init__(self, inner: Any):
        self._inner = inner
        self._sending: asyncio.Task[None] | None = None
        self._broken: Exception | None = None

    def send(self, requests: AsyncIterable[Any] | Iterable[Any]) -> None:
        """Write `requests` while the call runs.

        gRPC would do it, and leave its task waiting for the next request for ever when the call ends first; and an
        error of the requests themselves would arrive as a cancellation.
        """
        sending = self._sending = asyncio.get_running_loop().create_task(self._send(requests))
        self._inner.add_done_callback(lambda _: sending.cancel())

    async def _send(self, requests: AsyncIterable[Any] | Iterable[Any]) -> None:
        try:
            if isinstance(requests, AsyncIterable):
                try:
                    async for request in requests:
                        await self._inner.write(request)
                finally:
                    if isinstance(requests, AsyncGenerator):
                        await requests.aclose()
            else:
                for request in requests:
                    await self._inner.write(request)
            await self._inner.done_writing()
        except (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            # The call has ended; whoever waits for it gets its status.
            return
        except Exception as e:  # noqa: BLE001 - raised to whoever waits for the call
            self._broken = e
            self._inner.cancel()

    def cancel(self) -> bool:
        return bool(self._inner.cancel())

    def cancelled(self) -> bool:
        return bool(self._inner.cancelled())

    def done(self) -> bool:
        return bool(self._inner.done())

    def time_remaining(self) -> float | None:
        remaining: float | None = self._inner.time_remaining()
        return remaining

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._inner.add_done_callback(callback)

    async def initial_metadata(self) -> Any:
        return await self._translated(self._inner.initial_metadata())

    async def trailing_metadata(self) -> Any:
        return await self._translated(self._inner.trailing_metadata())

    async def code(self) -> grpc.StatusCode:
        code: grpc.StatusCode = await self._inner.code()
        return code

    async def details(self) -> str:
        return str(await self._inner.details())

    async def wait_for_connection(self) -> None:
        await self._translated(self._inner.wait_for_connection())

    async def write(self, request: Any) -> None:
        """Send a message of a request stream."""
        await self._translated(self._inner.write(request))

    async def done_writing(self) -> None:
        """End the request stream."""
        await self._translated(self._inner.done_writing())

    async def _translated(self, waiting: Any) -> Any:
        try:
            return await waiting
        except grpc.aio.AioRpcError as e:
            if cancelling():
                raise asyncio.CancelledError from e
            raise from_rpc_error(e) from e
        except asyncio.CancelledError:
            if self._broken is not None and not cancelling():
                raise self._broken from None
            raise


class _SingleCall(_Call):
    """A call with one response."""

    def __await__(self) -> Generator[Any, None, Any]:
        return (yield from self._translated(self._inner).__await__())


class _StreamCall(_Call):
    """A call with a stream of responses. Leaving the iteration early does not end it; `cancel` does."""

    def __init__(self, inner: Any):
        super().__init__(inner)
        self._responses: AsyncIterator[Any] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._responses is None:
            self._responses = self._inner.__aiter__()
        return await self._translated(self._responses.__anext__())

    async def read(self) -> Any:
        """The next response, `grpc.aio.EOF` after the last."""
        return await self._translated(self._inner.read())
