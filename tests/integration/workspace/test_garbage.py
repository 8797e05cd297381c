"""Garbage collection beside users at work, over a real etcd and real object stores."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cloudclaw.coordination.transactions import Transactions
from cloudclaw.errors import AbortedError, NotFoundError, PreconditionError
from cloudclaw.objects.filesystem import FilesystemObjects
from cloudclaw.objects.port import ObjectStore
from cloudclaw.objects.s3 import S3Objects
from cloudclaw.objects.s3_client import S3Endpoint
from cloudclaw.v1 import workspace_pb2 as pb
from tests.support.etcd_server import EtcdServer
from tests.support.kv import etcd_store
from tests.support.minio_server import MinioServer
from tests.support.workspace_service import User, WorkspaceStack, workspace_service

pytestmark = pytest.mark.etcd

WITHIN = 100.0
WRITERS = 20
FORKED = 3
ROUNDS = 8


@pytest.fixture(params=["filesystem", pytest.param("minio", marks=pytest.mark.minio)])
async def objects(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    if request.param == "filesystem":
        folder = FilesystemObjects(tmp_path / "objects")
        yield folder
        await folder.close()
        return
    async with MinioServer(tmp_path / "minio") as server:
        bucket = S3Objects(
            S3Endpoint(
                bucket="garbage",
                endpoint=server.endpoint,
                access_key=server.access_key,
                secret_key=server.secret_key,
                tls=False,
            )
        )
        yield bucket
        await bucket.close()


@pytest.fixture
async def busy(etcd: EtcdServer, objects: ObjectStore, tmp_path: Path) -> AsyncIterator[WorkspaceStack]:
    """The service, without any grace: what a round sees unreferenced for the second time goes."""
    async with (
        etcd_store(etcd) as store,
        workspace_service(tmp_path / "service", store.kv, objects, grace=0.0) as running,
    ):
        yield running


async def work(user: User, number: int, enough: Callable[[], bool]) -> list[str]:
    """Write a workspace until there were rounds enough, restore in it, and fork it; answers the workspaces that there
    are then."""
    name = f"ws-{number}"
    await user.stub.CreateWorkspace(pb.CreateWorkspaceRequest(name=name, retention=pb.Retention(keep_last=1)))
    made = [name]
    first = ""
    for turn in itertools.count():
        if turn >= FORKED and enough():
            break
        written = await user.write(name, {"turn": b"%d" % turn, f"f{turn % 9}": b"%d-%d" % (number, turn % 9)})
        if turn % 3 == 0:
            first = written.snapshot_id
        if turn >= FORKED:
            continue
        # The older snapshot may be gone by now, or go in this moment; then there is no fork, never half of one.
        for source in (first, ""):
            fork = f"fork-{number}-{turn}-{'old' if source else 'head'}"
            try:
                await user.stub.ForkWorkspace(pb.ForkWorkspaceRequest(source=name, snapshot_id=source, name=fork))
            except NotFoundError:
                assert source
                continue
            made.append(fork)
    with contextlib.suppress(NotFoundError):
        await user.stub.RestoreSnapshot(pb.RestoreSnapshotRequest(workspace=name, snapshot_id=first))
    return made


async def test_rounds_beside_writes_forks_and_restores_lose_nothing(busy: WorkspaceStack) -> None:
    user = busy.user()
    done = asyncio.Event()
    counts = {"rounds": 0, "removed": 0, "snapshots": 0}

    async def collect() -> None:
        while not done.is_set():
            for report in await busy.rounds.collect("", dry_run=False):
                counts["removed"] += report.removed
                counts["snapshots"] += report.snapshots
            counts["rounds"] += 1

    async with asyncio.timeout(WITHIN), asyncio.TaskGroup() as group:
        group.create_task(collect())
        workers = [
            group.create_task(work(user, number, lambda: counts["rounds"] >= ROUNDS)) for number in range(WRITERS)
        ]
        for worker in workers:
            await worker
        done.set()
    assert counts["rounds"] >= ROUNDS
    assert counts["removed"] > 0
    assert counts["snapshots"] > 0
    names = list(itertools.chain.from_iterable(worker.result() for worker in workers))
    assert len(names) > 2 * WRITERS
    for name in names:
        contents = await user.contents(name)
        for file, content in contents.items():
            if file == "turn":
                assert content.isdigit()
            else:
                assert content == b"%d-%d" % (int(name.split("-")[1]), int(file[1:]))
    # And when it is quiet nothing is left but what somebody can still read.
    for _ in range(3):
        reports = await busy.rounds.collect("acme", dry_run=False)
    assert (reports[0].removed, reports[0].waiting) == (0, 0)
    manifests = {
        f"tenants/acme/manifests/{pointer.uid}/{pointer.manifest}"
        for pointer in (await Transactions(busy.kv).roots("acme")).pointers
    }
    assert {info.name async for info in busy.objects.list("tenants/acme/manifests/")} == manifests


async def test_deleting_a_tenant_beside_its_users_leaves_nothing(busy: WorkspaceStack) -> None:
    other = busy.user("acme-2")
    await other.create("ws")
    await other.write("ws", {"a": b"1"})
    operator = busy.user(role="operator")
    workers: list[asyncio.Task[object]] = []

    async def keep_writing(number: int) -> None:
        user = busy.user()
        for turn in itertools.count():
            try:
                await user.write(f"ws-{number}", {"turn": b"%d" % turn})
            except (NotFoundError, PreconditionError):
                return
            except AbortedError:
                continue

    async with asyncio.timeout(WITHIN), asyncio.TaskGroup() as group:
        for number in range(4):
            await busy.user().create(f"ws-{number}")
            workers.append(group.create_task(keep_writing(number)))
        refused = 0
        while True:
            try:
                gone = await operator.stub.DeleteTenant(pb.DeleteTenantRequest(tenant="acme"))
                break
            except PreconditionError as error:
                assert error.reason == "TENANT_BUSY"  # noqa: PT017
                refused += 1
    assert gone.keys_removed > 4
    assert {entry.key for entry in (await busy.kv.range("")).entries if "/acme/" in entry.key} == set()
    assert not await Transactions(busy.kv).buried("acme")
    assert {info.name async for info in busy.objects.list("tenants/acme/")} == set()
    assert await other.contents("ws") == {"a": b"1"}
