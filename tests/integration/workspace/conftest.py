"""A real etcd for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cloudclaw.objects.filesystem import FilesystemObjects
from tests.support.etcd_server import EtcdServer, running_etcd
from tests.support.kv import etcd_store
from tests.support.workspace_service import WorkspaceStack, workspace_service


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    yield from running_etcd()


@pytest.fixture
async def stack(etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[WorkspaceStack]:
    """The service on loopback over the real etcd and a folder."""
    async with etcd_store(etcd) as store:
        objects = FilesystemObjects(tmp_path / "objects")
        async with workspace_service(tmp_path / "service", store.kv, objects) as running:
            yield running
        await objects.close()
