"""Submit: one task for one request id, whoever else submits and whatever answers get lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from cloudclaw.coordination import keys, life
from cloudclaw.coordination.records import MAX_INLINE_SPEC, RequestRecord, decode
from cloudclaw.coordination.transactions import waiting_key
from cloudclaw.errors import AlreadyExistsError, NotFoundError, UnavailableError
from tests.support.coordination import BOTH_STORES, NOW, TENANT, Scene, scene_on
from tests.support.etcd_server import running_etcd

etcd_server = pytest.fixture(scope="module")(running_etcd)


@pytest.fixture(params=BOTH_STORES)
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    async with scene_on(request) as scene:
        yield scene


async def tasks(scene: Scene) -> list[str]:
    return [key for key in await scene.dump() if key.startswith(keys.TASKS)]


async def test_a_submit_stores_task_spec_request_and_queue(scene: Scene) -> None:
    record = scene.fresh()
    answer = await scene.tx.submit(record, b"the spec", request_id="r", digest="d")
    assert answer.created
    assert answer.task == await scene.tx.get_task(TENANT, record.task)
    assert answer.task.record == record
    assert await scene.tx.get_spec(TENANT, record.task) == b"the spec"
    stored = await scene.dump()
    assert decode(stored[keys.request(TENANT, "r")][0], RequestRecord) == RequestRecord(task=record.task, digest="d")
    queued = await scene.entry(waiting_key(record))
    assert queued.create_revision == answer.task.create_revision


async def test_a_spec_kept_as_an_object_takes_no_key(scene: Scene) -> None:
    record = replace(scene.fresh(), spec_object="specs/acme/x")
    await scene.tx.submit(record, b"")
    assert await scene.tx.get_spec(TENANT, record.task) is None


async def test_a_large_spec_and_a_full_record_fit(scene: Scene) -> None:
    record = scene.fresh()
    await scene.tx.submit(record, b"x" * MAX_INLINE_SPEC)
    spec = await scene.tx.get_spec(TENANT, record.task)
    assert spec is not None
    assert len(spec) == MAX_INLINE_SPEC


async def test_an_unknown_task_is_none(scene: Scene) -> None:
    assert await scene.tx.get_task(TENANT, "task-none") is None
    assert await scene.tx.get_spec(TENANT, "task-none") is None


async def test_the_same_request_again_answers_the_first_task_as_it_is_now(scene: Scene) -> None:
    first = await scene.tx.submit(scene.fresh(), b"spec", request_id="r", digest="d")
    _, running = await scene.running(task=first.task)
    again = await scene.tx.submit(scene.fresh(), b"spec", request_id="r", digest="d")
    assert not again.created
    assert again.task == running
    assert len(await tasks(scene)) == 1


async def test_the_same_request_with_another_body_is_refused(scene: Scene) -> None:
    await scene.tx.submit(scene.fresh(), b"spec", request_id="r", digest="d")
    stored = await scene.dump()
    with pytest.raises(AlreadyExistsError) as refused:
        await scene.tx.submit(scene.fresh(), b"other", request_id="r", digest="e")
    assert refused.value.reason == "REQUEST_ID_REUSED"
    assert await scene.dump() == stored


async def test_the_same_request_id_of_another_tenant_is_another(scene: Scene) -> None:
    await scene.tx.submit(scene.fresh(), b"spec", request_id="r", digest="d")
    other = replace(scene.fresh(), tenant="other")
    assert (await scene.tx.submit(other, b"spec", request_id="r", digest="e")).created


async def test_many_at_once_with_one_request_id_make_one_task(scene: Scene) -> None:
    answers = await asyncio.gather(
        *(scene.tx.submit(scene.fresh(), b"spec", request_id="r", digest="d") for _ in range(20))
    )
    assert [answer.created for answer in answers].count(True) == 1
    assert len({answer.task.record.task for answer in answers}) == 1
    assert len(await tasks(scene)) == 1


async def test_without_a_request_id_every_submit_makes_a_task(scene: Scene) -> None:
    for _ in range(3):
        assert (await scene.tx.submit(scene.fresh(), b"spec")).created
    assert len(await tasks(scene)) == 3


async def test_sent_twice_it_is_one_task(scene: Scene) -> None:
    record = scene.fresh()
    for request in ("", "r"):
        first = await scene.tx.submit(record, b"spec", request_id=request, digest="d")
        stored = await scene.dump()
        assert await scene.tx.submit(record, b"spec", request_id=request, digest="d") == first
        assert await scene.dump() == stored
        record = scene.fresh()


async def test_a_task_id_that_is_taken_is_refused(scene: Scene) -> None:
    record = scene.fresh()
    await scene.tx.submit(record, b"spec")
    same_id = life.queued(tenant=TENANT, task=record.task, plan=record.plan, now=NOW + 1, op_id=scene.op())
    with pytest.raises(AlreadyExistsError):
        await scene.tx.submit(same_id, b"spec")


@pytest.mark.parametrize("request_id", ["", "r"])
async def test_a_lost_answer_of_a_submit_is_read_back(scene: Scene, request_id: str) -> None:
    scene.kv.fail_next("txn", applied=True)
    record = scene.fresh()
    answer = await scene.tx.submit(record, b"spec", request_id=request_id, digest="d")
    assert answer.created
    assert answer.task.record == record


@pytest.mark.parametrize("request_id", ["", "r"])
async def test_a_submit_that_did_not_arrive_is_an_outage_and_may_be_repeated(scene: Scene, request_id: str) -> None:
    record = scene.fresh()
    scene.kv.fail_next("txn")
    with pytest.raises(UnavailableError):
        await scene.tx.submit(record, b"spec", request_id=request_id, digest="d")
    assert not await tasks(scene)
    assert (await scene.tx.submit(record, b"spec", request_id=request_id, digest="d")).created


async def test_a_client_whose_answer_was_lost_gets_its_first_task_by_the_request_id(scene: Scene) -> None:
    first = scene.fresh()
    scene.kv.fail_next("txn", applied=True, then="get")
    with pytest.raises(UnavailableError):
        await scene.tx.submit(first, b"spec", request_id="r", digest="d")
    again = await scene.tx.submit(scene.fresh(), b"spec", request_id="r", digest="d")
    assert not again.created
    assert again.task.record == first


async def test_a_lost_answer_of_a_repeated_request_answers_the_first_task(scene: Scene) -> None:
    first = await scene.tx.submit(scene.fresh(), b"spec", request_id="r", digest="d")
    scene.kv.fail_next("txn")
    again = await scene.tx.submit(scene.fresh(), b"spec", request_id="r", digest="d")
    assert not again.created
    assert again.task == first.task


async def test_a_request_whose_task_is_gone_is_not_found(scene: Scene) -> None:
    first = await scene.tx.submit(scene.fresh(), b"spec", request_id="r", digest="d")
    await scene.remove(keys.task(TENANT, first.task.record.task))
    with pytest.raises(NotFoundError):
        await scene.tx.submit(scene.fresh(), b"spec", request_id="r", digest="d")
