"""The object store away, slow, failing, full and killed, beneath a whole stack that works on."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cloudclaw.errors import CloudClawError, PreconditionError, QuotaExceededError, UnavailableError
from cloudclaw.objects.s3 import S3Objects
from cloudclaw.objects.s3_client import S3Client, S3Endpoint
from cloudclaw.v1 import scheduler_pb2, task_pb2, workspace_pb2
from tests.support.minio_server import MinioServer
from tests.support.processes import eventually
from tests.support.stack import Stack, Tenant, command_of, now, seconds
from tests.support.troubled_s3 import AWAY, FULL, Request, Trouble, TroubledS3, away, every_failing, full, slow

pytestmark = pytest.mark.minio

RUNNING, SUCCEEDED, FAILED = task_pb2.TASK_STATE_RUNNING, task_pb2.TASK_STATE_SUCCEEDED, task_pb2.TASK_STATE_FAILED
MIB = 1 << 20

WORK = "mkdir -p out; i=0; while [ $i -lt {n} ]; do i=$((i+1)); echo line-$i | tee -a out/lines; sleep 0.05; done"


def lines(n: int) -> bytes:
    return b"".join(b"line-%d\n" % i for i in range(1, n + 1))


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    server = MinioServer(tmp_path_factory.mktemp("minio"))
    server.start()
    yield server
    server.stop()


_buckets = itertools.count(1)


class Site:
    """A stack's store: the real one, and the way to it, which has troubles."""

    def __init__(self, minio: MinioServer, s3: TroubledS3):
        self.minio = minio
        self.s3 = s3
        self.bucket = f"trouble-{next(_buckets)}"
        self.url = f"s3://{self.bucket}?endpoint={s3.address}&tls=false"

    def directly(self) -> S3Endpoint:
        """The bucket without the troubles."""
        return S3Endpoint(
            self.bucket,
            self.minio.endpoint,
            access_key=self.minio.access_key,
            secret_key=self.minio.secret_key,
            tls=False,
        )

    async def names(self, prefix: str) -> list[str]:
        store = S3Objects(self.directly())
        try:
            return [info.name async for info in store.list(prefix)]
        finally:
            await store.close()


@pytest.fixture
async def site(minio: MinioServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setenv("CLAW_S3_ACCESS_KEY", minio.access_key)
    monkeypatch.setenv("CLAW_S3_SECRET_KEY", minio.secret_key)
    async with TroubledS3(minio.endpoint) as s3:
        yield Site(minio, s3)


def in_workspace(name: str = "ws") -> task_pb2.WorkspaceSelection:
    return task_pb2.WorkspaceSelection(name=name)


async def workspace(tenant: Tenant, name: str = "ws") -> workspace_pb2.Workspace:
    return (await tenant.workspaces.GetWorkspace(workspace_pb2.GetWorkspaceRequest(name=name))).workspace


async def write(tenant: Tenant, name: str, path: str, data: bytes) -> None:
    async def messages() -> AsyncIterator[workspace_pb2.WriteFilesRequest]:
        yield workspace_pb2.WriteFilesRequest(header=workspace_pb2.WriteHeader(workspace=name))
        yield workspace_pb2.WriteFilesRequest(file=workspace_pb2.FileHeader(path=path))
        yield workspace_pb2.WriteFilesRequest(data=data)

    await tenant.workspaces.WriteFiles(messages())


async def artifact(tenant: Tenant, task_id: str, path: str) -> bytes:
    request = workspace_pb2.DownloadArtifactRequest(task_id=task_id, path=path)
    return b"".join([response.data async for response in tenant.workspaces.DownloadArtifact(request)])


async def waits_for_the_store(stack: Stack, task_id: str, node: str = "node-1") -> None:
    """Return once the node says that the task's attempt waits."""

    async def says() -> bool:
        return any(
            slot.task_id == task_id and "waiting for the object store" in slot.last_failure
            for slot in await stack.slots(node)
        )

    await eventually(f"{task_id} waits for the store", says, 30)


async def passed(moments: float) -> None:
    """An outage has a length: that is what the test is about."""
    began = now()
    await eventually(f"{moments} s have passed", lambda: now() - began > moments, moments + 5)


async def test_a_task_that_ends_while_the_store_is_away_succeeds_when_it_returns(tmp_path: Path, site: Site) -> None:
    async with Stack(tmp_path, nodes=1, slots=1, objects=site.url) as stack:
        tenant = stack.tenant("acme")
        await tenant.create_workspace("ws")
        task_id = await tenant.shell(
            WORK.format(n=80), workspace=in_workspace(), artifacts=["out/**"], checkpoint_interval=seconds(1.0)
        )
        await tenant.wait_output(task_id, b"line-30\n")
        site.s3.plan = away
        began = now()
        await tenant.wait_output(task_id, b"line-80\n")  # recent bytes need no store
        await waits_for_the_store(stack, task_id)
        assert (await tenant.get(task_id)).state == RUNNING
        assert (await workspace(tenant)).generation == 0
        await passed(8 - (now() - began))
        site.s3.plan = None
        task = await tenant.wait(task_id)
        assert (task.state, len(task.attempts)) == (SUCCEEDED, 1), task
        assert await tenant.log(task_id) == lines(80)
        assert await tenant.read_file("ws", "out/lines") == lines(80)
        assert await artifact(tenant, task_id, "out/lines") == lines(80)
        assert (await workspace(tenant)).generation == 1


async def test_what_needs_no_store_works_without_it_and_the_rest_says_why_not(tmp_path: Path, site: Site) -> None:
    async with Stack(tmp_path, nodes=1, slots=1, objects=site.url) as stack:
        tenant = stack.tenant("acme")
        await tenant.create_workspace("ws")
        await write(tenant, "ws", "kept", b"before")
        head = (await workspace(tenant)).head_snapshot_id
        running = await tenant.shell(WORK.format(n=4000))
        await tenant.wait_output(running, b"line-5\n")
        site.s3.plan = away
        queued = await tenant.shell("echo small")
        with pytest.raises(UnavailableError, match="object store"):
            await tenant.shell("echo large", env={"LARGE": "x" * 5000})
        live = scheduler_pb2.ListTasksRequest(states=[RUNNING, task_pb2.TASK_STATE_QUEUED])
        listed = await tenant.scheduler.ListTasks(live)
        assert {task.task_id for task in listed.tasks} == {running, queued}
        with pytest.raises(UnavailableError, match=r"archived tasks cannot be listed now.*object store"):
            await tenant.scheduler.ListTasks(scheduler_pb2.ListTasksRequest())
        assert (await tenant.get(queued)).state == task_pb2.TASK_STATE_QUEUED
        await tenant.wait_output(running, b"line-20\n")
        await tenant.scheduler.CancelTask(scheduler_pb2.CancelTaskRequest(task_id=queued))
        assert (await tenant.get(queued)).state == task_pb2.TASK_STATE_CANCELED
        with pytest.raises(UnavailableError, match="object store"):
            await write(tenant, "ws", "new", b"x")
        there = await workspace(tenant)
        assert (there.head_snapshot_id, there.generation, there.writer) == (head, 1, "")
        with pytest.raises(UnavailableError, match="object store"):
            await tenant.read_file("ws", "kept")
        # A cancel ends the processes at once; the end is recorded when its log is durable.
        await tenant.scheduler.CancelTask(scheduler_pb2.CancelTaskRequest(task_id=running))
        site.s3.plan = None
        assert (await tenant.wait(running)).state == task_pb2.TASK_STATE_CANCELED
        await write(tenant, "ws", "new", b"x")
        assert await tenant.read_file("ws", "kept") == b"before"
        again = await tenant.shell("echo large", env={"LARGE": "x" * 5000})
        assert (await tenant.wait(again)).state == SUCCEEDED


async def test_every_third_call_that_fails_costs_no_attempt_and_no_byte(tmp_path: Path, site: Site) -> None:
    async with Stack(tmp_path, nodes=2, slots=2, objects=site.url) as stack:
        tenant = stack.tenant("acme")
        names = ["ws-0", "ws-1", "ws-2"]
        for name in names:
            await tenant.create_workspace(name)
        site.s3.plan = every_failing(3)
        tasks = [
            await tenant.shell(
                WORK.format(n=30),
                workspace=in_workspace(name),
                artifacts=["out/**"],
                checkpoint_interval=seconds(1.0),
            )
            for name in names * 2
        ]
        for task_id in tasks:
            task = await tenant.wait(task_id)
            assert (task.state, len(task.attempts)) == (SUCCEEDED, 1), task
        assert site.s3.troubled > 20
        site.s3.plan = None
        for task_id in tasks:
            assert await tenant.log(task_id) == lines(30)
        for name in names:
            assert await tenant.read_file(name, "out/lines") == lines(30) * 2
            assert (await workspace(tenant, name)).generation == 2


async def test_a_slow_store_makes_ends_slow_and_loses_no_attempt(tmp_path: Path, site: Site) -> None:
    async with Stack(tmp_path, nodes=1, slots=2, objects=site.url) as stack:
        tenant = stack.tenant("acme")
        names = ["ws-0", "ws-1"]
        for name in names:
            await tenant.create_workspace(name)
        site.s3.plan = slow(0.3)
        tasks = [
            await tenant.shell(
                WORK.format(n=60),
                workspace=in_workspace(name),
                artifacts=["out/**"],
                checkpoint_interval=seconds(1.0),
            )
            for name in names
        ]
        for task_id in tasks:
            task = await tenant.wait(task_id)
            assert (task.state, len(task.attempts)) == (SUCCEEDED, 1), task
            assert await tenant.log(task_id) == lines(60)


async def test_a_full_store_refuses_writes_and_makes_ends_wait_for_room(tmp_path: Path, site: Site) -> None:
    async with Stack(tmp_path, nodes=1, slots=1, objects=site.url) as stack:
        tenant = stack.tenant("acme")
        await tenant.create_workspace("ws")
        await write(tenant, "ws", "kept", b"before")
        before = await workspace(tenant)
        site.s3.plan = full
        with pytest.raises(QuotaExceededError, match="no room") as caught:
            await write(tenant, "ws", "new", b"x")
        assert caught.value.reason == "OBJECT_STORE_FULL"
        there = await workspace(tenant)
        assert (there.head_snapshot_id, there.generation, there.writer) == (before.head_snapshot_id, 1, "")
        assert await tenant.read_file("ws", "kept") == b"before"
        task_id = await tenant.shell(WORK.format(n=20), workspace=in_workspace(), artifacts=["out/**"])
        await tenant.wait_output(task_id, b"line-20\n")
        await waits_for_the_store(stack, task_id)
        assert (await tenant.get(task_id)).state == RUNNING
        site.s3.plan = None
        task = await tenant.wait(task_id)
        assert (task.state, len(task.attempts)) == (SUCCEEDED, 1), task
        assert await tenant.log(task_id) == lines(20)
        assert (await workspace(tenant)).generation == 2


async def test_when_patience_with_a_full_store_is_over_the_task_says_so(tmp_path: Path, site: Site) -> None:
    name = "pool-manager@node-1"

    def no_room_for_packs(request: Request) -> Trouble | None:
        return FULL if request.stores and "/packs/" in request.path else None

    async with Stack(tmp_path, nodes=1, slots=1, objects=site.url, restart=False) as stack:
        environment = stack.environment_of(name) | {"CLAW_POOL_MANAGER_STORE_PATIENCE": "0.5"}
        argv = command_of(stack.pid(name))
        stack.kill(name)
        stack.respawn(name, argv=argv, environment=environment)
        tenant = stack.tenant("acme")
        await tenant.create_workspace("ws")
        site.s3.plan = no_room_for_packs
        task_id = await tenant.shell(
            WORK.format(n=3), workspace=in_workspace(), retry=task_pb2.RetryPolicy(max_attempts=1)
        )
        task = await tenant.wait(task_id)
        assert (task.state, task.attempts[0].reason) == (FAILED, task_pb2.END_REASON_SNAPSHOT_FAILED)
        assert "the object store was full for" in task.attempts[0].message
        assert await tenant.log(task_id) == lines(3)
        assert (await workspace(tenant)).generation == 0


async def test_a_store_killed_within_an_upload_shows_nothing_half_written(tmp_path: Path, site: Site) -> None:
    cut = asyncio.Event()

    def second_part(request: Request) -> Trouble | None:
        if cut.is_set():
            return AWAY
        if "partNumber=2" in request.path:
            cut.set()
            return Trouble(cut=MIB)
        return None

    async with Stack(tmp_path, nodes=1, slots=1, objects=site.url) as stack:
        tenant = stack.tenant("acme")
        await tenant.create_workspace("ws")
        site.s3.plan = second_part
        task_id = await tenant.shell(
            "head -c 20000000 /dev/urandom > big; sha256sum < big", workspace=in_workspace(), artifacts=["big"]
        )
        await asyncio.wait_for(cut.wait(), 30)
        await asyncio.to_thread(site.minio.kill)
        await waits_for_the_store(stack, task_id)
        await asyncio.to_thread(site.minio.start)
        assert await site.names("artifacts/") == []
        assert (await workspace(tenant)).generation == 0
        site.s3.plan = None
        task = await tenant.wait(task_id)
        assert (task.state, len(task.attempts)) == (SUCCEEDED, 1), task
        digest = (await tenant.log(task_id)).split()[0].decode()
        for data in (await artifact(tenant, task_id, "big"), await tenant.read_file("ws", "big")):
            assert hashlib.sha256(data).hexdigest() == digest
        [name] = await site.names("artifacts/")
        await _gives_up_uploads(site, name)
        assert await site.names("artifacts/") == [name]


async def _gives_up_uploads(site: Site, name: str) -> None:
    """What a round does: MinIO names the uploads of one object only, and drops those of others by itself."""
    client = S3Client(site.directly(), connections=1, connect_timeout=2, read_timeout=20)
    store = S3Objects(site.directly())
    try:
        left = await asyncio.to_thread(client.uploads, name)
        assert left, "the killed upload left something behind"
        assert await store.abort_stale_uploads(name, -3600.0) == len(left)
        assert await asyncio.to_thread(client.uploads, name) == []
    finally:
        await store.close()
        client.close()


async def test_a_leader_killed_while_the_store_is_away_is_followed_by_one_that_finishes(
    tmp_path: Path, site: Site
) -> None:
    async with Stack(tmp_path, nodes=1, slots=2, objects=site.url) as stack:
        tenant = stack.tenant("acme")
        await tenant.create_workspace("ws")
        kept = await tenant.shell(WORK.format(n=60), workspace=in_workspace())
        plain = await tenant.shell(WORK.format(n=100))
        for task_id in (kept, plain):
            await tenant.wait_output(task_id, b"line-20\n")
        site.s3.plan = away
        old = stack.kill("scheduler")
        await stack.wait_restarted("scheduler", old)
        await waits_for_the_store(stack, kept)

        async def answers() -> bool:
            with contextlib.suppress(CloudClawError):
                return (await tenant.get(plain)).state == RUNNING
            return False

        await eventually("the new leader answers without a store", answers)
        site.s3.plan = None
        for task_id, count in ((kept, 60), (plain, 100)):
            task = await tenant.wait(task_id)
            assert (task.state, len(task.attempts)) == (SUCCEEDED, 1), task
            assert await tenant.log(task_id) == lines(count)
        assert (await workspace(tenant)).generation == 1


async def test_a_checkpoint_on_demand_without_a_store_fails_and_the_task_runs_on(tmp_path: Path, site: Site) -> None:
    async with Stack(tmp_path, nodes=1, slots=1, objects=site.url) as stack:
        tenant = stack.tenant("acme")
        await tenant.create_workspace("ws")
        task_id = await tenant.shell(
            "echo begun > file; echo up; until [ -e stop ]; do sleep 0.1; [ -e file ] && echo tick; done",
            workspace=in_workspace(),
        )
        await tenant.wait_output(task_id, b"up\n")
        request = scheduler_pb2.CheckpointTaskRequest(task_id=task_id)
        for plan, words in ((away, "object store unreachable"), (full, "no room")):
            site.s3.plan = plan
            with pytest.raises(PreconditionError, match=words) as caught:
                await tenant.scheduler.CheckpointTask(request)
            assert caught.value.reason == "CHECKPOINT_REFUSED"
        assert (await tenant.get(task_id)).state == RUNNING
        site.s3.plan = None
        answer = await tenant.scheduler.CheckpointTask(request)
        task = await tenant.get(task_id)
        assert (task.state, task.checkpoint.snapshot_id) == (RUNNING, answer.checkpoint.snapshot_id)
        assert len(task.attempts) == 1
        await tenant.scheduler.CancelTask(scheduler_pb2.CancelTaskRequest(task_id=task_id))
        await tenant.wait(task_id)
