"""Self-fencing (design rule 3): the arithmetic, and what frozen attempts do."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudclaw.v1 import task_pb2
from cloudclaw_pool_manager.app.fencing import Contact
from cloudclaw_pool_manager.domain.attempt import KillReason
from cloudclaw_pool_manager.domain.timers import RunTimers
from cloudclaw_pool_manager.ports.backend import SlotPhase
from tests.unit.pool_manager.rig import Rig, settle


def contact() -> Contact:
    return Contact(grace=3.0, ttl=10, now=100.0)


def test_without_contact_the_deadline_is_in_the_past() -> None:
    assert contact().deadline() < 100.0


def test_the_deadline_is_the_earlier_of_grace_and_lease() -> None:
    there = contact()
    there.renewed(100.0)
    there.touched(101.0)
    assert there.deadline() == pytest.approx(101.0 + 3.0 - 0.5)
    there.touched(120.0)
    assert there.deadline() == pytest.approx(100.0 + 10 - 1.0)


def test_contact_counts_from_the_sending_of_the_heartbeat_that_was_acked() -> None:
    there = contact()
    there.renewed(1000.0)
    for sequence in range(1, 6):
        there.heartbeat_sent(sequence, 100.0 + sequence)
    there.heartbeat_acked(3)
    assert there.deadline() == pytest.approx(103.0 + 2.5)
    there.heartbeat_acked(2)  # late: says nothing new
    assert there.deadline() == pytest.approx(103.0 + 2.5)
    there.heartbeat_acked(5)
    assert there.deadline() == pytest.approx(105.0 + 2.5)


def test_an_ack_of_a_stream_that_broke_counts_for_nothing() -> None:
    there = contact()
    there.renewed(1000.0)
    there.heartbeat_sent(1, 150.0)
    there.session_ended()
    there.heartbeat_acked(1)
    assert there.deadline() < 100.0


def test_a_new_lease_takes_nothing_over_from_the_old_one() -> None:
    there = contact()
    there.renewed(100.0)
    there.touched(200.0)
    there.lease_replaced(150.0)
    assert there.deadline() < 100.0


def test_a_touch_is_due_after_a_second_without_acks() -> None:
    there = contact()
    assert there.needs_touch(100.0)
    there.heartbeat_sent(1, 100.0)
    there.heartbeat_acked(1)
    assert not there.needs_touch(100.9)
    assert there.needs_touch(101.0)


@given(st.lists(st.tuples(st.sampled_from(["touch", "renew", "ack"]), st.integers(0, 1000)), max_size=30))
def test_no_order_of_news_moves_the_deadline_past_what_is_proven(news: list[tuple[str, int]]) -> None:
    there = Contact(grace=3.0, ttl=10, now=0.0)
    contacts, renewals = [0], [0]
    for sequence, (kind, at) in enumerate(news):
        if kind == "touch":
            there.touched(at)
            contacts.append(at)
        elif kind == "renew":
            there.renewed(at)
            renewals.append(at)
        else:
            there.heartbeat_sent(sequence, at)
            there.heartbeat_acked(sequence)
            contacts.append(at)
    assert there.deadline() == min(max(contacts) + 2.5, max(renewals) + 9.0)


def test_timers_do_not_count_time_frozen() -> None:
    timers = RunTimers(started=0.0, run_limit=10.0, silence_limit=0.0)
    timers.freeze(5.0)
    assert timers.due(100.0) is KillReason.NONE
    timers.thaw(100.0)
    assert timers.due(104.9) is KillReason.NONE
    assert timers.due(105.0) is KillReason.RUN_TIMEOUT


def test_silence_counts_from_the_last_output_without_time_frozen() -> None:
    timers = RunTimers(started=0.0, run_limit=0.0, silence_limit=3.0)
    timers.output(10.0)
    timers.freeze(11.0)
    timers.thaw(50.0)
    assert timers.due(51.9) is KillReason.NONE
    assert timers.due(52.0) is KillReason.SILENCE_TIMEOUT
    timers.output(52.0)
    assert timers.due(54.9) is KillReason.NONE
    assert timers.due(55.0) is KillReason.SILENCE_TIMEOUT


async def test_while_the_leader_answers_nothing_freezes(rig: Rig) -> None:
    _, sandbox = await rig.running()
    await rig.pass_time(30)
    assert sandbox.phase is SlotPhase.RUNNING
    assert sandbox.deadline <= rig.clock.now + 2.5


async def test_a_node_cut_off_from_the_leader_alone_runs_on_by_touching_its_key(rig: Rig) -> None:
    task, sandbox = await rig.running()
    before = rig.kv._revision
    rig.leader.up = False
    rig.leader.cut()
    await rig.pass_time(30)
    assert sandbox.phase is SlotPhase.RUNNING
    assert 25 <= rig.kv._revision - before <= 35, "one touch a second"
    rig.leader.up = True
    await rig.until(lambda: rig.leader.connected)
    sandbox.finish(0)
    await rig.gone(task)


async def test_without_acks_on_a_stream_that_stands_the_key_is_touched(rig: Rig) -> None:
    _, sandbox = await rig.running()
    rig.leader.acks = False
    await rig.pass_time(8)
    assert sandbox.phase is SlotPhase.RUNNING
    rig.kv.outage = True
    await rig.until(lambda: sandbox.phase is SlotPhase.FROZEN, within=10)


async def test_a_minute_without_etcd_costs_waiting_and_not_work(rig: Rig) -> None:
    task, sandbox = await rig.running()
    lease = rig.state.lease_id
    rig.leader.up = False
    rig.leader.cut()
    rig.kv.outage = True
    await rig.until(lambda: sandbox.phase is SlotPhase.FROZEN, within=4)
    # A real etcd that was away keeps leases: their time starts anew with it.
    rig.kv._leases[lease].expires += 100  # type: ignore[index]
    await rig.pass_time(60)
    assert sandbox.phase is SlotPhase.FROZEN, "its orphan timer ran out although a manager was there"
    rig.kv.outage = False
    rig.leader.up = True
    await rig.until(lambda: sandbox.phase is SlotPhase.RUNNING, within=5)
    assert sandbox.thaws == 1
    sandbox.finish(0)
    await rig.gone(task)
    assert rig.report_of(task).state == task_pb2.ATTEMPT_STATE_SUCCEEDED


async def test_a_frozen_attempt_whose_key_is_gone_is_killed_and_not_reported(rig: Rig) -> None:
    task, sandbox = await rig.running()
    rig.leader.up = False
    rig.leader.cut()
    rig.kv.outage = True
    await rig.until(lambda: sandbox.phase is SlotPhase.FROZEN)
    rig.kv.outage = False
    await rig.unclaim(task.task_id)
    await rig.gone(task)
    assert sandbox.stops == [KillReason.FENCED]
    assert sandbox.thaws == 0
    rig.leader.up = True
    await rig.until(lambda: rig.leader.connected)
    assert rig.leader.reports == []


async def test_frozen_time_does_not_count_for_the_run_timeout(rig: Rig) -> None:
    timeouts = task_pb2.Timeouts()
    timeouts.run.seconds = 20
    _, sandbox = await rig.running(timeouts=timeouts)
    lease = rig.state.lease_id
    rig.leader.up = False
    rig.leader.cut()
    rig.kv.outage = True
    rig.kv._leases[lease].expires += 100  # type: ignore[index]
    await rig.pass_time(40)
    rig.kv.outage = False
    await rig.until(lambda: sandbox.phase is SlotPhase.RUNNING)
    await rig.pass_time(10)
    assert sandbox.phase is SlotPhase.RUNNING
    await rig.pass_time(10)
    assert sandbox.stops == [KillReason.RUN_TIMEOUT]


async def test_a_lost_lease_kills_everything_and_the_node_comes_back_under_a_new_one(rig: Rig) -> None:
    task, sandbox = await rig.running()
    lease = rig.state.lease_id
    assert lease
    await rig.kv.revoke(lease)
    hellos = len(rig.leader.hellos)
    await rig.until(lambda: len(rig.leader.hellos) > hellos)
    assert sandbox.stops == [KillReason.FENCED]
    assert rig.state.lease_id != lease
    assert rig.leader.hellos[-1].attempts == []
    assert rig.leader.reports == []
    await rig.gone(task)
    await settle()
    await rig.running()


async def test_a_lease_that_is_lost_while_files_are_kept_publishes_nothing(rig: Rig) -> None:
    gate = rig.workspaces.gates["snapshot"] = asyncio.Event()
    workspace = task_pb2.WorkspaceSelection(name="ws")
    task, sandbox = await rig.running(workspace=workspace)
    sandbox.finish(0)
    await rig.until(lambda: "snapshot" in rig.workspaces.waiting)
    assert rig.state.lease_id
    await rig.kv.revoke(rig.state.lease_id)
    hellos = len(rig.leader.hellos)
    await rig.until(lambda: len(rig.leader.hellos) > hellos)
    gate.set()
    await rig.gone(task)
    assert rig.leader.reports == []
    assert rig.workspaces.released == [(task.uid, None)]
