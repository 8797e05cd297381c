"""Statuses: what a foreign or hostile one becomes."""

from __future__ import annotations

import grpc
import pytest

from cloudclaw.errors import CloudClawError, NotFoundError, QuotaExceededError, UnavailableError
from cloudclaw.rpc.errors import DETAILS_KEY, from_rpc_error, to_wire


def rpc_error(code: grpc.StatusCode, message: str = "", trailers: object = ()) -> grpc.aio.AioRpcError:
    metadata = grpc.aio.Metadata(*trailers)  # type: ignore[misc]
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, message, None)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.CANCELLED, UnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, UnavailableError),
        (grpc.StatusCode.UNAVAILABLE, UnavailableError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, QuotaExceededError),
        (grpc.StatusCode.NOT_FOUND, NotFoundError),
        (grpc.StatusCode.UNKNOWN, CloudClawError),
        (grpc.StatusCode.INTERNAL, CloudClawError),
    ],
)
def test_a_status_without_details_is_mapped_by_its_code(code: grpc.StatusCode, expected: type[CloudClawError]) -> None:
    error = from_rpc_error(rpc_error(code, "from a proxy"))
    assert type(error) is expected
    assert (error.message, error.reason) == ("from a proxy", code.name)


@pytest.mark.parametrize("value", [b"", b"\xff\xff\xff", b"not protobuf at all"])
def test_broken_details_leave_code_and_text(value: bytes) -> None:
    error = from_rpc_error(rpc_error(grpc.StatusCode.NOT_FOUND, "gone", [(DETAILS_KEY, value)]))
    assert isinstance(error, NotFoundError)
    assert error.message == "gone"


def test_a_status_fits_into_headers_however_long_its_text() -> None:
    hostile = "x" * 1_000_000
    error = NotFoundError(hostile, metadata={str(i): hostile for i in range(1000)})
    wire = to_wire(error, "req-1")
    assert len(wire.message) + sum(len(value) for _, value in wire.trailers) < 8192
