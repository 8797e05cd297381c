"""One call as the server's interceptors see it, and what an interceptor is."""

from __future__ import annotations

from typing import Any, Protocol

import grpc

from cloudclaw.rpc.auth import Caller
from cloudclaw.rpc.errors import WireStatus


class Call:
    """A running call.

    Attributes:
        method: full name, `/cloudclaw.v1.SchedulerService/GetTask`.
        context: gRPC's own; interceptors read from it and never abort with it.
        metadata: what the client sent along, as (key, value).
        request_id: the client's, or a fresh one.
        caller: who asks; None before authentication.
        started: `Clock.boottime` of its begin, in seconds.
        status: how it failed, once translated; None while it runs and when it succeeded.
        gone: its client went away before the end.
    """

    __slots__ = ("caller", "context", "gone", "metadata", "method", "request_id", "started", "status")

    def __init__(self, method: str, context: grpc.aio.ServicerContext[Any, Any]):
        self.method = method
        self.context = context
        self.metadata: tuple[tuple[str, str | bytes], ...] = tuple(context.invocation_metadata() or ())
        self.request_id = ""
        self.caller: Caller | None = None
        self.started = 0.0
        self.status: WireStatus | None = None
        self.gone = False

    @property
    def code(self) -> str:
        """Name of the status code that the call ended with."""
        if self.gone:
            return grpc.StatusCode.CANCELLED.name
        return self.status.code.name if self.status is not None else grpc.StatusCode.OK.name


class Interceptor(Protocol):
    """Something done around every call, whatever its kind.

    `enter` runs in the call's own task before the request is parsed, so context variables that it sets reach the
    servicer; what it raises ends the call. `leave` runs after, innermost first, for each that was entered.
    Neither waits for anything.
    """

    def enter(self, call: Call) -> None:
        """Before the request is parsed. Raises a `CloudClawError` to refuse the call."""
        ...

    def leave(self, call: Call, error: BaseException | None) -> None:
        """After the call, with what it raised."""
        ...
