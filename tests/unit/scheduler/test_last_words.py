"""What a conversation said last is in its result, wherever its nodes and leaders died."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cloudclaw.clock import SystemClock
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_workspace.adapters.census import CoordinationCensus
from tests.support.kv import FaultyKeyValue
from tests.unit.scheduler.failing import FailingObjects
from tests.unit.scheduler.plane import Plane, duration, until
from tests.unit.scheduler.talking import COMMITTED, Host, Talker

SUCCEEDED, FAILED, CANCELED = (
    task_pb2.TASK_STATE_SUCCEEDED,
    task_pb2.TASK_STATE_FAILED,
    task_pb2.TASK_STATE_CANCELED,
)
RETRY = pb.ReportVerdict.VERDICT_RETRY
LARGE = "so much to say " * 200


@pytest_asyncio.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    plane = Plane(FaultyKeyValue(MemoryKeyValue(SystemClock())), FailingObjects(), tmp_path, grace=0.5)
    await plane.start()
    yield plane
    await plane.stop()


async def dies(host: Host) -> Host:
    """The node is gone with all it ran, and another takes its place."""
    await host.disconnect()
    assert isinstance(host.plane.kv, FaultyKeyValue)
    assert isinstance(host.plane.kv.inner, MemoryKeyValue)
    host.plane.kv.inner.expire(host.lease)
    other = Host(host.plane, f"{host.name}-next")
    await other.connect()
    return other


async def answered(host: Host, assignment: pb.Assignment, snapshot: str, text: str, inputs: int = 0) -> int:
    """A checkpoint of the moment after an answer."""
    return await host.checkpoint(
        assignment, snapshot, session_id="session-1", inputs=inputs, answered=True, final_message=text
    )


async def results(plane: Plane) -> list[str]:
    return [info.name async for info in plane.objects.list("results/")]


@pytest.mark.parametrize("text", ["all is well", LARGE])
async def test_an_answer_whose_node_dies_before_it_is_parked_is_kept(host: Host, talker: Talker, text: str) -> None:
    task = await talker.talk()
    assert await host.park(await host.next(), "c-1", final_message="an older answer") == COMMITTED
    await talker.parked(task)
    await talker.say(task, "m1")
    assert await answered(host, await host.next(), "c-2", text, 1) == COMMITTED
    host = await dies(host)
    third = await host.next()
    assert (third.base.snapshot_id, third.answered, len(third.inputs)) == ("c-2", True, 0)
    assert await host.park(third, "c-2", inputs=1) == COMMITTED, "it found nothing to do, and said nothing"
    await talker.parked(task)
    await talker.say(task, "bye", end=True, text="")
    await host.finish(await host.next(), inputs=1)
    result = await talker.result(task)
    assert (result.state, result.final_message, result.session_id) == (SUCCEEDED, text, "session-1")


async def test_a_conversation_that_loses_its_last_attempt_keeps_its_answer(host: Host, talker: Talker) -> None:
    task = await talker.talk(retry=task_pb2.RetryPolicy(max_attempts=1))
    assert await answered(host, await host.next(), "c-1", "all is well") == COMMITTED
    await dies(host)
    assert (await talker.wait(task)).state == FAILED
    assert (await talker.result(task)).final_message == "all is well"


async def test_a_canceled_conversation_keeps_the_answer_of_its_checkpoint(host: Host, talker: Talker) -> None:
    task = await talker.talk()
    first = await host.next()
    assert await answered(host, first, "c-1", "all is well") == COMMITTED
    await talker.cancel(task)
    await host.finish(first, state=task_pb2.ATTEMPT_STATE_CANCELED, reason=task_pb2.END_REASON_CANCELED)
    result = await talker.result(task)
    assert (result.state, result.final_message) == (CANCELED, "all is well")


async def test_a_handed_over_answer_is_kept(host: Host, talker: Talker) -> None:
    task = await talker.talk()
    first = await host.next()
    assert await answered(host, first, "c-1", "all is well") == COMMITTED
    state, reason = task_pb2.ATTEMPT_STATE_FAILED, task_pb2.END_REASON_DRAINED
    assert await host.finish(first, state=state, reason=reason, final_message="all is well") == COMMITTED
    other = Host(host.plane, "node-2")
    await other.connect()
    await other.park(await other.next(), "c-1")
    await talker.parked(task)
    await talker.cancel(task)
    assert (await talker.result(task)).final_message == "all is well"


async def test_an_answer_that_no_checkpoint_holds_is_given_anew(host: Host, talker: Talker) -> None:
    """In the middle of the next answer the one before stays; and what was lost with its files is asked again."""
    task = await talker.talk()
    first = await host.next()
    assert await answered(host, first, "c-1", "one") == COMMITTED
    await talker.say(task, "m1")
    await host.given()
    assert await host.checkpoint(first, "c-2", session_id="session-1", inputs=0) == COMMITTED
    host = await dies(host)
    second = await host.next()
    assert ([given.number for given in second.inputs], second.answered) == ([1], False)
    assert await host.park(second, "c-3", inputs=1, final_message="two") == COMMITTED
    await talker.parked(task)
    await talker.cancel(task)
    assert (await talker.result(task)).final_message == "two"


async def test_a_task_that_is_no_conversation_keeps_only_the_answer_of_its_end(host: Host, talker: Talker) -> None:
    task = await talker.submit(retry=task_pb2.RetryPolicy(max_attempts=1))
    assert await host.checkpoint(await host.next(), "c-1", answered=True, final_message="half of it") == COMMITTED
    await dies(host)
    assert (await talker.wait(task)).state == FAILED
    assert (await talker.result(task)).final_message == ""


async def test_of_many_large_answers_one_object_is_left(plane: Plane, host: Host, talker: Talker) -> None:
    task = await talker.talk()
    first = await host.next()
    for turn in range(4):
        assert await answered(host, first, f"c-{turn}", f"{turn} {LARGE}") == COMMITTED
    assert await host.park(first, "c-4", final_message=f"4 {LARGE}") == COMMITTED
    await talker.parked(task)

    async def one_left() -> bool:
        return len(await results(plane)) == 1

    await until("the answers of before are gone", one_left)
    await talker.cancel(task)
    assert (await talker.result(task)).final_message == f"4 {LARGE}"


async def test_a_change_in_the_moment_of_a_checkpoint_takes_no_answer_away(
    plane: Plane, host: Host, talker: Talker
) -> None:
    """What the transaction in vain stored is nobody's, and goes after the task's end."""
    task = await talker.talk()
    first = await host.next()

    async def meanwhile() -> None:
        await talker.say(task, "m1")

    assert isinstance(plane.kv, FaultyKeyValue)
    plane.kv.before_txn = meanwhile
    assert await answered(host, first, "c-1", LARGE) == COMMITTED
    assert len(await results(plane)) == 2
    stored = await plane.transactions.get_task("acme", task)
    assert stored is not None
    assert stored.record.inputs == 1
    await talker.cancel(task)
    await host.finish(first, state=task_pb2.ATTEMPT_STATE_CANCELED, reason=task_pb2.END_REASON_CANCELED)
    assert (await talker.result(task)).final_message == LARGE
    ended = await plane.transactions.get_task("acme", task)
    assert ended is not None
    survey = await CoordinationCensus(plane.kv, plane.clock).survey("acme", outputs=True)
    kept = [name for name in await results(plane) if survey.outputs.result(task, name)]
    assert kept == [name for name in [ended.record.result_object] if name]


@pytest.mark.parametrize("applied", [True, False])
async def test_an_answer_whose_recording_was_in_doubt_is_recorded(
    plane: Plane, host: Host, talker: Talker, applied: bool
) -> None:
    task = await talker.talk(retry=task_pb2.RetryPolicy(max_attempts=1))
    first = await host.next()
    assert isinstance(plane.kv, FaultyKeyValue)
    plane.kv.fail_next("txn", applied=applied, then="get")
    assert await answered(host, first, "c-1", LARGE) == RETRY
    assert await answered(host, first, "c-1", LARGE) == COMMITTED
    await dies(host)
    await talker.wait(task)
    assert (await talker.result(task)).final_message == LARGE


async def test_an_answer_waits_for_the_store_that_is_to_hold_it(plane: Plane, host: Host, talker: Talker) -> None:
    task = await talker.talk(retry=task_pb2.RetryPolicy(max_attempts=1))
    first = await host.next()
    assert isinstance(plane.objects, FailingObjects)
    plane.objects.away = True
    assert await answered(host, first, "c-1", LARGE) == RETRY
    assert not (await talker.get(task)).HasField("checkpoint"), "both or none"
    plane.objects.away = False
    assert await answered(host, first, "c-1", LARGE) == COMMITTED
    await dies(host)
    await talker.wait(task)
    assert (await talker.result(task)).final_message == LARGE


async def test_an_answer_in_files_that_did_not_change_is_recorded_too(host: Host, talker: Talker) -> None:
    """A tree that is as it was is stored under its old name."""
    task = await talker.talk(retry=task_pb2.RetryPolicy(max_attempts=2, initial_backoff=duration(0.01)))
    assert await host.park(await host.next(), "c-1", final_message="one") == COMMITTED
    await talker.parked(task)
    await talker.say(task, "m1")
    second = await host.next()
    assert await answered(host, second, "c-1", "two", 1) == COMMITTED
    assert await answered(host, second, "c-1", "two", 1) == COMMITTED, "its verdict was lost"
    host = await dies(host)
    third = await host.next()
    assert (third.inputs_done, len(third.inputs), third.answered) == (1, 0, True)
    await host.park(third, "c-1", inputs=1)
    await talker.parked(task)
    await talker.cancel(task)
    assert (await talker.result(task)).final_message == "two"
