"""The one gRPC interceptor: it runs ours, in order, around handlers of all four kinds.

gRPC has four shapes of handler, and each interceptor would have to wrap all four. Here that is done once:
requests are parsed inside (so that nobody unknown makes us parse, and malformed bytes are INVALID_ARGUMENT), responses
of a stream are written by a coroutine (so that a servicer's generator is closed at once when its client goes away),
and domain errors are sent with their details.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from inspect import isasyncgenfunction
from types import TracebackType
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from cloudclaw.errors import AbortedError, InvalidArgumentError
from cloudclaw.rpc.call import Call, Interceptor

OPEN_SERVICES: Final = (
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1alpha.ServerReflection/",
    "/grpc.reflection.v1.ServerReflection/",
)
"""Served to anybody: probes and `grpcurl list` come without a token."""

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Any  # grpc.RpcMethodHandler, whose attributes its stubs do not declare


class Chain(grpc.aio.ServerInterceptor):
    """Runs `interceptors` around every call, the first outermost."""

    def __init__(self, interceptors: Sequence[Interceptor]):
        self._interceptors = tuple(interceptors)
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or method.startswith(OPEN_SERVICES):
            return handler
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, self._wrap(method, handler))
        return known[1]

    def _wrap(self, method: str, handler: Handler) -> Handler:
        behaviour = (
            handler.stream_stream
            if handler.request_streaming and handler.response_streaming
            else handler.stream_unary
            if handler.request_streaming
            else handler.unary_stream
            if handler.response_streaming
            else handler.unary_unary
        )
        if handler.response_streaming:
            return self._streamed(method, handler, behaviour)
        return self._single(method, handler, behaviour)

    def _single(self, method: str, handler: Handler, behaviour: Callable[..., Awaitable[Any]]) -> Handler:
        """A handler with one response."""
        parse, serialize = _strict(handler.request_deserializer), handler.response_serializer
        interceptors, streaming = self._interceptors, handler.request_streaming

        async def serve(raw: Any, context: Context) -> bytes:
            call = Call(method, context)
            try:
                with _Around(interceptors, call):
                    request = _until_half_closed(raw, context) if streaming else parse(raw)
                    response: bytes = serialize(await behaviour(request, context))
                    return response
            except Exception as e:
                await _abort(call, context, e)
                raise

        if streaming:
            return grpc.stream_unary_rpc_method_handler(serve, parse, None)
        return grpc.unary_unary_rpc_method_handler(serve, None, None)

    def _streamed(self, method: str, handler: Handler, behaviour: Callable[..., Any]) -> Handler:
        """A handler with a stream of responses; `behaviour` yields them, or writes them to the context itself."""
        parse, interceptors, streaming = (
            _strict(handler.request_deserializer),
            self._interceptors,
            handler.request_streaming,
        )
        yields = isasyncgenfunction(behaviour)

        async def serve(raw: Any, context: Context) -> None:
            call = Call(method, context)
            try:
                with _Around(interceptors, call):
                    request = raw if streaming else parse(raw)
                    responses = behaviour(request, context)
                    if not yields and not hasattr(responses, "__aiter__"):
                        await responses
                        return
                    async with aclosing(responses):
                        async for response in responses:
                            await context.write(response)
            except Exception as e:
                await _abort(call, context, e)
                raise

        if streaming:
            return grpc.stream_stream_rpc_method_handler(serve, parse, handler.response_serializer)
        return grpc.unary_stream_rpc_method_handler(serve, None, handler.response_serializer)


class _Around:
    """Enters the interceptors, and leaves in reverse order those that were entered."""

    __slots__ = ("_call", "_entered", "_interceptors")

    def __init__(self, interceptors: tuple[Interceptor, ...], call: Call):
        self._interceptors = interceptors
        self._call = call
        self._entered = 0

    def __enter__(self) -> None:
        try:
            for interceptor in self._interceptors:
                interceptor.enter(self._call)
                self._entered += 1
        except BaseException as e:
            self._leave(e)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        for interceptor in reversed(self._interceptors[: self._entered]):
            interceptor.leave(self._call, error)


async def _abort(call: Call, context: Context, error: Exception) -> None:
    """End the call with its translated status; returns when there is nobody to tell."""
    if call.status is not None:
        try:
            await context.abort(call.status.code, call.status.message, call.status.trailers)
        except grpc.aio.InternalError:
            # The client left while its error was on the way.
            raise asyncio.CancelledError from error


async def _until_half_closed(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
    """The messages of a client, and an error instead of an end when it went away before its last one.

    gRPC gives servicers the same end of stream for both, so an upload cut short would look like a shorter upload.
    Headers can be sent only while the client is there: that tells the two apart.
    """
    async for request in requests:
        yield request
    try:
        await context.send_initial_metadata(())
    except grpc.aio.InternalError as e:
        raise AbortedError("the client went away before the end of its stream", reason="CLIENT_GONE") from e


def _strict(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """`parse`, raising `InvalidArgumentError` for bytes that are no such message."""

    def strict(raw: bytes) -> Any:
        try:
            return parse(raw)
        except DecodeError as e:
            raise InvalidArgumentError(
                "the request is not a well-formed message of its type", field="", reason="MALFORMED_MESSAGE"
            ) from e

    return strict
