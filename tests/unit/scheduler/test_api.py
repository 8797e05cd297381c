"""What users may ask, and what they are told when it is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration

from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    PreconditionError,
    QuotaExceededError,
)
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from tests.unit.scheduler.node import Node
from tests.unit.scheduler.plane import Plane, User, soon, until

QUEUED, SUCCEEDED = task_pb2.TASK_STATE_QUEUED, task_pb2.TASK_STATE_SUCCEEDED


async def test_two_submits_with_one_request_id_make_one_task(plane: Plane, user: User) -> None:
    other = User(plane)
    for number in range(10):
        first, second = await asyncio.gather(
            user.submit("a", request_id=f"r{number}"), other.submit("a", request_id=f"r{number}")
        )
        assert first == second
    listed = await user.stub.ListTasks(pb.ListTasksRequest(page_size=1000))
    assert len(listed.tasks) == 10
    with pytest.raises(AlreadyExistsError, match="request") as caught:
        await user.submit("b", request_id="r0")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert await User(plane, "stranger").submit("b", request_id="r0")


async def test_a_repeated_submit_says_that_it_created_nothing(plane: Plane, user: User) -> None:
    request = pb.SubmitTaskRequest(spec=task_pb2.TaskSpec(argv=["a"], env={"A": "1", "B": "2"}), request_id="r")
    first = await user.stub.SubmitTask(request)
    request.spec.CopyFrom(task_pb2.TaskSpec(argv=["a"], env={"B": "2", "A": "1"}))
    second = await user.stub.SubmitTask(request)
    assert (first.created, second.created) == (True, False)
    assert first.task.task_id == second.task.task_id


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (task_pb2.TaskSpec(), "spec.argv"),
        (task_pb2.TaskSpec(argv=["x"], priority=1000), "spec.priority"),
        (task_pb2.TaskSpec(argv=["x"], workspace=task_pb2.WorkspaceSelection(name="../x")), "spec.workspace.name"),
        (task_pb2.TaskSpec(argv=["x"], timeouts=task_pb2.Timeouts(run=Duration(seconds=-1))), "spec.timeouts.run"),
        (
            task_pb2.TaskSpec(argv=["x"], timeouts=task_pb2.Timeouts(run=Duration(seconds=1, nanos=-5))),
            "spec.timeouts.run",
        ),
        (task_pb2.TaskSpec(argv=["x"], labels={f"k{i}" * 10: "v" * 250 for i in range(32)}), "spec.labels"),
    ],
)
async def test_a_bad_spec_names_its_field_and_leaves_nothing(
    plane: Plane, user: User, spec: task_pb2.TaskSpec, field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await user.stub.SubmitTask(pb.SubmitTaskRequest(spec=spec))
    assert caught.value.field == field
    assert not (await user.stub.ListTasks(pb.ListTasksRequest())).tasks


async def test_unknown_enum_numbers_are_refused(plane: Plane, user: User) -> None:
    spec = task_pb2.TaskSpec(argv=["x"], workspace=task_pb2.WorkspaceSelection(name="ws"))
    spec.workspace.mode = 77  # type: ignore[assignment]
    with pytest.raises(InvalidArgumentError) as caught:
        await user.stub.SubmitTask(pb.SubmitTaskRequest(spec=spec))
    assert caught.value.field == "spec.workspace.mode"
    with pytest.raises(InvalidArgumentError):
        await user.stub.ListTasks(pb.ListTasksRequest(states=[77]))  # type: ignore[list-item]


async def test_unknown_things_are_named(plane: Plane, user: User) -> None:
    with pytest.raises(PreconditionError, match="no-such-pool") as pool:
        await user.submit(pool="no-such-pool")
    with pytest.raises(PreconditionError, match="no-such-runtime") as runtime:
        await user.submit(runtime="no-such-runtime")
    with pytest.raises(NotFoundError, match="no-such-workspace"):
        await user.submit(workspace=task_pb2.WorkspaceSelection(name="no-such-workspace"))
    assert (pool.value.reason, runtime.value.reason) == ("NO_SUCH_POOL", "NO_SUCH_RUNTIME")


async def test_another_tenants_task_is_not_found(plane: Plane, user: User) -> None:
    task_id = await user.submit()
    stranger = User(plane, "stranger")
    for call in (
        stranger.get(task_id),
        stranger.result(task_id),
        stranger.cancel(task_id),
        stranger.log(task_id),
        stranger.stub.ExplainTask(pb.ExplainTaskRequest(task_id=task_id)),
    ):
        with pytest.raises(NotFoundError):
            await call
    assert not (await stranger.stub.ListTasks(pb.ListTasksRequest())).tasks
    assert (await user.get(task_id)).state == QUEUED


@pytest.mark.parametrize("bad", ["", "../../tasks/other/x", "x" * 5000, "a/b", "task-../x", "task-0000000000000000"])
async def test_ids_that_are_none_are_not_found(plane: Plane, user: User, bad: str) -> None:
    for call in (user.get(bad), user.result(bad), user.cancel(bad), user.log(bad)):
        with pytest.raises(NotFoundError):
            await call


async def test_lists_are_paged_filtered_and_newest_first(plane: Plane, user: User) -> None:
    ids = [await user.submit(labels={"n": str(i % 2)}) for i in range(7)]
    await user.cancel(ids[1])
    await user.cancel(ids[2])
    seen: list[str] = []
    token = ""
    while True:
        page = await user.stub.ListTasks(pb.ListTasksRequest(page_size=3, page_token=token))
        assert len(page.tasks) <= 3
        seen += [t.task_id for t in page.tasks]
        token = page.next_page_token
        if not token:
            break
    assert seen == ids[::-1]
    odd = await user.stub.ListTasks(
        pb.ListTasksRequest(labels={"n": "1"}, states=[task_pb2.TASK_STATE_CANCELED, task_pb2.TASK_STATE_QUEUED])
    )
    assert [t.task_id for t in odd.tasks] == ids[5::-2]
    assert not odd.tasks[0].HasField("spec")
    gone = await user.stub.ListTasks(pb.ListTasksRequest(states=[task_pb2.TASK_STATE_CANCELED]))
    assert {t.task_id for t in gone.tasks} == set(ids[1:3])


@pytest.mark.parametrize(
    "request_",
    [
        pb.ListTasksRequest(page_size=-1),
        pb.ListTasksRequest(page_size=1001),
        pb.ListTasksRequest(page_token="garbage"),
        pb.ListTasksRequest(page_token="dDE6LTU="),
        pb.ListTasksRequest(page_token="é"),
    ],
)
async def test_pages_that_are_none_are_refused(plane: Plane, user: User, request_: pb.ListTasksRequest) -> None:
    with pytest.raises(InvalidArgumentError):
        await user.stub.ListTasks(request_)


async def changes(user: User, count: int, **request: int | str) -> list[tuple[str, int, int]]:
    found: list[tuple[str, int, int]] = []
    async with asyncio.timeout(10):
        call = user.stub.WatchTasks(pb.WatchTasksRequest(**request))  # type: ignore[arg-type]
        async for response in call:
            found.append((response.task.task_id, response.task.state, response.revision))
            if len(found) == count:
                call.cancel()
                break
    return found


async def test_changes_are_watched_from_any_revision(plane: Plane, user: User) -> None:
    start = (await user.stub.ListTasks(pb.ListTasksRequest())).revision
    await User(plane, "stranger").submit()
    node = await Node(plane, slots=5).connect()
    ids = [await user.submit() for _ in range(2)]
    for _ in range(3):
        await node.finish(await node.next())
    seen = await changes(user, 6, after_revision=start)
    assert sorted((t, s) for t, s, _ in seen) == sorted((t, s) for t in ids for s in (1, 2, 3))
    revisions = [r for _, _, r in seen]
    assert revisions == sorted(set(revisions))
    for index in range(5):
        assert await changes(user, 5 - index, after_revision=revisions[index]) == seen[index + 1 :]
    assert [s for _, s, _ in await changes(user, 3, after_revision=start, task_id=ids[0])] == [1, 2, 3]


async def test_a_watch_goes_on_from_a_restarted_replica(plane: Plane, user: User) -> None:
    start = (await user.stub.ListTasks(pb.ListTasksRequest())).revision
    task_id = await user.submit()
    await plane.stop()
    await plane.start()
    user = User(plane)
    watching = asyncio.create_task(changes(user, 2, after_revision=start))
    await user.cancel(task_id)
    assert [(t, s) for t, s, _ in await watching] == [(task_id, 1), (task_id, task_pb2.TASK_STATE_CANCELED)]


async def test_a_compacted_revision_is_out_of_range(plane: Plane, user: User) -> None:
    assert isinstance(plane.kv, MemoryKeyValue)
    for _ in range(3):
        await user.submit()
    await plane.stop()
    await plane.start()
    user = User(plane)
    plane.kv.compact(plane.scheduler.mirror.state.revision)
    with pytest.raises(OutOfRangeError):
        await changes(user, 1, after_revision=1)
    with pytest.raises(InvalidArgumentError):
        await changes(user, 1, after_revision=-1)


async def test_an_explanation_says_what_is_in_the_way(plane: Plane, user: User) -> None:
    tasks = [await user.submit() for _ in range(3)]
    explained = await user.stub.ExplainTask(pb.ExplainTaskRequest(task_id=tasks[2]))
    assert (explained.position, explained.task.wait_reason) == (2, task_pb2.WAIT_REASON_SLOT)
    assert "No node offers" in explained.reasons[-1]
    node = await Node(plane).connect()
    assignment = await node.next()
    explained = await user.stub.ExplainTask(pb.ExplainTaskRequest(task_id=tasks[2]))
    assert explained.position == 1
    assert "slots of the pool default" in explained.reasons[-1]
    await node.finish(
        assignment, state=task_pb2.ATTEMPT_STATE_FAILED, reason=task_pb2.END_REASON_NONZERO_EXIT, message="exit code 3"
    )
    explained = await user.stub.ExplainTask(pb.ExplainTaskRequest(task_id=assignment.task_id))
    assert any("NONZERO_EXIT" in reason and "exit code 3" in reason for reason in explained.reasons)


async def test_the_status_shows_totals_to_all_and_nodes_to_operators(plane: Plane, user: User) -> None:
    node = await Node(plane, slots=2).connect()
    for _ in range(3):
        await user.submit()
    await node.next()
    await node.next()
    await node.heard(2)
    status = await user.stub.GetClusterStatus(pb.GetClusterStatusRequest())
    (pool,) = status.pools
    assert (pool.slots, pool.idle, pool.queued, pool.running) == (2, 0, 1, 2)
    assert not status.nodes
    assert (status.leader, status.term) == (plane.address, node.term)
    operator = plane.stub("ops", ("operator",))
    (seen,) = (await operator.GetClusterStatus(pb.GetClusterStatusRequest())).nodes
    assert (seen.node, seen.connected, seen.attempts) == ("node-1", True, 2)
    await node.disconnect()

    async def gone() -> bool:
        return not (await operator.GetClusterStatus(pb.GetClusterStatusRequest())).nodes[0].connected

    await until("it is not connected", gone)


async def test_a_follower_passes_the_status_on(plane: Plane, user: User, another: Callable[[], Plane]) -> None:
    follower = another()
    await follower.start(leads=False)
    await Node(plane).connect()
    operator = follower.stub("ops", ("operator",))

    async def connected() -> bool:
        status = await operator.GetClusterStatus(pb.GetClusterStatusRequest())
        return status.leader == plane.address and any(n.connected for n in status.nodes)

    await until("the follower shows the leader's view", connected)


async def test_streams_of_nodes_are_denied_to_users(plane: Plane, user: User) -> None:
    for method in (user.stub.Connect, user.stub.StreamLogs):
        with pytest.raises(PermissionDeniedError):
            await soon(method().read())


async def test_a_node_that_does_not_say_hello_is_refused(plane: Plane, user: User) -> None:
    call = plane.stub("internal", ("node",)).Connect()
    await call.write(pb.ConnectRequest(heartbeat=pb.Heartbeat(sequence=1)))
    with pytest.raises(InvalidArgumentError):
        await soon(call.read())


async def test_a_node_that_knows_a_newer_term_is_sent_on(plane: Plane, user: User) -> None:
    call = plane.stub("internal", ("node",)).Connect()
    await call.write(pb.ConnectRequest(term=1 << 40, hello=pb.Hello(node="n", incarnation=1)))
    with pytest.raises(PreconditionError) as caught:
        await soon(call.read())
    assert caught.value.reason == "NOT_LEADER"


async def test_submit_sheds_load_before_etcd_is_full(plane: Plane, user: User) -> None:
    plane.scheduler.fullness.used, plane.scheduler.fullness.limit = 61, 100
    with pytest.raises(QuotaExceededError, match="60%") as caught:
        await user.submit()
    assert caught.value.reason == "COORDINATION_FULL"
    plane.scheduler.fullness.used = 59
    await user.submit()


async def test_a_task_is_read_as_it_was_just_written(plane: Plane, user: User) -> None:
    for _ in range(20):
        task_id = await user.submit()
        assert (await user.stub.ListTasks(pb.ListTasksRequest(page_size=1))).tasks[0].task_id == task_id
        await user.cancel(task_id)
        assert (await user.get(task_id)).state == task_pb2.TASK_STATE_CANCELED
        listed = await user.stub.ListTasks(pb.ListTasksRequest(page_size=1))
        assert listed.tasks[0].state == task_pb2.TASK_STATE_CANCELED
