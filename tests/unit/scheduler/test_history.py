"""Archived tasks through the API: found, listed and tailed like live ones, on every replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cloudclaw.clock import SystemClock
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.errors import AlreadyExistsError, DataLossError, NotFoundError, PreconditionError, UnavailableError
from cloudclaw.objects.port import ObjectInfo
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_scheduler.app import listing
from cloudclaw_scheduler.config import HistorySettings
from tests.unit.scheduler.failing import FailingObjects
from tests.unit.scheduler.history_rig import archive, archiver_of, canceled, walk
from tests.unit.scheduler.node import Node
from tests.unit.scheduler.plane import Plane, User, until

CANCELED, SUCCEEDED = task_pb2.TASK_STATE_CANCELED, task_pb2.TASK_STATE_SUCCEEDED


async def run(plane: Plane, user: User, output: bytes = b"out\n", **spec: Any) -> str:
    """A task that succeeds."""
    node = await Node(plane).connect()
    task = await user.submit("echo", "out", **spec)
    assignment = await node.next()
    await node.write(assignment, 0, output, end=True)
    await node.ack(lambda ack: ack.durable_offset == len(output))
    await node.finish(assignment, log_end=len(output), final_message="well done")
    await node.disconnect()
    return task


async def next_millisecond(plane: Plane) -> None:
    """Creation times are whole milliseconds."""
    now = plane.clock.wall()
    await until("the next millisecond", lambda: plane.clock.wall() > now + 0.002)


async def test_an_archived_task_answers_as_before(plane: Plane, user: User, another: Callable[[], Plane]) -> None:
    task = await run(plane, user, labels={"a": "b"})
    live = (await user.get(task), await user.result(task), await user.log(task))
    explained = await user.stub.ExplainTask(pb.ExplainTaskRequest(task_id=task))
    await archive(plane)
    assert plane.scheduler.mirror.state.task("acme", task) is None
    other = another()
    await other.start(leads=False)
    assert not live[0].archived
    live[0].archived = explained.task.archived = True
    for reader in (user, User(other)):
        assert (await reader.get(task), await reader.result(task), await reader.log(task)) == live
        assert await reader.log(task, offset=2) == b"t\n"
        assert await reader.log(task, follow=True) == b"out\n"
        assert await reader.stub.ExplainTask(pb.ExplainTaskRequest(task_id=task)) == explained
        assert await reader.cancel(task) == live[0]
        [listed] = (await reader.stub.ListTasks(pb.ListTasksRequest())).tasks
        assert (listed.task_id, listed.archived) == (task, True)
        assert not listed.HasField("spec")
        with pytest.raises(PreconditionError) as refused:
            await reader.stub.CheckpointTask(pb.CheckpointTaskRequest(task_id=task))
        assert refused.value.reason == "TASK_NOT_RUNNING"


async def test_a_spec_and_a_result_that_are_objects_are_still_there(plane: Plane, user: User) -> None:
    task = await run(plane, user, prompt="p" * 8000, runtime="command")
    await archive(plane)
    assert (await user.get(task)).spec.prompt == "p" * 8000
    assert (await user.result(task)).final_message == "well done"


async def test_other_tenants_do_not_find_it(plane: Plane, user: User) -> None:
    [task] = await canceled(user, 1)
    await archive(plane)
    stranger = User(plane, "globex")
    for call in (stranger.get(task), stranger.result(task), stranger.cancel(task), stranger.log(task)):
        with pytest.raises(NotFoundError):
            await call
    assert not (await stranger.stub.ListTasks(pb.ListTasksRequest())).tasks


async def test_a_task_is_found_the_moment_it_is_archived(plane: Plane, user: User) -> None:
    """However lately the names of the bundles were listed."""
    tasks = await canceled(user, 20)
    for count in range(20):
        await archive(plane, leave=19 - count)
        assert (await user.get(tasks[count])).state == CANCELED
        listed = [t.task_id for page in await walk(user) for t in page]
        assert sorted(listed) == sorted(tasks)


async def test_a_resubmit_answers_the_archived_task(plane: Plane, user: User) -> None:
    spec = task_pb2.TaskSpec(argv=["true"])
    request = pb.SubmitTaskRequest(spec=spec, request_id="once")
    task = (await user.stub.SubmitTask(request)).task.task_id
    await user.cancel(task)
    await archive(plane)
    again = await user.stub.SubmitTask(request)
    assert (again.task.task_id, again.task.state, again.created) == (task, CANCELED, False)
    with pytest.raises(AlreadyExistsError):
        await user.stub.SubmitTask(pb.SubmitTaskRequest(spec=task_pb2.TaskSpec(argv=["no"]), request_id="once"))


async def test_lists_go_from_live_to_archived_newest_first(plane: Plane, user: User) -> None:
    tasks = await canceled(user, 12)
    await archive(plane, leave=5)
    tasks += await canceled(user, 3)
    for size in (1, 4, 5, 10, 15, 16):
        pages = await walk(user, page_size=size)
        assert [t.task_id for page in pages for t in page] == tasks[::-1]
        assert all(len(page) <= size for page in pages)


async def test_a_task_that_waits_for_long_keeps_its_place_among_archived_ones(plane: Plane, user: User) -> None:
    first = await canceled(user, 3)
    waits = await user.submit()
    last = await canceled(user, 3)
    await archive(plane)
    order = [*first, waits, *last][::-1]
    for size in (1, 2, 3, 7):
        assert [t.task_id for page in await walk(user, page_size=size) for t in page] == order


async def test_a_walk_shows_each_task_once_while_tasks_are_archived(plane: Plane, user: User) -> None:
    """Some are archived after each page: those shown already, those on the border, and those to come."""
    for size in (1, 2, 5):
        tasks = await canceled(user, 12)
        seen: list[str] = []
        token, left = "", 12
        while True:
            page = await user.stub.ListTasks(pb.ListTasksRequest(page_size=size, page_token=token, labels={}))
            seen += [t.task_id for t in page.tasks if t.task_id in tasks]
            token = page.next_page_token
            if not token:
                break
            left = max(0, left - 2)
            await archive(plane, leave=left)
        assert seen == tasks[::-1]
        await archive(plane)


async def test_a_walk_goes_on_at_another_replica(plane: Plane, user: User, another: Callable[[], Plane]) -> None:
    tasks = await canceled(user, 9)
    await archive(plane, leave=4)
    other = another()
    await other.start(leads=False)
    readers = [user, User(other)]
    seen: list[str] = []
    token = ""
    for turn in range(9):
        page = await readers[turn % 2].stub.ListTasks(pb.ListTasksRequest(page_size=1, page_token=token))
        seen += [t.task_id for t in page.tasks]
        token = page.next_page_token
    assert seen == tasks[::-1]


async def test_filters_apply_to_archived_tasks(plane: Plane, user: User) -> None:
    odd = await canceled(user, 5, labels={"kind": "odd"})
    even = await canceled(user, 5, labels={"kind": "even"})
    done = await run(plane, user)
    await archive(plane, leave=3)

    async def ids(**request: object) -> list[str]:
        return [t.task_id for page in await walk(user, page_size=2, **request) for t in page]

    assert await ids(labels={"kind": "odd"}) == odd[::-1]
    assert await ids(labels={"kind": "even"}, states=[CANCELED]) == even[::-1]
    assert await ids(labels={"kind": "even"}, states=[SUCCEEDED]) == []
    assert await ids(states=[SUCCEEDED]) == [done]
    assert await ids(workspace="none") == []
    assert await ids(states=[task_pb2.TASK_STATE_QUEUED]) == []


async def test_lists_of_a_time_hold_what_was_created_in_it(plane: Plane, user: User) -> None:
    tasks = []
    for _ in range(8):
        tasks += await canceled(user, 1)
        await next_millisecond(plane)
    times = [(await user.get(task)).create_time for task in tasks]
    await archive(plane, leave=3)

    async def ids(**request: object) -> list[str]:
        return [t.task_id for page in await walk(user, page_size=2, **request) for t in page]

    assert await ids(create_after=times[2]) == tasks[:1:-1]
    assert await ids(create_before=times[2]) == tasks[1::-1]
    assert await ids(create_after=times[1], create_before=times[6]) == tasks[5:0:-1]
    assert await ids(create_after=times[6], create_before=times[1]) == []


async def test_a_bundle_written_in_vain_shows_nothing_twice(plane: Plane, user: User) -> None:
    """Of a leader that died between the bundle and the transaction."""
    tasks = await canceled(user, 4)
    archiver = archiver_of(plane.kv, plane.objects, plane.scheduler.mirror, plane.clock)
    txn = plane.kv.txn

    async def dies(guards: object, writes: object, **more: object) -> object:
        if writes:
            raise UnavailableError("killed here")
        return await txn(guards, writes, **more)  # type: ignore[arg-type]

    plane.kv.txn = dies  # type: ignore[assignment,method-assign]
    with pytest.raises(UnavailableError):
        await archiver.sweep()
    plane.kv.txn = txn  # type: ignore[method-assign]
    assert [t.task_id for page in await walk(user, page_size=3) for t in page] == tasks[::-1]
    await archive(plane, leave=2)
    assert [t.task_id for page in await walk(user, page_size=3) for t in page] == tasks[::-1]
    await archive(plane)
    assert [t.task_id for page in await walk(user, page_size=3) for t in page] == tasks[::-1]
    assert (await user.get(tasks[0])).state == CANCELED


async def bundles_of(plane: Plane) -> list[str]:
    return [info.name async for info in plane.objects.list("history/")]


async def damage(plane: Plane, name: str, cut: int) -> None:
    data = await plane.objects.get(name)
    at = cut % len(data)
    await plane.objects.put(name, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@pytest.mark.parametrize("at", [0, 20, 60, -40])
async def test_a_damaged_bundle_is_named_and_the_others_are_read(
    plane: Plane, user: User, another: Callable[[], Plane], at: int
) -> None:
    """In its preamble, its index or a frame."""
    old = await canceled(user, 3)
    await archive(plane)
    [damaged] = await bundles_of(plane)
    await next_millisecond(plane)
    new = await canceled(user, 3)
    await archive(plane)
    await damage(plane, damaged, at)
    other = another()  # it has nothing in memory yet
    await other.start(leads=False)
    reader = User(other)
    for task in new:
        assert (await reader.get(task)).task_id == task
    for call in (reader.get(old[0]), reader.result(old[1]), reader.log(old[2]), walk(reader)):
        with pytest.raises(DataLossError, match=damaged):
            await call
    since = (await reader.get(new[0])).create_time
    assert [t.task_id for page in await walk(reader, create_after=since) for t in page] == new[::-1]


async def test_without_the_object_store_live_tasks_are_still_served(
    plane: Plane, user: User, another: Callable[[], Plane]
) -> None:
    [old] = await canceled(user, 1)
    await archive(plane)
    waits = await user.submit()
    other = another()
    await other.start(leads=False)
    reader = User(other)
    assert isinstance(plane.objects, FailingObjects)
    plane.objects.away = True
    assert (await reader.get(waits)).task_id == waits
    queued = await reader.stub.ListTasks(pb.ListTasksRequest(states=[task_pb2.TASK_STATE_QUEUED]))
    assert [t.task_id for t in queued.tasks] == [waits]
    for call in (reader.get(old), reader.get("task-0000000000000000"), walk(reader)):
        with pytest.raises(UnavailableError):
            await call
    plane.objects.away = False
    assert (await reader.get(old)).state == CANCELED
    assert len((await walk(reader))[0]) == 2


async def test_a_lookup_costs_two_reads_once_names_and_preambles_are_known(plane: Plane, user: User) -> None:
    tasks = []
    for _ in range(10):
        tasks += await canceled(user, 2)
        await archive(plane)
    reads: list[str] = []
    get, list_ = plane.objects.get, plane.objects.list

    async def counted(name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        reads.append(name)
        return await get(name, offset=offset, length=length)

    def listed(prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        reads.append(prefix)
        return list_(prefix, start_after=start_after)

    plane.objects.get, plane.objects.list = counted, listed  # type: ignore[method-assign]
    await user.get(tasks[0])
    assert len(reads) <= 1 + 10 + 2
    reads.clear()
    await user.get(tasks[4])
    assert len(reads) == 2
    reads.clear()
    await user.get(tasks[4])
    assert len(reads) == 1
    reads.clear()
    with pytest.raises(NotFoundError):
        await user.get("task-0000000000000000")
    assert reads == ["history/acme/"]


async def test_many_who_ask_in_vain_share_their_lists(plane: Plane, user: User) -> None:
    await canceled(user, 1)
    await archive(plane)
    lists = 0
    list_ = plane.objects.list

    def listed(prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        nonlocal lists
        lists += 1
        return list_(prefix, start_after=start_after)

    plane.objects.list = listed  # type: ignore[method-assign]
    asked = [user.get(f"task-{n:016d}") for n in range(100)]
    assert all(isinstance(each, NotFoundError) for each in await asyncio.gather(*asked, return_exceptions=True))
    assert lists <= 10


async def test_a_long_list_with_a_filter_that_takes_few_comes_in_short_pages(
    plane: Plane, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    [rare] = await canceled(user, 1, labels={"rare": "yes"})
    await canceled(user, 30)
    await archive(plane, leave=10)
    monkeypatch.setattr(listing, "SCAN", 8)
    pages = await walk(user, labels={"rare": "yes"})
    assert len(pages) > 3
    assert [t.task_id for page in pages for t in page] == [rare]


@pytest_asyncio.fixture
async def hasty(tmp_path: Path) -> AsyncIterator[Plane]:
    """A scheduler that keeps no ended task."""
    settings = HistorySettings(retention=0.0, batch_window=0.0)
    plane = Plane(MemoryKeyValue(SystemClock()), FailingObjects(), tmp_path, history=settings)
    await plane.start()
    yield plane
    await plane.stop()


async def test_the_leader_archives_by_itself(hasty: Plane) -> None:
    user = User(hasty)
    task = await run(hasty, user)
    await until("it is archived", lambda: hasty.scheduler.mirror.state.task("acme", task) is None)
    assert (await user.result(task)).final_message == "well done"
    assert await user.log(task) == b"out\n"


async def test_a_tail_that_follows_ends_though_the_task_is_archived_at_once(hasty: Plane) -> None:
    user = User(hasty)
    node = await Node(hasty).connect()
    task = await user.submit()
    assignment = await node.next()
    tail = asyncio.create_task(user.log(task, follow=True))
    await node.write(assignment, 0, b"a" * 10)
    await node.ack(lambda ack: ack.durable_offset == 10)
    await node.write(assignment, 10, b"b" * 10, end=True)
    await node.ack(lambda ack: ack.durable_offset == 20)
    await node.finish(assignment, log_end=20)
    assert await tail == b"a" * 10 + b"b" * 10
    await until("it is archived", lambda: hasty.scheduler.mirror.state.task("acme", task) is None)
    assert await user.log(task, offset=15) == b"b" * 5
    await node.disconnect()


async def test_results_a_consumer_has_not_acknowledged_stay_until_it_has(hasty: Plane) -> None:
    user = User(hasty)
    stream = user.stub.StreamResults(pb.StreamResultsRequest(consumer="c", from_oldest=True))
    reading = asyncio.create_task(stream.read())
    await until("the consumer is known", lambda: ("acme", "c") in hasty.scheduler.mirror.state.consumers)
    [task] = await canceled(user, 1)
    delivered = await reading
    assert isinstance(delivered, pb.StreamResultsResponse)
    await archived_by_then(hasty)
    assert hasty.scheduler.mirror.state.task("acme", task) is not None
    await user.stub.AckResults(pb.AckResultsRequest(consumer="c", receipts=[delivered.receipt]))
    await until("it is archived", lambda: hasty.scheduler.mirror.state.task("acme", task) is None)
    stream.cancel()


async def archived_by_then(plane: Plane) -> None:
    """A task of another tenant, which nobody waits for, came and went."""
    other = User(plane, "globex")
    [task] = await canceled(other, 1)
    await until("the archiver came by", lambda: plane.scheduler.mirror.state.task("globex", task) is None)
