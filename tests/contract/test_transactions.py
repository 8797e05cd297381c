"""Every transaction on a task: what it writes, each guard alone, sent twice, answers lost, and beside itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cloudclaw.coordination import keys, life
from cloudclaw.coordination.records import AttemptState, EndReason, TaskState, encode
from cloudclaw.coordination.transactions import waiting_key
from cloudclaw.errors import AbortedError, AlreadyExistsError, FencedError, PreconditionError, UnavailableError
from tests.support.checkpoint_transactions import CHECKPOINT_CASES
from tests.support.conversation_transactions import CONVERSATION_CASES
from tests.support.coordination import BOTH_STORES, EPHEMERAL, NOW, TENANT, WORKSPACE, Scene, pointer, scene_on
from tests.support.etcd_server import running_etcd
from tests.support.task_transactions import CASES as TASK_CASES
from tests.support.task_transactions import HEAD, WRITER, Case, move_head

etcd_server = pytest.fixture(scope="module")(running_etcd)

CASES = [*TASK_CASES, *CHECKPOINT_CASES, *CONVERSATION_CASES]
BY_NAME = {case.name: case for case in CASES}
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))


@pytest.fixture(params=BOTH_STORES)
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    async with scene_on(request) as scene:
        yield scene


@cases
async def test_it_writes_what_it_says(scene: Scene, case: Case) -> None:
    before, send = await case.prepare(scene)
    answer = await send("op-sent")
    assert answer.record.state is case.state
    assert answer == await scene.tx.get_task(TENANT, before.record.task)
    assert answer.create_revision == before.create_revision
    stored = await scene.dump()
    for key in case.gone:
        assert key(before) not in stored
    for key in case.there:
        assert key(before) in stored
    waiting = [name for name in stored if name.startswith((keys.QUEUE, keys.DELAYED))]
    assert waiting == ([waiting_key(answer.record)] if answer.record.state is TaskState.QUEUED else [])


@cases
async def test_sent_twice_it_is_done_once(scene: Scene, case: Case) -> None:
    _, send = await case.prepare(scene)
    first = await send("op-sent")
    stored = await scene.dump()
    assert await send("op-sent") == first
    assert await scene.dump() == stored


@cases
async def test_a_lost_answer_of_what_was_done_is_read_back(scene: Scene, case: Case) -> None:
    _, send = await case.prepare(scene)
    scene.kv.fail_next("txn", applied=True)
    sent = scene.kv.sent["txn"]
    answer = await send("op-sent")
    assert answer.record.op_id == "op-sent"
    assert scene.kv.sent["txn"] == sent + 1
    assert answer.record.state is case.state


@cases
async def test_a_lost_answer_of_what_was_not_done_is_an_outage_and_trying_again_is_safe(
    scene: Scene, case: Case
) -> None:
    before, send = await case.prepare(scene)
    stored = await scene.dump()
    scene.kv.fail_next("txn", applied=False)
    sent = scene.kv.sent["txn"]
    with pytest.raises(UnavailableError):
        await send("op-sent")
    assert scene.kv.sent["txn"] == sent + 1
    assert await scene.dump() == stored
    assert (await send("op-again")).mod_revision > before.mod_revision


@cases
async def test_a_lost_answer_and_a_lost_reading_are_an_outage_and_trying_again_answers_what_was_done(
    scene: Scene, case: Case
) -> None:
    _, send = await case.prepare(scene)
    scene.kv.fail_next("txn", applied=True, then="get")
    with pytest.raises(UnavailableError):
        await send("op-sent")
    stored = await scene.dump()
    assert (await send("op-sent")).record.op_id == "op-sent"
    assert await scene.dump() == stored


@cases
async def test_a_lost_answer_after_which_another_wrote_is_a_conflict(scene: Scene, case: Case) -> None:
    before, send = await case.prepare(scene)
    await scene.change(before)
    scene.kv.fail_next("txn", applied=False)
    with pytest.raises(AbortedError):
        await send("op-sent")


@cases
async def test_beside_another_of_itself_one_is_done(scene: Scene, case: Case) -> None:
    _, send = await case.prepare(scene)
    answers = await asyncio.gather(*(send(f"op-{n}-sent") for n in range(4)), return_exceptions=True)
    done = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert len(done) == 1
    refusals = AbortedError | FencedError | AlreadyExistsError
    assert all(isinstance(answer, refusals) for answer in answers if isinstance(answer, Exception))
    stored = await scene.tx.get_task(TENANT, done[0].record.task)
    assert stored == done[0]


@pytest.mark.parametrize(("case", "broken"), [(case.name, broken) for case in CASES for broken in case.breaks])
async def test_a_violated_guard_stops_all_of_it(scene: Scene, case: str, broken: str) -> None:
    before, send = await BY_NAME[case].prepare(scene)
    violate, error, reason = BY_NAME[case].breaks[broken]
    await violate(scene, before)
    stored = await scene.dump()
    with pytest.raises(error) as refused:
        await send("op-sent")
    assert refused.value.reason == reason
    assert await scene.dump() == stored


async def test_a_head_that_moves_while_a_success_is_sent_stops_all_of_it(scene: Scene) -> None:
    before, send = await BY_NAME["success"].prepare(scene)
    scene.kv.before_txn = lambda: move_head(scene)
    with pytest.raises(AbortedError):
        await send("op-sent")
    assert await scene.tx.get_task(TENANT, before.record.task) == before
    with pytest.raises(PreconditionError) as refused:
        await send("op-again")
    assert refused.value.reason == "HEAD_MOVED"


async def test_a_success_moves_the_head_and_nothing_else_does(scene: Scene) -> None:
    for case in CASES:
        before = await scene.tx.get_workspace(TENANT, WORKSPACE)
        _, send = await case.prepare(scene)
        await send(scene.op())
        after = await scene.tx.get_workspace(TENANT, WORKSPACE)
        assert before is not None
        assert after is not None
        if case.state is TaskState.SUCCEEDED:
            assert after.record.head == pointer("new")
            assert after.record.generation == before.record.generation + 1
            await scene.place(HEAD, encode(before.record))
        else:
            assert after == before
        if WRITER in await scene.dump():
            await scene.remove(WRITER)


async def test_an_ephemeral_task_takes_no_writer(scene: Scene) -> None:
    token, task = await scene.running(EPHEMERAL)
    assert WRITER not in await scene.dump()
    after = life.reported(task.record, NOW, AttemptState.SUCCEEDED, EndReason.COMPLETED, op_id=scene.op())
    await scene.tx.finish(token, task, after)
    assert not any(key.startswith((keys.ATTEMPTS, keys.SNAPSHOTS + "acme//")) for key in await scene.dump())
