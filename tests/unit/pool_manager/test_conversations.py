"""Conversations on a node: messages in order and once, parking, closing."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_pool_manager.ports.state import Drain
from tests.support.fake_agent import Parrot, say
from tests.support.fake_slots import FakeSupervisor
from tests.unit.pool_manager.agents import CHECKPOINT, TALK, agents, answer, asked, deliver, message
from tests.unit.pool_manager.rig import Rig

LONG = task_pb2.Conversation(park_after=Duration(seconds=60))


def given(sandbox: FakeSupervisor) -> list[bytes]:
    return [one.data for one in sandbox.inputs if one.data]


async def test_it_is_parked_when_nobody_speaks_for_a_while(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig, conversation=TALK)
    await answer(rig, sandbox, "what next?")
    assert sandbox.input_open, "it waits for its user, with its slot"
    await rig.until(lambda: not sandbox.input_open, within=3.0)
    sandbox.finish(0)
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.state, outcome.reason) == (task_pb2.ATTEMPT_STATE_FAILED, task_pb2.END_REASON_PARKED)
    assert (outcome.session_id, outcome.final_message, outcome.inputs) == ("s-1", "what next?", 0)
    assert outcome.snapshot.snapshot_id, "it goes on from these files"


async def test_messages_are_given_one_at_a_time_each_after_the_answer_before(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig, conversation=LONG)
    await deliver(rig, task, message(2, "b"), message(1, "a"))
    assert not sandbox.inputs, "it is still at its prompt"
    await answer(rig, sandbox)
    assert given(sandbox) == [b"a\n"]
    await rig.pass_time(1)
    assert given(sandbox) == [b"a\n"]
    await answer(rig, sandbox)
    assert given(sandbox) == [b"a\n", b"b\n"]
    await deliver(rig, task, message(1, "a"), message(2, "b"))
    await answer(rig, sandbox)
    assert given(sandbox) == [b"a\n", b"b\n"], "the leader may repeat itself"
    assert rig.leader.heartbeats[-1].attempts[0].inputs == 2


async def test_a_checkpoint_says_which_messages_it_holds(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig, conversation=LONG)
    await answer(rig, sandbox)
    await deliver(rig, task, message(1))
    await rig.pass_time(0.3)
    rig.leader.checkpoints.clear()
    rig.leader.say(
        take_checkpoint=pb.TakeCheckpoint(tenant=task.tenant, task_id=task.task_id, token=task.token, request=1)
    )
    await rig.until(lambda: len(rig.leader.checkpoints) == 1)
    assert rig.leader.checkpoints[-1].inputs == 0, "it has not begun to answer"
    say(sandbox, {"says": "let me see"}, {"turn": 2})
    await rig.until(lambda: len(rig.leader.checkpoints) == 2)
    assert rig.leader.checkpoints[-1].inputs == 1


async def test_a_resumed_conversation_gets_what_its_session_does_not_hold(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(
        rig,
        conversation=LONG,
        resumes=True,
        base=CHECKPOINT,
        session="s-0",
        inputs=[message(4, "fourth"), message(3, "third")],
        inputs_done=2,
    )
    assert sandbox.launch is not None
    assert sandbox.launch.stdin == b"third\nfourth"
    await answer(rig, sandbox)
    await rig.pass_time(61)
    sandbox.finish(0)
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.reason, outcome.inputs) == (task_pb2.END_REASON_PARKED, 4)


async def test_a_lost_start_is_asked_again_with_its_prompt(agent_rig: Rig) -> None:
    rig = agent_rig
    _, sandbox = await asked(rig, "sing", resumes=True, base=CHECKPOINT)
    assert sandbox.launch is not None
    assert sandbox.launch.stdin == b"sing", "the checkpoint holds no session"


async def test_closing_ends_it_with_its_answer(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig, conversation=LONG)
    await deliver(rig, task, message(1, "last"), closing=True)
    await answer(rig, sandbox)
    assert [one.close for one in sandbox.inputs] == [False], "one more message is to be answered"
    await answer(rig, sandbox, "bye")
    assert [one.close for one in sandbox.inputs] == [False, True]
    sandbox.finish(0)
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert outcome.state == task_pb2.ATTEMPT_STATE_SUCCEEDED
    assert (outcome.final_message, outcome.inputs) == ("bye", 1)


async def test_a_parked_one_that_is_closed_ends_without_a_program(agent_rig: Rig) -> None:
    rig = agent_rig
    task = await rig.assign(
        runtime="parrot", prompt="sing", conversation=TALK, resumes=True, base=CHECKPOINT, session="s-0", closing=True,
        inputs_done=3, answered=True,
    )  # fmt: skip
    await rig.until(lambda: any(report.uid == task.uid for report in rig.leader.reports))
    outcome = rig.report_of(task)
    assert outcome.state == task_pb2.ATTEMPT_STATE_SUCCEEDED
    assert outcome.inputs == 3
    assert task.uid not in [uid for there in rig.host.alive.values() for uid in there.starts]


async def test_an_agent_that_takes_no_input_is_parked_with_every_answer() -> None:
    rig = await agents(Parrot(takes_input=False))
    task, sandbox = await asked(rig, conversation=LONG)
    await deliver(rig, task, message(1))
    await answer(rig, sandbox)
    assert not sandbox.inputs
    sandbox.finish(0)
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.reason, outcome.inputs) == (task_pb2.END_REASON_PARKED, 0), "message 1 is for the next attempt"
    await rig.close()


async def test_a_message_that_comes_as_it_is_parked_waits_for_the_next_attempt(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig, conversation=TALK)
    await answer(rig, sandbox)
    await rig.until(lambda: not sandbox.input_open, within=3.0)
    await deliver(rig, task, message(1))
    sandbox.finish(0)
    await rig.gone(task)
    assert not given(sandbox)
    assert rig.report_of(task).inputs == 0


async def test_the_next_process_gives_no_message_twice(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig, conversation=LONG)
    await answer(rig, sandbox)
    await deliver(rig, task, message(1, "a"))
    await rig.crash()
    await rig.start()
    await rig.until(lambda: rig.leader.heartbeats[-1].attempts[0].inputs == 1)
    await deliver(rig, task, message(1, "a"), message(2, "b"))
    await answer(rig, sandbox)
    assert given(sandbox) == [b"a\n", b"b\n"]


async def test_a_failure_in_a_conversation_is_one(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig, conversation=LONG)
    say(sandbox, {"session": "s-1"}, {"failed": "overloaded"})
    sandbox.finish(1)
    await rig.gone(task)
    assert rig.report_of(task).reason == task_pb2.END_REASON_AGENT_FAILED


async def test_a_conversation_that_waits_on_a_drained_node_is_parked_at_once(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig, conversation=LONG)
    await answer(rig, sandbox)
    assert sandbox.input_open
    await rig.manager.set_drain(Drain.HAND_OVER)
    await rig.until(lambda: not sandbox.input_open, within=1.0)
    sandbox.finish(0)
    await rig.gone(task)
    assert rig.report_of(task).reason == task_pb2.END_REASON_PARKED


async def test_a_checkpoint_after_the_answer_says_so_and_the_next_attempt_has_nothing_to_do(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig, conversation=LONG)
    await answer(rig, sandbox)
    rig.leader.say(
        take_checkpoint=pb.TakeCheckpoint(tenant=task.tenant, task_id=task.task_id, token=task.token, request=1)
    )
    await rig.until(lambda: any(report.request for report in rig.leader.checkpoints))
    told = [(report.answered, report.final_message) for report in rig.leader.checkpoints if report.request]
    assert told == [(True, "done")]
    other = await rig.assign(
        runtime="parrot", prompt="sing", conversation=LONG, resumes=True, base=CHECKPOINT, session="s-1", answered=True
    )
    await rig.until(lambda: any(report.uid == other.uid for report in rig.leader.reports))
    outcome = rig.report_of(other)
    assert (outcome.reason, outcome.session_id) == (task_pb2.END_REASON_PARKED, "s-1")
    assert other.uid not in [uid for there in rig.host.alive.values() for uid in there.starts]


async def test_only_a_checkpoint_with_all_answers_tells_the_last_of_them(agent_rig: Rig) -> None:
    """Of what is answered in part the next attempt says the rest, and the whole."""
    rig = agent_rig
    task, sandbox = await asked(rig, conversation=LONG)
    await answer(rig, sandbox, "one")
    await deliver(rig, task, message(1))
    say(sandbox, {"says": "let me see"}, {"turn": 2})
    await rig.until(lambda: any(report.inputs == 1 for report in rig.leader.checkpoints))
    halfway = next(report for report in rig.leader.checkpoints if report.inputs == 1)
    assert (halfway.answered, halfway.final_message) == (False, "")
    say(sandbox, {"says": "well"}, {"turn": 3}, {"done": "two"})
    await rig.pass_time(0.2)
    rig.leader.say(
        take_checkpoint=pb.TakeCheckpoint(tenant=task.tenant, task_id=task.task_id, token=task.token, request=1)
    )
    await rig.until(lambda: any(report.request for report in rig.leader.checkpoints))
    last = next(report for report in rig.leader.checkpoints if report.request)
    assert (last.inputs, last.answered, last.final_message) == (1, True, "two")


async def test_a_task_that_is_no_conversation_tells_its_answer_at_its_end_alone() -> None:
    rig = await agents(Parrot(takes_input=False))
    task, sandbox = await asked(rig)
    await answer(rig, sandbox)
    rig.leader.say(
        take_checkpoint=pb.TakeCheckpoint(tenant=task.tenant, task_id=task.task_id, token=task.token, request=1)
    )
    await rig.until(lambda: any(report.request for report in rig.leader.checkpoints), within=5.0)
    last = rig.leader.checkpoints[-1]
    assert (last.answered, last.final_message) == (True, "")
    await rig.close()
