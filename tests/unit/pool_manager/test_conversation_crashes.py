"""Conversations on a node whose process dies: before a message was given, after it, at parking, at its report."""

from __future__ import annotations

import asyncio

import pytest

from cloudclaw.v1 import task_pb2
from cloudclaw_pool_manager.ports.state import Drain
from tests.support.fake_agent import Parrot, say
from tests.support.fake_slots import FakeSupervisor
from tests.unit.pool_manager.agents import CHECKPOINT, TALK, agents, answer, asked, deliver, message
from tests.unit.pool_manager.rig import Rig
from tests.unit.pool_manager.test_conversations import LONG, given

PARKED = task_pb2.END_REASON_PARKED


def closes(sandbox: FakeSupervisor) -> int:
    return sum(one.close for one in sandbox.inputs)


def has(rig: Rig) -> int | None:
    """Inputs that the node says it has for its only attempt."""
    attempts = rig.leader.heartbeats[-1].attempts if rig.leader.heartbeats else []
    return attempts[0].inputs if attempts else None


async def test_a_message_that_died_with_its_process_is_told_to_be_missing_and_given_once(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig, conversation=LONG)
    await deliver(rig, task, message(1, "a"))
    await rig.until(lambda: has(rig) == 1)
    assert not given(sandbox), "it is still at its prompt"
    await rig.crash()
    rig.leader.heartbeats.clear()
    await rig.start()
    await rig.until(lambda: has(rig) is not None)
    assert has(rig) == 0, "so the leader brings it again"
    await deliver(rig, task, message(1, "a"))
    await answer(rig, sandbox)
    await answer(rig, sandbox)
    assert given(sandbox) == [b"a\n"]


async def test_a_process_that_dies_after_it_closed_an_agent_s_input_parks_it_once(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig, conversation=TALK)
    await answer(rig, sandbox, "what next?")
    await rig.until(lambda: not sandbox.input_open, within=3.0)
    await rig.crash()
    await rig.start()
    await deliver(rig, task, message(1))
    await rig.pass_time(3)
    assert closes(sandbox) == 1
    assert not given(sandbox), "it takes nothing any more"
    sandbox.finish(0)
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.reason, outcome.final_message, outcome.inputs) == (PARKED, "what next?", 0)


async def test_what_was_answered_before_a_restart_is_parked_in_time_and_checkpointed(agent_rig: Rig) -> None:
    """Nothing more is heard of the agent: all that it said was understood, and forgotten by its spool."""
    rig = agent_rig
    task, sandbox = await asked(rig, conversation=LONG)
    rig.leader.decides_checkpoints = False  # so the checkpoint of the turn dies with its process
    rig.leader.log_acks = False
    sandbox.write(b"x" * (2 << 20) + b"\n")
    await answer(rig, sandbox, "what next?")
    await rig.until(lambda: len(rig.leader.logs[task.uid]) == sandbox.log_end)
    rig.leader.ack_log(task.uid)
    rig.leader.log_acks = True
    await rig.until(lambda: sandbox.forgotten == sandbox.log_end)
    await rig.crash()
    rig.leader.checkpoints.clear()
    rig.leader.decides_checkpoints = True
    await rig.start()
    await rig.until(lambda: bool(rig.leader.checkpoints), within=10.0)
    assert (rig.leader.checkpoints[0].answered, rig.leader.checkpoints[0].final_message) == (True, "what next?")
    await rig.until(lambda: not sandbox.input_open, within=70.0)
    sandbox.finish(0)
    await rig.gone(task)
    assert (rig.report_of(task).reason, rig.report_of(task).final_message) == (PARKED, "what next?")


async def test_an_agent_that_does_not_end_is_ended_by_the_next_process_too(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig, conversation=TALK)
    await answer(rig, sandbox, "what next?")
    await rig.until(lambda: not sandbox.input_open, within=3.0)
    await rig.crash()
    await rig.start()
    await rig.gone(task)
    assert (rig.report_of(task).reason, rig.report_of(task).final_message) == (PARKED, "what next?")


async def test_an_agent_that_takes_no_messages_is_ended_by_the_next_process_though_one_waits() -> None:
    rig = await agents(Parrot(takes_input=False))
    task, sandbox = await asked(rig, conversation=LONG)
    await rig.crash()
    await rig.start()
    await deliver(rig, task, message(1))
    await answer(rig, sandbox, "what next?")
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.reason, outcome.final_message, outcome.inputs) == (PARKED, "what next?", 0)
    await rig.close()


async def test_an_answer_that_came_while_no_process_was_there_is_reported(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig, conversation=LONG)
    await answer(rig, sandbox, "one")
    await deliver(rig, task, message(1, "a"))
    assert given(sandbox) == [b"a\n"]
    await rig.crash()
    say(sandbox, {"says": "well"}, {"turn": 2}, {"done": "two"})
    sandbox.finish(0)
    await rig.start()
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.reason, outcome.final_message, outcome.inputs) == (PARKED, "two", 1)


@pytest.mark.parametrize("times", [1, 2])
async def test_a_crash_before_the_verdict_parks_it_with_the_same_files(agent_rig: Rig, times: int) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig, conversation=TALK)
    await answer(rig, sandbox, "what next?")
    await rig.until(lambda: not sandbox.input_open, within=3.0)
    rig.leader.decides = False
    outcomes = []
    sandbox.finish(0)
    for left in reversed(range(times)):
        rig.leader.reports.clear()
        await rig.until(lambda: bool(rig.leader.reports))
        outcomes.append(rig.report_of(task))
        await rig.crash()
        rig.leader.decides = not left
        await rig.start()
    await rig.gone(task)
    outcomes.append(rig.report_of(task))
    assert {outcome.final_message for outcome in outcomes} == {"what next?"}
    assert len({outcome.snapshot.snapshot_id for outcome in outcomes}) == 1


async def test_one_that_had_nothing_to_do_is_left_to_the_leader(agent_rig: Rig) -> None:
    """It ran no program, so there is nothing that the next process could find of it."""
    rig = agent_rig
    rig.leader.decides = False
    task = await rig.assign(
        runtime="parrot", prompt="sing", conversation=TALK, resumes=True, base=CHECKPOINT, session="s-0", answered=True
    )
    await rig.until(lambda: any(report.uid == task.uid for report in rig.leader.reports))
    await rig.crash()
    rig.leader.decides = True
    await rig.start()
    assert task.uid not in [running.uid for running in rig.leader.hellos[-1].attempts]


async def test_a_message_that_waits_for_its_agent_on_a_drained_node_is_answered_elsewhere(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig, conversation=LONG)
    await answer(rig, sandbox)
    sandbox.input_full = True
    await deliver(rig, task, message(1, "a"))
    await rig.manager.set_drain(Drain.HAND_OVER)
    await rig.pass_time(0.1)
    sandbox.input_full = False
    await rig.gone(task)
    assert (rig.report_of(task).reason, rig.report_of(task).inputs) == (PARKED, 0)
    assert not given(sandbox)


async def test_a_lost_answer_is_given_though_its_conversation_was_closed_meanwhile(agent_rig: Rig) -> None:
    """The checkpoint holds the message, and the beginning of its answer alone."""
    rig = agent_rig
    task, sandbox = await asked(
        rig, conversation=TALK, resumes=True, base=CHECKPOINT, session="s-0", inputs_done=1, closing=True
    )
    await answer(rig, sandbox, "the whole of it")
    assert not sandbox.input_open
    sandbox.finish(0)
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.state, outcome.final_message) == (task_pb2.ATTEMPT_STATE_SUCCEEDED, "the whole of it")


@pytest.mark.parametrize("closing", [False, True])
async def test_what_comes_while_an_attempt_without_work_is_prepared_is_for_the_next(
    agent_rig: Rig, closing: bool
) -> None:
    rig = agent_rig
    gate = rig.workspaces.gates["checkout"] = asyncio.Event()
    task = await rig.assign(
        runtime="parrot", prompt="sing", conversation=TALK, resumes=True, base=CHECKPOINT, session="s-0", answered=True
    )
    await rig.until(lambda: "checkout" in rig.workspaces.waiting)
    await deliver(rig, task, message(1), closing=closing)
    gate.set()
    await rig.gone(task)
    assert (rig.report_of(task).reason, rig.report_of(task).inputs) == (PARKED, 0)
    assert task.uid not in [uid for there in rig.host.alive.values() for uid in there.starts]


async def test_one_that_goes_on_in_the_middle_of_an_answer_listens_and_is_parked_as_any_other(agent_rig: Rig) -> None:
    """It is told no message at its start: its session holds what it is at."""
    rig = agent_rig
    task, sandbox = await asked(rig, conversation=LONG, resumes=True, base=CHECKPOINT, session="s-0", inputs_done=1)
    await answer(rig, sandbox, "the rest of it")
    await rig.until(lambda: any(report.answered for report in rig.leader.checkpoints), within=5.0)
    last = rig.leader.checkpoints[-1]
    assert (last.inputs, last.final_message) == (1, "the rest of it")
    await deliver(rig, task, message(2, "b"))
    assert given(sandbox) == [b"b\n"]
    await answer(rig, sandbox, "and more")
    await rig.until(lambda: not sandbox.input_open, within=70.0)
    sandbox.finish(0)
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.reason, outcome.inputs, outcome.final_message) == (PARKED, 2, "and more")
