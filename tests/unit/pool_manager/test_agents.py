"""An agent on a node: its turns, its answer, its limits, and what of it survives the node's process."""

from __future__ import annotations

import asyncio

import pytest

from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_pool_manager.app.agent import ENDS_WITHIN
from cloudclaw_pool_manager.app.files import Files
from cloudclaw_pool_manager.app.manager import Behaviour
from cloudclaw_pool_manager.domain.attempt import KillReason
from cloudclaw_pool_manager.ports.runtime import Trace
from tests.support.fake_agent import Parrot, say
from tests.unit.pool_manager.agents import agents, answer, asked, probed
from tests.unit.pool_manager.rig import Rig, settle


async def test_its_input_is_closed_when_it_has_answered_and_its_end_is_a_success(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig, "sing")
    assert sandbox.launch is not None
    assert sandbox.launch.stdin == b"sing"
    await rig.pass_time(1)
    assert sandbox.input_open
    await answer(rig, sandbox, "la la")
    assert [(given.id, given.close) for given in sandbox.inputs] == [("close", True)]
    sandbox.finish(0)
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert outcome.state == task_pb2.ATTEMPT_STATE_SUCCEEDED
    assert (outcome.final_message, outcome.session_id, outcome.usage.input_tokens) == ("la la", "s-1", 7)
    assert not outcome.usage.HasField("output_tokens"), "what it did not report is absent"


async def test_an_agent_that_has_answered_and_does_not_end_is_ended_and_its_answer_counts(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig)
    await answer(rig, sandbox)
    await rig.pass_time(ENDS_WITHIN + 0.5)
    await rig.gone(task)
    assert sandbox.stops == [KillReason.ANSWERED]
    assert rig.report_of(task).state == task_pb2.ATTEMPT_STATE_SUCCEEDED
    assert rig.report_of(task).reason == task_pb2.END_REASON_COMPLETED


async def test_an_agent_that_takes_no_input_and_lingers_after_its_answer_is_ended_too() -> None:
    rig = await agents(Parrot(takes_input=False))
    task, sandbox = await asked(rig)
    await answer(rig, sandbox)
    await rig.pass_time(ENDS_WITHIN / 2)
    say(sandbox, {"says": "one thing more"})
    await rig.pass_time(ENDS_WITHIN)
    assert not sandbox.stops, "it was not its last word"
    say(sandbox, {"done": "now"})
    await rig.gone(task)
    assert sandbox.stops == [KillReason.ANSWERED]
    assert rig.report_of(task).final_message == "now"
    await rig.close()


async def test_an_agent_that_ends_without_an_answer_has_failed(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig)
    say(sandbox, {"session": "s-1"}, {"says": "hm"})
    sandbox.finish(0)
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.state, outcome.reason) == (task_pb2.ATTEMPT_STATE_FAILED, task_pb2.END_REASON_AGENT_FAILED)
    assert outcome.final_message == "hm"


async def test_its_log_says_what_it_was_asked(agent_rig: Rig) -> None:
    rig = agent_rig
    task, _ = await asked(rig, "sing")
    await rig.pass_time(0.2)
    assert b'{"cloudclaw":{"event":"prompt","text":"sing"}}\n' in rig.leader.logs[task.uid]


async def test_every_turn_is_checkpointed_with_the_session_it_holds(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig)
    await rig.pass_time(1)
    assert not rig.leader.checkpoints
    say(sandbox, {"session": "s-1"}, {"says": "first"}, {"used": 3}, {"turn": 1})
    await rig.until(lambda: len(rig.leader.checkpoints) == 1)
    [report] = rig.leader.checkpoints
    assert (report.uid, report.session_id, report.inputs, report.usage.input_tokens) == (task.uid, "s-1", 0, 3)
    say(sandbox, {"turn": 2})
    await rig.until(lambda: len(rig.leader.checkpoints) == 2)


async def test_a_checkpoint_before_its_first_word_holds_no_session(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig)
    say(sandbox, {"session": "s-1"})
    await rig.pass_time(0.2)
    rig.leader.say(
        take_checkpoint=pb.TakeCheckpoint(tenant=task.tenant, task_id=task.task_id, token=task.token, request=1)
    )
    await rig.until(lambda: len(rig.leader.checkpoints) == 1)
    assert rig.leader.checkpoints[0].session_id == ""


async def test_a_turn_whose_checkpoint_came_too_soon_after_the_last_gets_it_while_nothing_new_begins() -> None:
    rig = await agents(behaviour=Behaviour(slot_wait=2.0, turn_spacing=5.0))
    _, sandbox = await asked(rig)

    async def uploads_slowly(count: int) -> None:
        upload = rig.workspaces.gates["upload"] = asyncio.Event()
        waits = rig.workspaces.waiting["upload"] = asyncio.Event()
        await rig.until(waits.is_set, within=5.0)
        await rig.pass_time(2)
        upload.set()
        await rig.until(lambda: len(rig.leader.checkpoints) == count)

    say(sandbox, {"says": "well"}, {"turn": 1})
    await uploads_slowly(1)
    say(sandbox, {"turn": 2})
    await rig.pass_time(3)
    assert len(rig.leader.checkpoints) == 1
    await uploads_slowly(2)
    say(sandbox, {"turn": 3}, {"says": "on"})
    await rig.pass_time(8)
    assert len(rig.leader.checkpoints) == 2, "the turn after it has begun"
    await rig.close()


async def test_quick_checkpoints_follow_quick_turns() -> None:
    rig = await agents(behaviour=Behaviour(slot_wait=2.0, turn_spacing=5.0))
    _, sandbox = await asked(rig)
    for number in range(1, 6):
        say(sandbox, {"says": "on"}, {"turn": number})
        await rig.pass_time(0.3)
    assert len(rig.leader.checkpoints) == 5
    await rig.close()


async def test_no_checkpoint_is_taken_before_an_agent_wrote_its_turn_down() -> None:
    parrot = Parrot()
    parrot.settles = 1.0
    rig = await agents(parrot)
    task, sandbox = await asked(rig)
    say(sandbox, {"says": "well"}, {"turn": 1})
    await rig.pass_time(0.2)
    rig.leader.say(
        take_checkpoint=pb.TakeCheckpoint(tenant=task.tenant, task_id=task.task_id, token=task.token, request=1)
    )
    await rig.pass_time(0.6)
    assert not rig.leader.checkpoints
    await rig.until(lambda: len(rig.leader.checkpoints) == 1, within=1.0)
    await rig.pass_time(2)
    assert len(rig.leader.checkpoints) == 1, "it is the turn's too"
    await rig.close()


async def test_a_turn_is_looked_for_by_its_own_calls_and_one_without_any_waits_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def shows(files: Files, trace: Trace) -> bool:
        return trace == Trace(".parrot/s-1", b"c")

    monkeypatch.setattr(Files, "shows", shows)
    parrot = Parrot()
    parrot.settles, parrot.traces = 3.0, True
    rig = await agents(parrot)
    _, sandbox = await asked(rig)
    say(sandbox, {"session": "s-1"}, {"says": "well"}, {"turn": 1})
    await rig.until(lambda: len(rig.leader.checkpoints) == 1, within=1.0)
    say(sandbox, {"says": "it is done"}, {"answers": 2})
    await rig.pass_time(2.5)
    assert len(rig.leader.checkpoints) == 1
    await rig.until(lambda: len(rig.leader.checkpoints) == 2, within=1.0)
    await rig.close()


async def test_a_limit_of_turns_ends_it(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig, model_limits=task_pb2.ModelLimits(turns=2))
    say(sandbox, {"says": "a"}, {"turn": 1})
    await rig.pass_time(0.5)
    assert not sandbox.stops
    say(sandbox, {"says": "b"}, {"turn": 2})
    await rig.pass_time(0.5)
    assert not sandbox.stops, "its answer may be next"
    say(sandbox, {"says": "c"})
    await rig.gone(task)
    assert sandbox.stops == [KillReason.TURN_LIMIT]
    outcome = rig.report_of(task)
    assert outcome.reason == task_pb2.END_REASON_TURN_LIMIT
    assert not outcome.retryable
    assert outcome.final_message == "c"


async def test_the_last_turn_may_be_the_answer(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig, model_limits=task_pb2.ModelLimits(turns=1))
    say(sandbox, {"says": "so"})
    await answer(rig, sandbox)
    sandbox.finish(0)
    await rig.gone(task)
    assert rig.report_of(task).state == task_pb2.ATTEMPT_STATE_SUCCEEDED


async def test_the_next_process_knows_what_the_agent_said_to_the_one_before(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig)
    say(sandbox, {"session": "s-1"}, {"says": "half"}, {"used": 5})
    await rig.pass_time(0.5)
    await rig.crash()
    say(sandbox, {"done": "whole"})
    await rig.start()
    await rig.until(lambda: bool(sandbox.inputs))
    sandbox.finish(0)
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.final_message, outcome.session_id, outcome.usage.input_tokens) == ("whole", "s-1", 5)


async def test_what_a_spool_forgot_is_remembered_by_what_was_made_of_it(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig)
    say(sandbox, {"session": "s-1"}, {"says": "early"}, {"used": 5})
    sandbox.write(b"x" * (2 << 20) + b"\n")
    await rig.until(lambda: sandbox.forgotten > 1 << 20)
    assert rig.state.transcripts[task.uid]
    await rig.crash()
    await rig.start()
    say(sandbox, {"done": "late"})
    await rig.until(lambda: bool(sandbox.inputs))
    sandbox.finish(0)
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.final_message, outcome.session_id, outcome.usage.input_tokens) == ("late", "s-1", 5)
    assert task.uid not in rig.state.transcripts


async def test_a_runtime_whose_probe_fails_is_not_offered_and_says_why() -> None:
    rig = Rig()
    rig.runtimes["parrot"] = Parrot()
    await rig.start()
    await probed(rig, code=127)
    await rig.until(lambda: rig.leader.heartbeats[-1].pools[0].runtimes == ["command"])
    [status] = rig.leader.heartbeats[-1].pools[0].runtime_status
    assert (status.runtime, status.ready) == ("parrot", False)
    assert "no parrot" in status.reason
    task = await rig.assign(runtime="parrot", prompt="sing")
    await rig.until(lambda: any(report.uid == task.uid for report in rig.leader.reports))
    outcome = rig.report_of(task)
    assert outcome.reason == task_pb2.END_REASON_START_FAILED
    assert "no parrot" in outcome.message
    await rig.close()


async def test_a_runtime_that_could_not_run_is_asked_again() -> None:
    rig = Rig()
    rig.runtimes["parrot"] = Parrot()
    await rig.start()
    await probed(rig, code=127)
    await probed(rig)
    await rig.until(lambda: sorted(rig.leader.heartbeats[-1].pools[0].runtimes) == ["command", "parrot"])
    [status] = rig.leader.heartbeats[-1].pools[0].runtime_status
    assert (status.ready, status.version) == (True, "1.2.3")
    await rig.close()


async def test_a_slot_that_breaks_under_a_probe_is_replaced_and_the_probe_repeated() -> None:
    rig = Rig()
    rig.runtimes["parrot"] = Parrot()
    await rig.start()
    await rig.until(lambda: any(uid.startswith("probe-") for uid in rig.host.running()))
    rig.host.of(next(uid for uid in rig.host.running())).die()
    await rig.until(lambda: bool(rig.host.destroyed))
    await probed(rig)
    await rig.until(lambda: any(s.ready for s in rig.leader.heartbeats[-1].pools[0].runtime_status))
    await rig.close()


@pytest.mark.parametrize("fence", ["kill", "lease"])
async def test_a_fenced_agent_leaves_nothing(agent_rig: Rig, fence: str) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig)
    say(sandbox, {"session": "s-1"}, {"says": "well"})
    await settle()
    kill = pb.KillAttempt(tenant=task.tenant, task_id=task.task_id, token=task.token)
    if fence == "kill":
        rig.leader.say(kill=kill)
    else:
        await rig.manager.table.fence_all("the lease is gone")
    await rig.gone(task)
    assert sandbox.stops == [KillReason.FENCED]
    assert not [report for report in rig.leader.reports if report.uid == task.uid]
