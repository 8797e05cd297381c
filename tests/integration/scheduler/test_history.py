"""The history on a real etcd and files: leaders that change while tasks move, and walks across the border."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cloudclaw.coordination import keys
from cloudclaw.errors import UnavailableError
from cloudclaw.objects.filesystem import FilesystemObjects
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_scheduler.config import HistorySettings
from tests.support.etcd_server import EtcdServer
from tests.unit.scheduler.history_rig import archiver_of, canceled, walk
from tests.unit.scheduler.node import Node
from tests.unit.scheduler.plane import Plane, User, until

pytestmark = pytest.mark.etcd


class FlakyFiles(FilesystemObjects):
    """Puts of bundles fail while `failing` says so: before the bundle is there, or after."""

    failing = ""

    async def put(self, name: str, data: bytes, *, if_absent: bool = False) -> bool:
        bundle = name.startswith("history/")
        if bundle and self.failing == "before":
            raise UnavailableError("the object store is away")
        done = await super().put(name, data, if_absent=if_absent)
        if bundle and self.failing == "after":
            raise UnavailableError("the answer was lost")
        return done


@pytest.fixture
def objects(tmp_path: Path) -> FlakyFiles:
    return FlakyFiles(tmp_path / "objects")


@pytest_asyncio.fixture
async def replicas(etcd: EtcdServer, objects: FlakyFiles, tmp_path: Path) -> AsyncIterator[list[Plane]]:
    """Two replicas that keep ended tasks for a moment only; the first one leads."""
    kvs = [etcd.open(), etcd.open()]
    settings = HistorySettings(retention=0.0, batch_window=0.0)
    planes = [Plane(kv, objects, tmp_path, history=settings, election_ttl=2) for kv in kvs]
    await planes[0].start()
    await planes[1].start(leads=False)
    yield planes
    for plane in planes:
        await plane.stop()
    for kv in kvs:
        await kv.close()


def empty(plane: Plane) -> bool:
    return not plane.scheduler.mirror.state.tenants


async def test_a_task_moves_and_stays_readable_on_both_replicas(replicas: list[Plane]) -> None:
    leader, follower = replicas
    user = User(leader)
    node = await Node(leader).connect()
    request = pb.SubmitTaskRequest(spec=task_pb2.TaskSpec(argv=["echo", "out"]), request_id="r-1")
    task = (await user.stub.SubmitTask(request)).task.task_id
    assignment = await node.next()
    await node.write(assignment, 0, b"out\n", end=True)
    await node.ack(lambda ack: ack.durable_offset == 4)
    await node.finish(assignment, log_end=4, final_message="done")
    await until("it moved", lambda: empty(leader) and empty(follower))
    entry = await leader.kv.get(keys.request("acme", "r-1"))
    assert entry is not None
    assert entry.lease
    for plane in replicas:
        reader = User(plane)
        got = await reader.get(task)
        assert (got.state, list(got.spec.argv)) == (task_pb2.TASK_STATE_SUCCEEDED, ["echo", "out"])
        assert (await reader.result(task)).final_message == "done"
        assert await reader.log(task) == b"out\n"
        assert [t.task_id for page in await walk(reader) for t in page] == [task]
        again = await reader.stub.SubmitTask(request)
        assert (again.task.task_id, again.created) == (task, False)
    await node.disconnect()


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_leader_that_dies_at_a_bundle_loses_nothing(
    replicas: list[Plane], objects: FlakyFiles, when: str
) -> None:
    """Its tasks are archived by the next leader, and each is listed once."""
    leader, follower = replicas
    objects.failing = when
    tasks = await canceled(User(follower), 10)
    await until("it tried", lambda: not empty(leader))
    if when == "after":

        async def written() -> bool:
            return bool([info async for info in objects.list("history/")])

        await until("the bundle is there", written)
    await leader.stop()
    await until("the other leads", lambda: follower.scheduler.leader.term is not None)
    reader = User(follower)
    assert [t.task_id for page in await walk(reader, page_size=3) for t in page] == tasks[::-1]
    objects.failing = ""
    await until("all have moved", lambda: empty(follower), 60)
    assert [t.task_id for page in await walk(reader, page_size=3) for t in page] == tasks[::-1]
    for task in tasks:
        assert (await reader.get(task)).state == task_pb2.TASK_STATE_CANCELED
    await leader.start(leads=False)
    assert [t.task_id for page in await walk(User(leader), page_size=3) for t in page] == tasks[::-1]


async def test_walks_show_each_task_once_while_two_archivers_move_them(
    etcd: EtcdServer, objects: FlakyFiles, tmp_path: Path
) -> None:
    """Two at once, as when a leader does not know yet that it is none; three walkers at their own pace."""
    kv = etcd.open()
    plane = Plane(kv, objects, tmp_path)
    await plane.start()
    try:
        tasks = await canceled(User(plane), 60)
        mirror = plane.scheduler.mirror
        await mirror.caught_up()
        chance = random.Random(7)
        allowed = 0

        def held(tenant: str) -> int:
            ends = [revision for revision, _ in mirror.state.ended_after(tenant, 0)]
            return max([0, *ends[: max(0, allowed - (60 - len(ends)))]])

        archivers = [archiver_of(kv, objects, mirror, plane.clock, held=held) for _ in range(2)]

        async def move() -> None:
            nonlocal allowed
            while allowed < 60:
                allowed = min(60, allowed + chance.randint(1, 6))
                await asyncio.gather(*(each.sweep() for each in archivers))
                await asyncio.sleep(0)

        async def check(size: int) -> int:
            reader, walks = User(plane), 0
            while walks < 2 or not moving.done():
                assert [t.task_id for page in await walk(reader, page_size=size) for t in page] == tasks[::-1]
                walks += 1
            return walks

        moving = asyncio.create_task(move())
        assert all(await asyncio.gather(check(1), check(7), check(60)))
        await moving
        await until("all have moved", lambda: empty(plane))
        assert await check(10) == 2
    finally:
        await plane.stop()
        await kv.close()
