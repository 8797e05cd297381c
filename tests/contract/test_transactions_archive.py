"""Archive: ended tasks go whole, changed ones stay whole, and request ids answer for a while longer."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cloudclaw.coordination import keys, life
from cloudclaw.coordination.records import RequestRecord, TaskRecord, decode, encode
from cloudclaw.coordination.transactions import Versioned
from cloudclaw.errors import FencedError, NotFoundError, UnavailableError
from tests.support.coordination import BOTH_STORES, EPHEMERAL, NOW, TALK, TENANT, Scene, scene_on
from tests.support.etcd_server import running_etcd

etcd_server = pytest.fixture(scope="module")(running_etcd)


@pytest.fixture(params=BOTH_STORES)
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    async with scene_on(request) as scene:
        yield scene


async def requested(scene: Scene, request: str) -> Versioned[TaskRecord]:
    """An ended task that was submitted by this request id."""
    record = life.queued(
        tenant=TENANT, task=f"task-of-{request}", plan=EPHEMERAL, now=NOW, op_id=scene.op(), request=request
    )
    task = (await scene.tx.submit(record, b"spec", request_id=request, digest="d")).task
    return await scene.tx.cancel(task, life.canceled(task.record, NOW, op_id=scene.op()))


async def left(scene: Scene) -> set[str]:
    """Names of the tasks that have any key."""
    stored = (keys.TASKS, keys.SPECS, keys.QUEUE, keys.DELAYED)
    return {key.split("/")[-1] for key in await scene.dump() if key.startswith(stored)}


@pytest.mark.parametrize("count", [0, 1, 25, 26, 60])
async def test_ended_tasks_go_with_all_they_have_and_the_others_stay(scene: Scene, count: int) -> None:
    waiting = await scene.queued()
    ended = [await scene.ended() for _ in range(count)]
    kept = await scene.ended()
    lease = await scene.kv.grant(60)
    assert await scene.tx.archive(ended, lease) == ended
    assert await left(scene) == {waiting.record.task, kept.record.task}


@pytest.mark.parametrize("count", [1, 100, 101, 1001])
async def test_a_conversation_goes_with_all_that_was_said(scene: Scene, count: int) -> None:
    task = await scene.parked()
    ended = await scene.tx.cancel(task, life.canceled(task.record, NOW, op_id=scene.op()))
    own = keys.input_(TENANT, ended.record.task, "")
    for number in range(count):
        await scene.place(f"{own}m{number}", b"{}")
    await scene.place(own[:-1] + "0/m", b"{}")
    assert await scene.tx.archive([ended], 0) == [ended]
    assert [key for key in await scene.dump() if key.startswith(keys.INPUTS)] == [own[:-1] + "0/m"]


async def test_what_was_said_stays_when_the_task_changed(scene: Scene) -> None:
    task = await scene.told(await scene.queued(TALK), "m")
    ended = await scene.tx.cancel(task, life.canceled(task.record, NOW, op_id=scene.op()))
    await scene.change(ended)
    assert await scene.tx.archive([ended], 0) == []
    assert keys.input_(TENANT, ended.record.task, "m") in await scene.dump()


async def test_at_most_25_tasks_go_in_one_transaction(scene: Scene) -> None:
    ended = [await requested(scene, f"r{n}") for n in range(60)]
    lease, sent = await scene.kv.grant(60), scene.kv.sent["txn"]
    await scene.tx.archive(ended, lease)
    assert scene.kv.sent["txn"] - sent == 3


async def test_a_task_that_has_not_ended_is_refused_before_anything_is_sent(scene: Scene) -> None:
    tasks = [await scene.ended(), await scene.queued()]
    stored = await scene.dump()
    with pytest.raises(ValueError):
        await scene.tx.archive(tasks, await scene.kv.grant(60))
    assert await scene.dump() == stored


async def test_a_task_that_changed_stays_whole_and_the_others_of_its_transaction_go(scene: Scene) -> None:
    ended = [await scene.ended() for _ in range(5)]
    await scene.change(ended[2])
    assert await scene.tx.archive(ended, await scene.kv.grant(60)) == [*ended[:2], *ended[3:]]
    assert await left(scene) == {ended[2].record.task}
    assert await scene.tx.get_spec(TENANT, ended[2].record.task) == b"spec"


async def test_a_task_that_changes_in_that_moment_stays(scene: Scene) -> None:
    ended = [await scene.ended() for _ in range(2)]
    scene.kv.before_txn = lambda: scene.change(ended[0])
    assert await scene.tx.archive(ended, await scene.kv.grant(60)) == [ended[1]]
    assert await left(scene) == {ended[0].record.task}


async def test_what_is_gone_already_counts_as_gone(scene: Scene) -> None:
    """The archiver died between its transaction and noting it, or two of them met."""
    ended = [await scene.ended() for _ in range(30)]
    lease = await scene.kv.grant(60)
    await scene.tx.archive(ended[10:12], lease)
    assert await scene.tx.archive(ended, lease) == ended
    assert await scene.tx.archive(ended, lease) == ended


async def test_a_request_id_goes_on_answering_until_the_lease_ends(scene: Scene) -> None:
    task = await requested(scene, "r")
    lease = await scene.kv.grant(60)
    await scene.tx.archive([task], lease)
    entry = await scene.entry(keys.request(TENANT, "r"))
    assert entry.lease == lease
    assert decode(entry.value, RequestRecord) == RequestRecord(task=task.record.task, digest="d")
    with pytest.raises(NotFoundError) as gone:
        await scene.tx.submit(scene.fresh(), b"spec", request_id="r", digest="d")
    assert gone.value.metadata == {"task": task.record.task}
    await scene.kv.revoke(lease)
    assert (await scene.tx.submit(scene.fresh(), b"spec", request_id="r", digest="d")).created


async def test_a_request_id_that_answers_for_another_task_is_left_alone(scene: Scene) -> None:
    task = await requested(scene, "r")
    key = keys.request(TENANT, "r")
    await scene.place(key, encode(RequestRecord(task="task-other", digest="d")))
    before = await scene.entry(key)
    assert await scene.tx.archive([task], await scene.kv.grant(60)) == [task]
    assert await scene.entry(key) == before


async def test_a_request_id_that_goes_in_that_moment_does_not_come_back(scene: Scene) -> None:
    task = await requested(scene, "r")
    scene.kv.before_txn = lambda: scene.remove(keys.request(TENANT, "r"))
    assert await scene.tx.archive([task], await scene.kv.grant(60)) == [task]
    assert not [key for key in await scene.dump() if key.startswith(keys.REQUESTS)]


async def test_a_lost_lease_for_requests_stops_it(scene: Scene) -> None:
    task = await requested(scene, "r")
    lease = await scene.kv.grant(60)
    await scene.kv.revoke(lease)
    stored = await scene.dump()
    with pytest.raises(FencedError) as refused:
        await scene.tx.archive([task], lease)
    assert refused.value.reason == "LEASE_LOST"
    assert await scene.dump() == stored


async def test_a_lost_answer_of_what_was_done_is_read_back(scene: Scene) -> None:
    ended = [await scene.ended() for _ in range(3)]
    lease = await scene.kv.grant(60)
    scene.kv.fail_next("txn", applied=True)
    sent = scene.kv.sent["txn"]
    assert await scene.tx.archive(ended, lease) == ended
    assert scene.kv.sent["txn"] == sent + 1
    assert await left(scene) == set()


async def test_a_lost_answer_of_what_was_not_done_is_an_outage_and_may_be_repeated(scene: Scene) -> None:
    ended = [await scene.ended() for _ in range(3)]
    lease, stored = await scene.kv.grant(60), await scene.dump()
    scene.kv.fail_next("txn")
    with pytest.raises(UnavailableError):
        await scene.tx.archive(ended, lease)
    assert await scene.dump() == stored
    assert await scene.tx.archive(ended, lease) == ended


async def test_a_lost_answer_after_which_a_task_had_changed_leaves_that_one_out(scene: Scene) -> None:
    ended = [await scene.ended() for _ in range(2)]
    lease = await scene.kv.grant(60)
    await scene.change(ended[0])
    await scene.tx.archive([ended[1]], lease)
    scene.kv.fail_next("txn")
    assert await scene.tx.archive(ended, lease) == [ended[1]]
