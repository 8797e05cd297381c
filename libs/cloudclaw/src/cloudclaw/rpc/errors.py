"""Domain errors to `google.rpc.Status` and back; the only place that knows both.

Every error carries an `ErrorInfo` (its `reason`, domain `cloudclaw`, its metadata). Beside it:
`BadRequest` for a wrong field, `QuotaFailure` and `PreconditionFailure` for what is in the way, `RetryInfo` for when
to try again, and `RequestInfo` with the id under which the service's log knows the call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2 as details
from google.rpc.status_pb2 import Status

from cloudclaw import errors
from cloudclaw.errors import CloudClawError

DOMAIN: Final = "cloudclaw"
DETAILS_KEY: Final = "grpc-status-details-bin"

# A status travels in HTTP/2 headers, of which a peer takes 8 KiB, percent-encoded.
_MAX_MESSAGE: Final = 1500
_MAX_VALUE: Final = 300

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_BY_CODE: Final[dict[str, type[CloudClawError]]] = {
    cls.code: cls
    for cls in (
        errors.NotFoundError,
        errors.AlreadyExistsError,
        errors.OutOfRangeError,
        errors.UnauthenticatedError,
        errors.PermissionDeniedError,
        errors.AbortedError,
        errors.DataLossError,
        errors.UnimplementedError,
    )
}
_KINDS: Final = (
    details.ErrorInfo,
    details.BadRequest,
    details.QuotaFailure,
    details.PreconditionFailure,
    details.RetryInfo,
    details.RequestInfo,
)


@dataclass(frozen=True, slots=True)
class WireStatus:
    """A status as gRPC sends it."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, bytes], ...]


def to_wire(error: CloudClawError, request_id: str) -> WireStatus:
    """The status that `error` travels as."""
    code = grpc.StatusCode[error.code]
    message = _cut(error.message, _MAX_MESSAGE)
    status = Status(code=code.value[0], message=message)
    for detail in _details(error, request_id):
        status.details.add().Pack(detail)
    return WireStatus(code, message, ((DETAILS_KEY, status.SerializeToString()),))


def _details(error: CloudClawError, request_id: str) -> Iterator[Message]:
    metadata = {_cut(k, 63): _cut(v, _MAX_VALUE) for k, v in list(error.metadata.items())[:16]}
    yield details.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    description = _cut(error.message, _MAX_VALUE)
    if isinstance(error, errors.InvalidArgumentError):
        field = _cut(error.field, _MAX_VALUE)
        yield details.BadRequest(
            field_violations=[details.BadRequest.FieldViolation(field=field, description=description)]
        )
    elif isinstance(error, errors.QuotaExceededError):
        subject = _cut(error.subject, _MAX_VALUE)
        yield details.QuotaFailure(
            violations=[details.QuotaFailure.Violation(subject=subject, description=description)]
        )
    elif isinstance(error, errors.PreconditionError | errors.FencedError):
        subject = _cut(getattr(error, "subject", ""), _MAX_VALUE)
        yield details.PreconditionFailure(
            violations=[
                details.PreconditionFailure.Violation(type=error.reason, subject=subject, description=description)
            ]
        )
    elif isinstance(error, errors.UnavailableError):
        retry = details.RetryInfo()
        retry.retry_delay.FromMilliseconds(max(0, math.ceil(error.retry_after * 1000)))
        yield retry
    if request_id:
        yield details.RequestInfo(request_id=request_id)


def from_rpc_error(error: grpc.aio.AioRpcError) -> CloudClawError:
    """The domain error that a call's status stands for.

    Statuses that carry no details (from gRPC itself or from a proxy) are mapped by their code: a call that was
    cancelled from outside or ran out of time is `UnavailableError`, for its outcome is unknown.
    """
    found = _unpack(error)
    info = found.get(details.ErrorInfo)
    request = found.get(details.RequestInfo)
    result = _rebuild(error.code(), error.details() or "", found)
    if info is not None and info.domain == DOMAIN:
        result.reason = info.reason
        result.metadata = dict(info.metadata)
    if request is not None:
        result.metadata.setdefault("request_id", request.request_id)
    return result


def _rebuild(code: grpc.StatusCode, message: str, found: dict[type, Any]) -> CloudClawError:
    info = found.get(details.ErrorInfo)
    reason = info.reason if info is not None else code.name
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            bad = found.get(details.BadRequest)
            field = bad.field_violations[0].field if bad is not None and bad.field_violations else ""
            return errors.InvalidArgumentError(message, field=field, reason=reason)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return errors.QuotaExceededError(message, subject=_subject(found.get(details.QuotaFailure)), reason=reason)
        case grpc.StatusCode.FAILED_PRECONDITION if reason == errors.FencedError.default_reason:
            return errors.FencedError(message)
        case grpc.StatusCode.FAILED_PRECONDITION:
            subject = _subject(found.get(details.PreconditionFailure))
            return errors.PreconditionError(message, subject=subject, reason=reason)
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED | grpc.StatusCode.CANCELLED:
            retry = found.get(details.RetryInfo)
            after = retry.retry_delay.ToMilliseconds() / 1000 if retry is not None else 1.0
            return errors.UnavailableError(message, retry_after=after, reason=reason)
        case _:
            return _BY_CODE.get(code.name, CloudClawError)(message, reason=reason)


def _subject(failure: Any) -> str:
    return str(failure.violations[0].subject) if failure is not None and failure.violations else ""


def _unpack(error: grpc.aio.AioRpcError) -> dict[type, Any]:
    """The first detail of each kind that the status carries; nothing when it carries none that is well formed."""
    for key, value in error.trailing_metadata() or ():
        if key != DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            status = Status.FromString(value)
            return {kind: message for kind, message in map(_known, reversed(status.details)) if kind is not None}
        except DecodeError:
            # Not ours, then: a proxy's status still has its code and its text.
            return {}
    return {}


def _known(packed: AnyMessage) -> tuple[type | None, Any]:
    for kind in _KINDS:
        if packed.Is(kind.DESCRIPTOR):
            message = kind()
            packed.Unpack(message)
            return kind, message
    return None, None


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
