"""One root for every error that crosses a boundary, with the detail that clients act on.

`cloudclaw.rpc` translates these to `google.rpc.Status` and back, in one interceptor each way.
"""

from __future__ import annotations

from typing import ClassVar


class CloudClawError(Exception):
    """Root of all CloudClaw errors.

    Attributes:
        message: what went wrong and what to do next, for people.
        reason: `UPPER_SNAKE` identifier for programs (`google.rpc.ErrorInfo.reason`).
        metadata: small string facts (`ErrorInfo.metadata`).
    """

    code: ClassVar[str] = "INTERNAL"
    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, reason: str | None = None, metadata: dict[str, str] | None = None):
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = metadata or {}


class InvalidArgumentError(CloudClawError):
    """A field of the request is wrong; `field` names it (`BadRequest.FieldViolation.field`)."""

    code = "INVALID_ARGUMENT"
    default_reason = "INVALID_ARGUMENT"

    def __init__(self, message: str, *, field: str, reason: str | None = None):
        super().__init__(message, reason=reason)
        self.field = field


class NotFoundError(CloudClawError):
    """No such resource, or it belongs to another tenant: the two are not told apart."""

    code = "NOT_FOUND"
    default_reason = "NOT_FOUND"


class AlreadyExistsError(CloudClawError):
    """The name or request id is taken by something else."""

    code = "ALREADY_EXISTS"
    default_reason = "ALREADY_EXISTS"


class PreconditionError(CloudClawError):
    """The state does not allow it now (`PreconditionFailure`); `subject` names what is in the way."""

    code = "FAILED_PRECONDITION"
    default_reason = "FAILED_PRECONDITION"

    def __init__(self, message: str, *, subject: str = "", reason: str | None = None):
        super().__init__(message, reason=reason)
        self.subject = subject


class OutOfRangeError(CloudClawError):
    """An offset, revision or page token beyond what there is."""

    code = "OUT_OF_RANGE"
    default_reason = "OUT_OF_RANGE"


class QuotaExceededError(CloudClawError):
    """A limit of the tenant or of the cluster is reached (`QuotaFailure`)."""

    code = "RESOURCE_EXHAUSTED"
    default_reason = "QUOTA_EXCEEDED"

    def __init__(self, message: str, *, subject: str = "", reason: str | None = None):
        super().__init__(message, reason=reason)
        self.subject = subject


class UnavailableError(CloudClawError):
    """Try again after `retry_after` seconds (`RetryInfo`)."""

    code = "UNAVAILABLE"
    default_reason = "UNAVAILABLE"

    def __init__(self, message: str, *, retry_after: float = 1.0, reason: str | None = None):
        super().__init__(message, reason=reason)
        self.retry_after = retry_after


class UnauthenticatedError(CloudClawError):
    """No token, or one that does not verify."""

    code = "UNAUTHENTICATED"
    default_reason = "UNAUTHENTICATED"


class PermissionDeniedError(CloudClawError):
    """The caller is known and may not do this."""

    code = "PERMISSION_DENIED"
    default_reason = "PERMISSION_DENIED"


class AbortedError(CloudClawError):
    """A guarded transaction lost a race; reading again and retrying is safe."""

    code = "ABORTED"
    default_reason = "CONFLICT"


class FencedError(CloudClawError):
    """The caller's fencing token is no longer the attempt's: it lost its lease."""

    code = "FAILED_PRECONDITION"
    default_reason = "FENCED"


class DataLossError(CloudClawError):
    """Stored bytes are missing, truncated or do not match their digest; the message names them."""

    code = "DATA_LOSS"
    default_reason = "DATA_LOSS"


class UnimplementedError(CloudClawError):
    """Part of the API, and not served yet."""

    code = "UNIMPLEMENTED"
    default_reason = "UNIMPLEMENTED"
