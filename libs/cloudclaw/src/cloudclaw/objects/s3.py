"""Objects in a bucket of an S3 server, through the `minio` SDK in threads."""

from __future__ import annotations

import base64
import hashlib
import itertools
import secrets
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from threading import Lock
from typing import Final, ParamSpec, TypeVar

from minio.datatypes import Object

from cloudclaw.clock import Clock, SystemClock
from cloudclaw.errors import NotFoundError, UnavailableError
from cloudclaw.objects.names import check_object_name, check_prefix, check_range
from cloudclaw.objects.port import ObjectInfo
from cloudclaw.objects.s3_body import SHA256, Body
from cloudclaw.objects.s3_client import S3Client, S3Endpoint
from cloudclaw.objects.threads import Threads

P = ParamSpec("P")
R = TypeVar("R")

PART: Final = 8 * 1024 * 1024
"""Bytes of a part. S3 allows 10,000 parts, so a streamed object has at most 78 GiB."""

_PAGE: Final = 1000
_WRITER: Final = "claw-writer"
_TRIES: Final = 3


class S3Objects:
    """An `ObjectStore` in one bucket, created on first use. An object's bytes are the bucket's, unframed.

    Integrity: `put` and short streams keep the SHA-256 as metadata; longer streams are multi-part uploads
    with S3's own CRC-32 of the whole, which the server checks at the end. A whole read is compared with
    whichever there is, so what the network or a disk altered is `DataLossError`. A ranged read is checked
    for its length only: what needs more is content-addressed above this port.

    An upload that a crash leaves unfinished is invisible, but takes space: `abort_stale_uploads` ends it. MinIO lists
    none of them, and ends them by itself after a day.
    """

    def __init__(
        self,
        where: S3Endpoint,
        *,
        threads: int = 16,
        connect_timeout: float = 2.0,
        read_timeout: float = 20.0,
        clock: Clock | None = None,
    ) -> None:
        """Connects to nothing yet. Timeouts in seconds; a read's is from packet to packet."""
        self._clock = clock or SystemClock()
        self._client = S3Client(where, connections=threads, connect_timeout=connect_timeout, read_timeout=read_timeout)
        self._threads = Threads(threads, "objects-s3")
        self._bucket_is_there = False

    async def put(self, name: str, data: bytes, *, if_absent: bool = False) -> bool:
        check_object_name(name)
        # After a broken connection a put is sent again, and then finds its own first copy. The writer's
        # mark tells that from somebody else's.
        writer = secrets.token_hex(8)
        for _ in range(_TRIES):
            digest = await self._run(_sha256, data)
            metadata = {SHA256: digest, _WRITER: writer}
            if await self._run(self._client.put, name, data, metadata, if_absent=if_absent):
                return True
            try:
                found = await self._run(self._client.stat, name)
            except NotFoundError:
                continue  # deleted again, or its writer has not finished: ask once more
            return _metadata(found, _WRITER) == writer
        raise UnavailableError(f"object {name} is being written and deleted by others")

    async def put_stream(self, name: str, chunks: AsyncIterator[bytes]) -> int:
        check_object_name(name)
        buffer = bytearray()
        upload: _Upload | None = None
        try:
            async for chunk in chunks:
                buffer += chunk
                while len(buffer) >= PART:
                    if upload is None:
                        upload = _Upload(self._client, name)
                        await self._run(upload.begin)
                    part = bytes(memoryview(buffer)[:PART])
                    del buffer[:PART]
                    await self._run(upload.send, part)
            if upload is None:
                await self.put(name, bytes(buffer))
                return len(buffer)
            if buffer:
                await self._run(upload.send, bytes(buffer))
            await self._run(upload.complete)
            return upload.size
        except BaseException:
            if upload is not None:
                await self._threads.settle(upload.abort)
            raise

    async def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        check_object_name(name)
        check_range(offset, length)
        return await self._run(self._get, name, offset, length)

    def _get(self, name: str, offset: int, length: int | None) -> bytes:
        body = Body(self._client, name, offset, length)
        try:
            body.open()
            return b"".join(iter(body.read, b""))
        finally:
            body.close()

    async def stream(self, name: str) -> AsyncIterator[bytes]:
        check_object_name(name)
        body = Body(self._client, name, 0, None)
        try:
            await self._run(body.open)
            held = await self._run(body.read)
            # One chunk behind: the last is handed out only after the whole was checked.
            while held:
                following = await self._run(body.read)
                yield held
                held = following
        finally:
            await self._threads.settle(body.close)

    async def head(self, name: str) -> ObjectInfo:
        check_object_name(name)
        found = await self._run(self._client.stat, name)
        return _info(found, name)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        check_prefix(prefix)
        found = await self._run(self._client.list, prefix, start_after)
        while page := await self._run(self._page, found):
            for info in page:
                yield info

    def _page(self, found: Iterator[Object]) -> Sequence[ObjectInfo]:
        with self._client.errors("(listing)"):
            return [_info(item, item.object_name or "") for item in itertools.islice(found, _PAGE)]

    async def delete(self, name: str) -> None:
        check_object_name(name)
        await self._run(self._client.delete, name)

    async def abort_stale_uploads(self, prefix: str, older_than: float) -> int:
        """Give up multi-part uploads of objects below `prefix` that began more than `older_than` seconds ago, by the
        server's clock against this machine's; answers how many. Raises `UnavailableError`."""
        check_prefix(prefix)
        return await self._run(self._abort_stale, prefix, self._clock.wall() - older_than)

    def _abort_stale(self, prefix: str, before: float) -> int:
        stale = [(name, upload) for name, upload, begun in self._client.uploads(prefix) if begun < before]
        for name, upload in stale:
            self._client.abort(name, upload)
        return len(stale)

    async def check(self) -> None:
        """One request for the bucket. Raises `UnavailableError`, also when the bucket was deleted."""
        await self._run(self._client.require_bucket)

    async def close(self) -> None:
        await self._threads.close()
        self._client.close()

    async def _run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if not self._bucket_is_there:
            # Several first calls at once may each do this; it is idempotent.
            await self._threads.run(self._client.ensure_bucket)
            self._bucket_is_there = True
        return await self._threads.run(function, *args, **kwargs)


class _Upload:
    """One multi-part upload. All calls block; an `abort` waits for the call under way, and ends all."""

    def __init__(self, client: S3Client, name: str) -> None:
        self._client = client
        self._name = name
        self._lock = Lock()
        self._aborted = False
        self._id = ""
        self._parts: list[tuple[str, str]] = []
        self._crc = 0
        self.size = 0

    def begin(self) -> None:
        with self._lock:
            self._require_wanted()
            self._id = self._client.begin(self._name)

    def send(self, data: bytes) -> None:
        with self._lock:
            self._require_wanted()
            checksum = _crc32(zlib.crc32(data))
            self._crc = zlib.crc32(data, self._crc)
            self.size += len(data)
            etag = self._client.put_part(self._name, self._id, len(self._parts) + 1, data, checksum)
            self._parts.append((etag, checksum))

    def complete(self) -> None:
        with self._lock:
            self._require_wanted()
            whole = _crc32(self._crc)
            try:
                self._client.complete(self._name, self._id, self._parts, whole)
            except NotFoundError:
                # Sent twice, the second finds nothing left to complete. Only our bytes count as success.
                found = self._client.stat(self._name)
                if found.size != self.size or (found.metadata or {}).get("x-amz-checksum-crc32") != whole:
                    raise UnavailableError(f"the upload of object {self._name} was aborted") from None

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            if self._id:
                self._client.abort(self._name, self._id)

    def _require_wanted(self) -> None:
        if self._aborted:
            raise UnavailableError(f"writing object {self._name} was given up")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _crc32(value: int) -> str:
    return base64.b64encode(value.to_bytes(4, "big")).decode()


def _metadata(found: Object, key: str) -> str | None:
    value = (found.metadata or {}).get(f"x-amz-meta-{key}")
    return value if isinstance(value, str) else None


def _info(found: Object, name: str) -> ObjectInfo:
    return ObjectInfo(name, found.size or 0, found.last_modified.timestamp() if found.last_modified else 0.0)
