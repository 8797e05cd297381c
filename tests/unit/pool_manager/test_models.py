"""Agents' way to models: attached while they run, counted, limited; warm slots."""

from __future__ import annotations

import asyncio

import pytest

from cloudclaw.agents.events import MOST
from cloudclaw.v1 import task_pb2
from cloudclaw_pool_manager.app.operations import Operations
from cloudclaw_pool_manager.domain.attempt import KillReason, Limits
from cloudclaw_pool_manager.ports.gateway import LimitKind, ModelLimits
from tests.support.fake_agent import KEY, Parrot
from tests.support.fake_gateway import FakeGateway
from tests.unit.pool_manager.agents import agents, answer, asked, probed
from tests.unit.pool_manager.rig import Rig


async def with_gateway(parrot: Parrot | None = None, **of_rig: object) -> tuple[Rig, FakeGateway]:
    gateway = FakeGateway()
    rig = Rig()
    rig.host.egress = True
    rig.runtimes["parrot"] = parrot or Parrot()
    rig.models = gateway
    for name, value in of_rig.items():
        setattr(rig, name, value)
    await rig.start()
    await probed(rig)
    return rig, gateway


async def test_an_agent_is_attached_with_its_keys_and_limits_and_detached_at_its_end() -> None:
    rig, gateway = await with_gateway()
    limits = task_pb2.ModelLimits(requests=9, tokens=1000, spend_usd=0.5)
    used = task_pb2.ModelUse(requests=2, output_tokens=5)
    task, sandbox = await asked(rig, model_limits=limits, model_keys={"anthropic": "v1:abc"}, model_use=used)
    await rig.until(lambda: task.uid in gateway.attached)
    there = gateway.attached[task.uid]
    assert (there.tenant, there.task, there.attempt) == (task.tenant, task.task_id, 1)
    assert there.keys == {"anthropic": "v1:abc"}
    assert there.limits == ModelLimits(9, 1000, 0.5)
    gateway.spend(task.uid, requests=1, output_tokens=7)
    await answer(rig, sandbox)
    sandbox.finish(0)
    await rig.gone(task)
    assert task.uid not in gateway.attached
    outcome = rig.report_of(task)
    assert (outcome.model_use.requests, outcome.model_use.output_tokens) == (1, 7), "of this attempt alone"
    await rig.close()


async def test_a_program_that_is_no_agent_has_no_way_out() -> None:
    rig, gateway = await with_gateway()
    task, _ = await rig.running("sh")
    await rig.pass_time(1)
    assert task.uid not in gateway.attached
    await rig.close()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (LimitKind.REQUESTS, task_pb2.END_REASON_REQUEST_LIMIT),
        (LimitKind.TOKENS, task_pb2.END_REASON_TOKEN_LIMIT),
        (LimitKind.SPEND, task_pb2.END_REASON_SPEND_LIMIT),
    ],
)
async def test_a_limit_on_models_ends_it_by_its_name(kind: LimitKind, reason: task_pb2.EndReason) -> None:
    rig, gateway = await with_gateway()
    task, _ = await asked(rig)
    await rig.until(lambda: task.uid in gateway.attached)
    gateway.reach(task.uid, kind)
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.reason, outcome.retryable) == (reason, False)
    await rig.close()


async def test_a_gateway_that_comes_back_is_told_of_all_that_runs() -> None:
    rig, gateway = await with_gateway()
    task, sandbox = await asked(rig)
    await rig.until(lambda: task.uid in gateway.attached)
    gateway.spend(task.uid, requests=3)
    await rig.pass_time(0.2)
    gateway.die()
    other, _ = await asked(rig)
    await rig.pass_time(1)
    assert not sandbox.stops, "its calls wait"
    gateway.come_back()
    await rig.until(lambda: set(gateway.attached) == {task.uid, other.uid})
    assert gateway.attached[task.uid].used.requests == 3, "it has forgotten what was used"
    await rig.close()


async def test_the_next_process_attaches_what_it_adopts_and_drops_the_rest() -> None:
    rig, gateway = await with_gateway()
    task, _ = await asked(rig)
    await rig.until(lambda: task.uid in gateway.attached)
    await rig.crash()
    gateway.attached["att-gone"] = gateway.attached[task.uid]
    gateway.listeners["att-gone"] = gateway.uses["att-gone"] = 0  # type: ignore[assignment]
    rig.models = fresh = FakeGateway()
    fresh.attached, fresh.listeners, fresh.uses = gateway.attached, gateway.listeners, gateway.uses
    await rig.start()
    await rig.until(lambda: ("sync", task.uid) in fresh.calls)
    assert set(fresh.attached) == {task.uid}
    await rig.close()


async def test_an_agent_without_a_listener_runs_and_cannot_call() -> None:
    rig, gateway = await with_gateway()
    rig.host.egress = False
    for there in rig.host.alive.values():
        there.egress = False
    task, sandbox = await asked(rig)
    await answer(rig, sandbox)
    sandbox.finish(0)
    await rig.gone(task)
    assert rig.report_of(task).state == task_pb2.ATTEMPT_STATE_SUCCEEDED
    assert not gateway.attached
    await rig.close()


# -- warm --


async def test_idle_slots_are_warmed_once_the_probe_is_answered_and_a_task_goes_on_there() -> None:
    rig = await agents(Parrot(warm=True), warm="parrot")
    await rig.until(lambda: all(there.warm == "ready" for there in rig.host.alive.values()))
    assert [there.warm_key for there in rig.host.alive.values()] == [KEY, KEY]
    views = Operations(rig.manager)
    assert [await views.warmth(view) for view in views.slots()] == [("parrot", 1 << 20)] * 2
    task, sandbox = await asked(rig, "sing")
    assert sandbox.went_on_warm
    await answer(rig, sandbox)
    sandbox.finish(0)
    await rig.gone(task)
    await rig.until(lambda: sandbox.warm == "ready", within=2.0)
    await rig.close()


@pytest.mark.parametrize("why", [{"resumes": True, "session": "s-0"}, {"number": 2}])
async def test_a_task_that_cannot_join_and_one_that_is_tried_again_start_cold(why: dict[str, object]) -> None:
    rig = await agents(Parrot(warm=True), warm="parrot")
    await rig.until(lambda: all(there.warm == "ready" for there in rig.host.alive.values()))
    _, sandbox = await asked(rig, "do it", **why)
    assert not sandbox.went_on_warm
    await rig.close()


async def test_other_tasks_get_cold_slots_where_there_are_some() -> None:
    rig = await agents(Parrot(warm=True), warm="parrot", slots=2)
    await rig.until(lambda: all(there.warm == "ready" for there in rig.host.alive.values()))
    cold = rig.host.alive[1]
    cold.gates["warm"] = asyncio.Event()
    cold.warmed("it died")
    await rig.pass_time(0.2)
    _, sandbox = await rig.running("sh")
    assert sandbox is cold
    await rig.close()


async def test_warm_programs_that_fail_are_given_up_for_a_while() -> None:
    rig = await agents(Parrot(warm=True), warm="parrot", slots=1)
    there = rig.host.alive[0]
    for _ in range(5):
        if there.warm == "ready":
            there.warmed("it died")
        await rig.pass_time(0.5)
    assert len(there.warmings) == 3
    await rig.pass_time(60)
    assert len(there.warmings) == 4
    there.warmed("it died")
    task, sandbox = await asked(rig)
    assert not sandbox.went_on_warm
    await answer(rig, sandbox)
    sandbox.finish(0)
    await rig.gone(task)
    await rig.close()


async def test_a_pool_with_too_little_memory_is_not_warmed() -> None:
    rig = await agents(Parrot(warm=True), warm="parrot", limits=Limits(memory_bytes=1 << 19))
    await rig.pass_time(1)
    assert not any(there.warmings for there in rig.host.alive.values())
    await rig.close()


async def test_an_agent_that_died_while_it_waited_is_started_cold() -> None:
    rig = await agents(Parrot(warm=True), warm="parrot", slots=1)
    await rig.until(lambda: rig.host.alive[0].warm == "ready")
    rig.host.alive[0].warm = ""  # and nobody has been told yet
    _, sandbox = await asked(rig)
    assert not sandbox.went_on_warm
    assert KillReason.ANSWERED not in sandbox.stops
    await rig.close()


async def test_an_agent_whose_slot_breaks_is_detached() -> None:
    rig, gateway = await with_gateway()
    task, sandbox = await asked(rig)
    await rig.until(lambda: task.uid in gateway.attached)
    gateway.spend(task.uid, requests=2)
    sandbox.die()
    await rig.gone(task)
    assert task.uid not in gateway.attached
    outcome = rig.report_of(task)
    assert (outcome.reason, outcome.model_use.requests) == (task_pb2.END_REASON_SLOT_FAILED, 2)
    await rig.close()


async def test_a_process_that_stops_leaves_its_agents_attached() -> None:
    rig, gateway = await with_gateway()
    task, _ = await asked(rig)
    await rig.until(lambda: task.uid in gateway.attached)
    await rig.stop()
    assert task.uid in gateway.attached
    assert ("detach", task.uid) not in gateway.calls


async def test_a_gateway_that_was_started_anew_takes_back_nothing_that_was_used() -> None:
    """The agent ends before it is attached there: that gateway has never heard of it."""
    rig, gateway = await with_gateway()
    used = task_pb2.ModelUse(requests=5, output_tokens=50)
    task, sandbox = await asked(rig, model_use=used)
    other, other_sandbox = await asked(rig, model_use=used)
    await rig.until(lambda: {task.uid, other.uid} <= set(gateway.attached))
    gateway.spend(task.uid, requests=2, output_tokens=20)
    await rig.pass_time(0.2)
    gateway.die()
    await rig.pass_time(0.2)
    gateway.away = False  # it answers, and has told nobody that it is back
    for agent in (sandbox, other_sandbox):
        await answer(rig, agent)
        agent.finish(0)
    await rig.gone(task)
    await rig.gone(other)
    outcome = rig.report_of(task)
    assert (outcome.model_use.requests, outcome.model_use.output_tokens) == (2, 20)
    assert rig.report_of(other).model_use == task_pb2.ModelUse(), "nothing of it is known beyond what it began with"
    await rig.close()


async def test_counts_that_no_message_can_carry_are_told_as_near_as_it_can() -> None:
    rig, gateway = await with_gateway()
    task, sandbox = await asked(rig)
    await rig.until(lambda: task.uid in gateway.attached)
    gateway.spend(task.uid, requests=2**70, output_tokens=-5, spend_usd=-0.5)
    await answer(rig, sandbox)
    sandbox.finish(0)
    await rig.gone(task)
    assert rig.report_of(task).model_use == task_pb2.ModelUse(requests=MOST)
    await rig.close()


async def test_an_agent_that_ended_before_it_was_adopted_is_detached_and_counted() -> None:
    rig, gateway = await with_gateway()
    task, sandbox = await asked(rig)
    await rig.until(lambda: task.uid in gateway.attached)
    await rig.crash()
    gateway.spend(task.uid, requests=3, output_tokens=30)
    await answer(rig, sandbox)
    sandbox.finish(0)
    rig.models = fresh = FakeGateway()
    fresh.attached, fresh.listeners, fresh.uses = gateway.attached, gateway.listeners, gateway.uses
    await rig.start()
    await rig.gone(task)
    assert task.uid not in fresh.attached
    outcome = rig.report_of(task)
    assert outcome.state == task_pb2.ATTEMPT_STATE_SUCCEEDED
    assert (outcome.model_use.requests, outcome.model_use.output_tokens) == (3, 30)
    await rig.close()


async def test_a_probe_that_its_process_left_behind_is_killed_and_asked_anew() -> None:
    rig, _ = await with_gateway()
    await rig.crash()
    launched = rig.launch()
    await rig.until(lambda: any(uid.startswith("probe-") for uid in rig.host.running()))
    left = next(uid for uid in rig.host.running() if uid.startswith("probe-"))
    await rig.crash()
    assert launched.done()
    await rig.start()
    await rig.until(lambda: left not in rig.host.running())
    await probed(rig)
    task, _ = await asked(rig)
    assert task.uid in rig.host.running()
    await rig.close()


async def test_an_agent_that_its_process_left_waiting_takes_the_next_task() -> None:
    rig = await agents(Parrot(warm=True), warm="parrot")
    await rig.until(lambda: all(there.warm == "ready" for there in rig.host.alive.values()))
    await rig.crash()
    await rig.start()
    await probed(rig)
    await rig.until(lambda: all(there.warm == "ready" for there in rig.host.alive.values()))
    _, sandbox = await asked(rig)
    assert sandbox.went_on_warm
    assert rig.host.provisions == [0, 1]
    await rig.close()
