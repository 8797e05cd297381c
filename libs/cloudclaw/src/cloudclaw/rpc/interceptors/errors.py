"""What a servicer raised becomes the call's status."""

from __future__ import annotations

import asyncio

import grpc
import structlog

from cloudclaw.errors import CloudClawError, UnimplementedError
from cloudclaw.ids import new_id
from cloudclaw.rpc.call import Call
from cloudclaw.rpc.errors import to_wire

_log = structlog.get_logger()


class ErrorTranslation:
    """Domain errors keep their code and details. Anything else is INTERNAL under an incident id, and what it was
    stays in the log: a client learns nothing of the inside."""

    def enter(self, call: Call) -> None:
        pass

    def leave(self, call: Call, error: BaseException | None) -> None:
        if error is None:
            return
        if isinstance(error, asyncio.CancelledError | grpc.aio.BaseError):
            # The client went away (or gRPC itself ended the call): nobody is left to be told.
            call.gone = True
            return
        if not isinstance(error, Exception):
            return
        known = _domain_error(error)
        if known is None:
            incident = new_id("incident")
            _log.error("unexpected exception in a call", method=call.method, incident=incident, exc_info=error)
            known = CloudClawError(
                f"internal error; the service's log has it as {incident}", metadata={"incident": incident}
            )
        call.status = to_wire(known, call.request_id)


def _domain_error(error: Exception) -> CloudClawError | None:
    """The domain error that `error` is, or that all branches of a `TaskGroup` ended with."""
    if isinstance(error, CloudClawError):
        return error
    if isinstance(error, NotImplementedError):
        return UnimplementedError("part of the API, and not served yet")
    if isinstance(error, ExceptionGroup):
        found = [_domain_error(branch) for branch in error.exceptions]
        return found[0] if all(branch is not None for branch in found) else None
    return None
