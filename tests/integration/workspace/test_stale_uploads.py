"""Uploads that a crash left half-way: they take space that no listing shows, until a round gives them up."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudclaw.objects.filesystem import FilesystemObjects
from cloudclaw.objects.s3 import S3Objects
from cloudclaw.objects.s3_client import S3Client, S3Endpoint
from tests.support.minio_server import MinioServer
from tests.support.versity_server import VersityServer


def endpoint(server: MinioServer | VersityServer) -> S3Endpoint:
    return S3Endpoint(
        bucket="uploads",
        endpoint=server.endpoint,
        access_key=server.access_key,
        secret_key=server.secret_key,
        tls=False,
    )


@pytest.fixture
def versity(tmp_path: Path) -> Iterator[VersityServer]:
    server = VersityServer(tmp_path)
    server.start()
    yield server
    server.stop()


async def test_old_uploads_are_given_up_and_young_ones_stay(versity: VersityServer) -> None:
    objects = S3Objects(endpoint(versity))
    client = S3Client(endpoint(versity), connections=2, connect_timeout=2, read_timeout=20)
    await objects.put("artifacts/acme/whole", b"1")
    for name in ("artifacts/acme/task-1/u1/a", "artifacts/acme/task-1/u1/b", "tenants/acme/packs/u2/x"):
        upload = await asyncio.to_thread(client.begin, name)
        assert upload
    assert await objects.abort_stale_uploads("", 3600.0) == 0
    assert len(await asyncio.to_thread(client.uploads, "")) == 3
    assert await objects.abort_stale_uploads("artifacts/", -3600.0) == 2
    assert [name for name, _, _ in await asyncio.to_thread(client.uploads, "")] == ["tenants/acme/packs/u2/x"]
    assert await objects.abort_stale_uploads("", -3600.0) == 1
    assert await asyncio.to_thread(client.uploads, "") == []
    assert await objects.get("artifacts/acme/whole") == b"1"
    await objects.close()
    client.close()


@pytest.mark.minio
async def test_minio_lists_none_and_that_is_no_error(tmp_path: Path) -> None:
    async with MinioServer(tmp_path) as server:
        objects = S3Objects(endpoint(server))
        client = S3Client(endpoint(server), connections=2, connect_timeout=2, read_timeout=20)
        await objects.put("artifacts/acme/whole", b"1")
        await asyncio.to_thread(client.begin, "artifacts/acme/task-1/u1/a")
        await objects.abort_stale_uploads("", -3600.0)
        assert await objects.get("artifacts/acme/whole") == b"1"
        await objects.close()
        client.close()


async def test_temporary_files_without_a_writer_are_removed(tmp_path: Path) -> None:
    objects = FilesystemObjects(tmp_path)
    dead, alive = tmp_path / "tmp" / "dead", tmp_path / "tmp" / "alive"
    for path in (dead, alive):
        path.write_bytes(b"half")
    writer = os.open(alive, os.O_WRONLY)
    fcntl.flock(writer, fcntl.LOCK_EX)
    assert await objects.abort_stale_uploads("", 3600.0) == 1
    assert not dead.exists()
    assert alive.exists()
    os.close(writer)
    await objects.close()
