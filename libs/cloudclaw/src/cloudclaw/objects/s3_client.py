"""The S3 calls that `S3Objects` needs, blocking, through the `minio` SDK, with the port's errors.

Conditional and multi-part puts go through the SDK's own request methods (`_put_object` and its siblings):
its public `put_object` neither sends `If-None-Match` nor takes a checksum of the whole. The version is
pinned by the lock file, and the contract suite runs over a real server.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element, SubElement, tostring

import urllib3
from minio import Minio
from minio.datatypes import Object
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.response import BaseHTTPResponse

from cloudclaw.errors import (
    CloudClawError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    QuotaExceededError,
    UnavailableError,
)

_FULL: Final = {
    "XMinioStorageFull",
    "XMinioBackendDown.StorageFull",
    "XMinioAdminBucketQuotaExceeded",
    "QuotaExceeded",
    "InsufficientStorage",
}
_CONNECTION: Final = re.compile(r"^(HTTPS?Connection(Pool)?\([^)]*\)|<[^>]*>): ")
"""How urllib3 begins its messages."""
_MISSING: Final = {"NoSuchKey", "NoSuchVersion", "NoSuchUpload"}


@dataclass(frozen=True, slots=True)
class S3Endpoint:
    """Where a bucket is, and who asks.

    Attributes:
        bucket: its name; created on first use when it is absent.
        endpoint: `host:port`.
        region: as the server calls it.
        access_key, secret_key: both or neither (anonymous). Nothing is read from the environment.
        tls: whether to speak HTTPS.
        ca_file: PEM file of the authorities to trust instead of the system's.
        cert_file, key_file: PEM files of a client certificate, where the server asks for one.
    """

    bucket: str
    endpoint: str
    region: str = "us-east-1"
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    tls: bool = True
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


class S3Client:
    """One bucket of one server. Thread-safe; every method blocks and raises the port's errors.

    Making one reads the certificates: `InvalidArgumentError(field="objects")` when they cannot be used.
    """

    def __init__(self, where: S3Endpoint, *, connections: int, connect_timeout: float, read_timeout: float):
        self._bucket = where.bucket
        self._pool = urllib3.PoolManager(
            maxsize=connections,
            timeout=urllib3.Timeout(connect=connect_timeout, read=read_timeout),
            # A kept connection that the server closed shows on its next use, so one more try; a server
            # that is away is reported within seconds, and waiting longer is the caller's decision.
            retries=urllib3.Retry(total=2, connect=1, read=1, status=1, redirect=0, backoff_factor=0.1,
                                  status_forcelist=(502, 503, 504), raise_on_status=False,
                                  allowed_methods=None),
            ssl_context=_ssl_context(where) if where.tls else None,
        )  # fmt: skip
        self._minio = Minio(
            where.endpoint,
            access_key=where.access_key,
            secret_key=where.secret_key,
            secure=where.tls,
            region=where.region,
            http_client=self._pool,
        )
        self._minio.disable_virtual_style_endpoint()  # type: ignore[no-untyped-call]

    def ensure_bucket(self) -> None:
        """Create the bucket where it is absent."""
        with self.errors(self._bucket):
            if self._minio.bucket_exists(self._bucket):
                return
            try:
                self._minio.make_bucket(self._bucket)
            except S3Error as error:
                if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise

    def require_bucket(self) -> None:
        """Raises `UnavailableError` when the bucket cannot be reached or does not exist."""
        with self.errors(self._bucket):
            if not self._minio.bucket_exists(self._bucket):
                raise UnavailableError(f"the bucket {self._bucket} does not exist; restart to create it")

    def put(self, name: str, data: bytes, metadata: Mapping[str, str], *, if_absent: bool) -> bool:
        """Store an object; False when `if_absent` is set and there is one."""
        headers = {f"x-amz-meta-{key}": value for key, value in metadata.items()}
        if if_absent:
            headers["If-None-Match"] = "*"
        with self.errors(name):
            try:
                self._minio._put_object(self._bucket, name, data, dict(headers))
            except S3Error as error:
                # 409 is AWS's answer when another conditional put is under way.
                if error.code in ("PreconditionFailed", "ConditionalRequestConflict"):
                    return False
                raise
        return True

    def begin(self, name: str) -> str:
        """Start a multi-part upload with a CRC-32 over the whole; answers its id."""
        headers: dict[str, str | list[str] | tuple[str]] = {
            "x-amz-checksum-algorithm": "CRC32",
            "x-amz-checksum-type": "FULL_OBJECT",
        }
        with self.errors(name):
            return self._minio._create_multipart_upload(self._bucket, name, headers)

    def put_part(self, name: str, upload: str, number: int, data: bytes, crc32: str) -> str:
        """Upload one part (from 1; 5 MiB or more but for the last); answers its ETag."""
        with self.errors(name):
            headers: dict[str, str | list[str] | tuple[str]] = {"x-amz-checksum-crc32": crc32}
            return self._minio._upload_part(self._bucket, name, data, headers, upload, number)

    def complete(self, name: str, upload: str, parts: Sequence[tuple[str, str]], crc32: str) -> None:
        """Make the uploaded parts (ETag and CRC-32 of each) the object; the server checks the whole's CRC-32."""
        body = Element("CompleteMultipartUpload", xmlns="http://s3.amazonaws.com/doc/2006-03-01/")
        for number, (etag, checksum) in enumerate(parts, start=1):
            part = SubElement(body, "Part")
            SubElement(part, "PartNumber").text = str(number)
            SubElement(part, "ETag").text = f'"{etag}"'
            SubElement(part, "ChecksumCRC32").text = checksum
        with self.errors(name):
            response = self._minio._execute(
                "POST",
                self._bucket,
                name,
                body=tostring(body),
                headers={
                    "Content-Type": "application/xml",
                    "x-amz-checksum-crc32": crc32,
                    "x-amz-checksum-type": "FULL_OBJECT",
                },
                query_params={"uploadId": upload},
            )
            # S3 may say 200 first and find out later that it failed.
            if b"<Error>" in response.data:
                raise UnavailableError(f"object {name} was not completed: {response.data[:300]!r}")

    def abort(self, name: str, upload: str) -> None:
        """Give an upload up; one that is not there any more is no error."""
        with contextlib.suppress(NotFoundError), self.errors(name):
            self._minio._abort_multipart_upload(self._bucket, name, upload)

    def uploads(self, prefix: str) -> list[tuple[str, str, float]]:
        """(name, upload, begun) of the unfinished uploads of objects below `prefix`; `begun` in seconds since the
        epoch, by the server's clock. None where the server does not list them (MinIO: for a whole name only)."""
        found: list[tuple[str, str, float]] = []
        marker: str | None = None
        with self.errors("(uploads)"):
            while True:
                try:
                    page = self._minio._list_multipart_uploads(self._bucket, prefix=prefix, key_marker=marker)
                except S3Error as error:
                    if error.code == "NotImplemented":
                        return found
                    raise
                found += [
                    (upload.object_name, upload.upload_id, upload.initiated_time.timestamp())
                    for upload in page.uploads
                    if upload.object_name and upload.upload_id and upload.initiated_time is not None
                ]
                # Of an object with uploads on both sides of a page's end the rest is found the next time.
                if not page.is_truncated or not page.next_key_marker or page.next_key_marker == marker:
                    return found
                marker = page.next_key_marker

    def get(self, name: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        """The open response; its caller reads and closes it. Raises also `OutOfRangeError`."""
        with self.errors(name):
            return self._minio.get_object(self._bucket, name, request_headers=dict(headers))

    def stat(self, name: str) -> Object:
        """Size, time and metadata."""
        with self.errors(name):
            return self._minio.stat_object(self._bucket, name, extra_headers={"x-amz-checksum-mode": "ENABLED"})

    def list(self, prefix: str, start_after: str) -> Iterator[Object]:
        """By name. Each step may block, and must be taken within `errors`."""
        found: Iterator[Object] = self._minio.list_objects(
            self._bucket, prefix, recursive=True, start_after=start_after or None
        )
        return found

    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is no error."""
        with contextlib.suppress(NotFoundError), self.errors(name):
            self._minio.remove_object(self._bucket, name)

    def close(self) -> None:
        """Close the connections that no call uses."""
        self._pool.clear()

    @contextlib.contextmanager
    def errors(self, name: str) -> Iterator[None]:
        """Turn what the SDK and its transport raise into the port's errors."""
        try:
            yield
        except S3Error as error:
            raise _from_s3(error, name) from error
        except (ServerError, InvalidResponseError) as error:
            raise UnavailableError(f"object {name}: {error}") from error
        except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
            raise UnavailableError(f"object store unreachable ({name}): {cause_of(error)}") from error


def cause_of(error: BaseException) -> str:
    """What went wrong, without the server's address and the request: tenants read this."""
    while isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None:
        error = error.reason
    return _CONNECTION.sub("", str(error))


def _from_s3(error: S3Error, name: str) -> CloudClawError:
    code = error.code or ""
    if code in _MISSING:
        return NotFoundError(f"no object {name}")
    if code == "InvalidRange":
        return OutOfRangeError(f"object {name} ends before the offset asked for")
    if code in _FULL or error.response.status == 507:
        return QuotaExceededError(
            f"no room for object {name}: {error.message}", subject="object-store", reason="OBJECT_STORE_FULL"
        )
    if error.response.status in (401, 403):
        return UnavailableError(
            f"the object store refuses this client ({code}: {error.message}); check its access key, secret key"
            " and clock",
            reason="OBJECT_STORE_DENIED",
            retry_after=30.0,
        )
    return UnavailableError(f"object {name}: {code}: {error.message}")


def _ssl_context(where: S3Endpoint) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=where.ca_file)
        if where.cert_file is not None:
            context.load_cert_chain(where.cert_file, where.key_file)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(path) for path in (where.ca_file, where.cert_file, where.key_file) if path)
        raise InvalidArgumentError(f"cannot use the certificates {files}: {error}", field="objects") from error
    return context
