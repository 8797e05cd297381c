"""Reading one object from S3: resumed where the connection broke, and compared with its checksum."""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from threading import Lock
from typing import Final

from urllib3.exceptions import HTTPError, IncompleteRead
from urllib3.response import BaseHTTPResponse

from cloudclaw.errors import DataLossError, OutOfRangeError, UnavailableError
from cloudclaw.objects.s3_client import S3Client, cause_of

SHA256: Final = "claw-sha256"
"""The metadata key that holds the hex SHA-256 of a whole object."""

_CHUNK: Final = 1024 * 1024
_RESUMES: Final = 2
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Body:
    """The bytes of one object from `offset`, at most `length` of them (all the rest for None).

    `open`, then `read` until it answers `b""`, then `close`. All block, and may be called from any thread;
    a `close` from a caller that was cancelled waits for the call under way.
    """

    def __init__(self, client: S3Client, name: str, offset: int, length: int | None) -> None:
        self._client = client
        self._name = name
        self._start = offset
        self._position = offset
        self._length = length
        self._end = offset
        self._etag = ""
        self._sha256: str | None = None
        self._crc32: str | None = None
        self._hash = hashlib.sha256()
        self._crc = 0
        self._resumes = 0
        self._response: BaseHTTPResponse | None = None
        self._lock = Lock()
        self._closed = False

    def open(self) -> None:
        """Send the request. Raises `NotFoundError`, `OutOfRangeError`, `UnavailableError`."""
        with self._lock:
            self._require_open()
            if self._start == 0 and self._length is None:
                self._open_whole()
            elif self._length == 0:
                self._require_within()
            else:
                self._open_range()

    def read(self) -> bytes:
        """At most 1 MiB; `b""` at the end, once the whole was checked.

        Raises `DataLossError` and `UnavailableError`.
        """
        with self._lock:
            self._require_open()
            while self._position < self._end:
                if chunk := self._read_some():
                    self._position += len(chunk)
                    if self._sha256 is not None:
                        self._hash.update(chunk)
                    elif self._crc32 is not None:
                        self._crc = zlib.crc32(chunk, self._crc)
                    return chunk
            self._check()
            return b""

    def close(self) -> None:
        """Give the connection back, or close it when the body was not read to its end. Idempotent."""
        with self._lock:
            self._closed = True
            self._release()

    def _open_whole(self) -> None:
        response = self._client.get(self._name, {"x-amz-checksum-mode": "ENABLED"})
        self._response = response
        self._end = int(response.headers.get("content-length", "-1"))
        if self._end < 0:
            raise UnavailableError(f"the server did not say how long object {self._name} is")
        self._etag = response.headers.get("etag", "")
        self._sha256 = response.headers.get(f"x-amz-meta-{SHA256}")
        # Of a part-wise checksum ("…-3") the client cannot check anything.
        checksum = response.headers.get("x-amz-checksum-crc32", "")
        self._crc32 = checksum if checksum and "-" not in checksum else None

    def _open_range(self) -> None:
        last = "" if self._length is None else str(self._start + self._length - 1)
        try:
            response = self._client.get(self._name, {"Range": f"bytes={self._start}-{last}"})
        except OutOfRangeError:
            # S3 refuses every range that holds no byte, also the one that begins just at the end.
            self._require_within()
            return
        self._response = response
        found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if found is None or int(found[1]) != self._start:
            raise UnavailableError(f"the server does not serve ranges of object {self._name}")
        size = int(found[3])
        self._end = size if self._length is None else min(size, self._start + self._length)
        if int(found[2]) + 1 != self._end:
            raise self._short()
        self._etag = response.headers.get("etag", "")

    def _require_within(self) -> None:
        size = self._client.stat(self._name).size or 0
        if self._start > size:
            raise OutOfRangeError(f"object {self._name} has {size} bytes; offset {self._start} is beyond its end")

    def _read_some(self) -> bytes:
        if self._response is None:
            raise UnavailableError(f"object {self._name} is not open")
        try:
            chunk = self._response.read(min(_CHUNK, self._end - self._position), decode_content=False)
        except HTTPError as error:
            self._resume(error)
            return b""
        if not chunk:
            self._resume(None)
        return chunk

    def _resume(self, cause: HTTPError | None) -> None:
        """Ask for the rest. A body that ends early again and again is lost; a server that is away is not."""
        self._release()
        if self._resumes == _RESUMES:
            if cause is None or any(isinstance(part, IncompleteRead) for part in (cause, *cause.args)):
                raise self._short() from cause
            raise UnavailableError(f"object store unreachable ({self._name}): {cause_of(cause)}") from cause
        self._resumes += 1
        headers = {"Range": f"bytes={self._position}-{self._end - 1}"}
        if self._etag:
            headers["If-Match"] = self._etag  # the same object, not what replaced it meanwhile
        try:
            self._response = self._client.get(self._name, headers)
        except OutOfRangeError as error:
            raise self._short() from error
        if not self._response.headers.get("content-range", "").startswith(f"bytes {self._position}-"):
            raise UnavailableError(f"the server does not serve ranges of object {self._name}")

    def _check(self) -> None:
        if self._sha256 is not None:
            intact = self._hash.hexdigest() == self._sha256
        elif self._crc32 is not None:
            intact = base64.b64encode(self._crc.to_bytes(4, "big")).decode() == self._crc32
        else:
            return
        if not intact:
            raise DataLossError(f"object {self._name} does not match its checksum", metadata={"object": self._name})

    def _short(self) -> DataLossError:
        return DataLossError(
            f"object {self._name} is truncated: it ends at byte {self._position} of {self._end}",
            metadata={"object": self._name},
        )

    def _release(self) -> None:
        response, self._response = self._response, None
        if response is None:
            return
        if self._position < self._end:
            response.close()
        response.release_conn()

    def _require_open(self) -> None:
        if self._closed:
            raise UnavailableError(f"reading object {self._name} was given up")
