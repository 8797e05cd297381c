"""A pool-manager that comes back: after a crash, a stop, or a lease that ended meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Put
from cloudclaw.coordination.records import NodeRecord, decode, encode
from cloudclaw.errors import PreconditionError
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_pool_manager.app.manager import Behaviour
from cloudclaw_pool_manager.domain.attempt import KillReason
from cloudclaw_pool_manager.ports.backend import SlotPhase
from cloudclaw_pool_manager.ports.state import Drain
from tests.unit.pool_manager.rig import NODE, Rig, settle

EXCLUSIVE = task_pb2.WorkspaceSelection(name="ws", mode=task_pb2.WORKSPACE_MODE_EXCLUSIVE)


@pytest_asyncio.fixture
async def cold() -> AsyncIterator[Rig]:
    """A node that was never started."""
    made = Rig()
    yield made
    await made.close()


async def test_a_running_attempt_goes_on_and_loses_no_byte_of_log(rig: Rig) -> None:
    task, sandbox = await rig.running()
    sandbox.write(b"one ")
    await rig.pass_time(1)
    await rig.crash()
    sandbox.write(b"two ")
    await rig.start()
    sandbox.write(b"three")
    sandbox.finish(0)
    await rig.gone(task)
    assert sandbox.starts == [task.uid]
    assert bytes(rig.leader.logs[task.uid]) == b"one two three"
    assert rig.report_of(task).state == task_pb2.ATTEMPT_STATE_SUCCEEDED
    assert [a.uid for a in rig.leader.hellos[-1].attempts] == [task.uid]
    assert rig.host.provisions == [0, 1], "warm slots are adopted, not replaced"


async def test_every_process_has_a_higher_incarnation(rig: Rig) -> None:
    seen = []
    for _ in range(3):
        entry = await rig.kv.get(keys.node(NODE))
        assert entry is not None
        assert rig.leader.hellos[-1].incarnation == decode(entry.value, NodeRecord).incarnation
        seen.append((rig.leader.hellos[-1].incarnation, max(s.incarnation for s in rig.host.alive.values())))
        await rig.crash()
        await rig.start()
    assert seen == sorted(set(seen))
    assert len({slots for _, slots in seen}) == 3


async def test_an_attempt_that_ended_meanwhile_is_saved_and_reported(rig: Rig) -> None:
    task, sandbox = await rig.running(workspace=EXCLUSIVE)
    await rig.crash()
    sandbox.write(b"last words")
    sandbox.finish(0)
    await rig.start()
    await rig.gone(task)
    assert rig.report_of(task).HasField("snapshot")
    assert bytes(rig.leader.logs[task.uid]) == b"last words"


async def test_a_crash_while_files_are_kept_saves_them_again_under_the_same_name(rig: Rig) -> None:
    task, sandbox = await rig.running(workspace=EXCLUSIVE)
    rig.leader.decides = False
    sandbox.finish(0)
    await rig.until(lambda: bool(rig.leader.reports))
    await rig.crash()
    rig.leader.decides = True
    await rig.start()
    await rig.gone(task)
    assert len(rig.workspaces.snapshots) == 2
    assert len(set(rig.workspaces.snapshots)) == 1
    assert len({r.outcome.snapshot.snapshot_id for r in rig.leader.reports}) == 1
    assert sandbox.phase is SlotPhase.IDLE


async def test_a_crash_before_the_start_leaves_the_attempt_to_the_leader(rig: Rig) -> None:
    rig.workspaces.gates["checkout"] = asyncio.Event()
    task = await rig.assign()
    await rig.until(lambda: "checkout" in rig.workspaces.waiting)
    await rig.crash()
    rig.workspaces.gates.clear()
    await rig.start()
    assert rig.leader.hellos[-1].attempts == []
    assert rig.leader.reports == []
    rig.leader.say(assignment=task)
    await rig.until(lambda: task.uid in rig.host.running())


async def test_a_crash_between_the_note_and_the_start_leaves_it_to_the_leader_too(rig: Rig) -> None:
    for supervisor in rig.host.alive.values():
        supervisor.gates["start"] = asyncio.Event()
    task = await rig.assign()
    await rig.until(lambda: task.uid in rig.state.started)
    await rig.crash()
    for supervisor in rig.host.alive.values():
        supervisor.gates.clear()
    await rig.start()
    assert rig.leader.hellos[-1].attempts == []
    assert rig.state.started == {}
    rig.leader.say(assignment=task)
    await rig.until(lambda: task.uid in rig.host.running())


async def test_an_attempt_whose_slot_is_gone_is_reported_as_such(rig: Rig) -> None:
    task, sandbox = await rig.running()
    await rig.crash()
    sandbox.die()
    await rig.start()
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.reason, outcome.retryable) == (task_pb2.END_REASON_SLOT_FAILED, True)
    await rig.until(lambda: len(rig.host.alive) == 2)
    assert rig.workspaces.trees == {}, "its files lie there until the next start"
    assert rig.state.started == {}


async def test_an_attempt_whose_slot_is_gone_is_reported_again_after_another_crash(rig: Rig) -> None:
    task, sandbox = await rig.running()
    await rig.crash()
    sandbox.die()
    rig.leader.decides = False
    await rig.start()
    await rig.until(lambda: bool(rig.leader.reports))
    await rig.crash()
    rig.leader.reports.clear()
    rig.leader.decides = True
    await rig.start()
    await rig.gone(task)
    assert rig.report_of(task).reason == task_pb2.END_REASON_SLOT_FAILED


async def test_an_attempt_that_was_given_away_meanwhile_is_killed(rig: Rig) -> None:
    lost, sandbox = await rig.running()
    kept, other = await rig.running()
    await rig.crash()
    await rig.unclaim(lost.task_id)
    await rig.start()
    assert sandbox.stops == [KillReason.FENCED]
    assert sandbox.phase is SlotPhase.IDLE
    assert rig.host.running() == [kept.uid]
    assert other.stops == []
    assert [a.uid for a in rig.leader.hellos[-1].attempts] == [kept.uid]
    assert rig.leader.reports == []
    assert rig.workspaces.swept[-1] == {kept.uid}


async def test_an_attempt_claimed_again_under_a_new_token_is_killed(rig: Rig) -> None:
    old, sandbox = await rig.running(task="task-x")
    await rig.crash()
    await rig.unclaim("task-x")
    await rig.claim("task-x", old.uid)
    await rig.start()
    assert sandbox.stops == [KillReason.FENCED]


async def test_when_the_lease_ended_meanwhile_everything_is_killed_before_registering(rig: Rig) -> None:
    task, sandbox = await rig.running()
    lease = rig.state.lease_id
    assert lease
    await rig.crash()
    await rig.kv.revoke(lease)
    gate = sandbox.gates["stop"] = asyncio.Event()
    launched = rig.launch()
    await rig.pass_time(2)
    assert await rig.kv.get(keys.node(NODE)) is None, "registered while its processes may be alive"
    gate.set()
    await rig.until(rig.manager.ready.is_set)
    assert not launched.done()
    assert rig.host.running() == []
    assert rig.state.lease_id not in (None, lease)
    assert rig.state.started == {}
    assert rig.leader.reports == []
    assert task.uid not in rig.workspaces.trees


async def test_a_restart_while_etcd_is_away_keeps_the_attempts_waiting(rig: Rig) -> None:
    task, sandbox = await rig.running()
    lease = rig.state.lease_id
    await rig.crash()
    rig.kv.outage = True
    rig.kv._leases[lease].expires += 200  # type: ignore[index]
    rig.launch()
    await rig.until(lambda: sandbox.phase is SlotPhase.FROZEN)
    await rig.pass_time(60)
    assert sandbox.phase is SlotPhase.FROZEN
    rig.kv.outage = False
    await rig.until(lambda: sandbox.phase is SlotPhase.RUNNING)
    sandbox.finish(0)
    await rig.gone(task)
    assert rig.report_of(task).state == task_pb2.ATTEMPT_STATE_SUCCEEDED


async def test_an_adopted_attempt_can_be_canceled(rig: Rig) -> None:
    task, sandbox = await rig.running()
    await rig.crash()
    await rig.start()
    rig.leader.say(cancel=pb.CancelAttempt(tenant="acme", task_id=task.task_id, token=task.token))
    await rig.gone(task)
    assert sandbox.stops == [KillReason.CANCELED]
    assert rig.report_of(task).state == task_pb2.ATTEMPT_STATE_CANCELED


async def test_stopping_leaves_the_slots_running_to_be_adopted(rig: Rig) -> None:
    task, sandbox = await rig.running()
    await rig.stop()
    assert rig.host.running() == [task.uid]
    assert rig.serving[-1] is False
    assert await rig.kv.get(keys.node(NODE)) is not None
    await rig.start()
    sandbox.finish(0)
    await rig.gone(task)


async def test_stopping_for_good_ends_attempts_slots_and_lease() -> None:
    rig = Rig(behaviour=Behaviour(stop_slots=True, drain_grace=3.0))
    await rig.start()
    quick, first = await rig.running()
    slow, second = await rig.running()
    rig._stop.set()
    await settle()
    first.finish(0)
    await rig.gone(quick)
    assert rig.report_of(quick).state == task_pb2.ATTEMPT_STATE_SUCCEEDED
    await rig.stop()
    assert second.stops == [KillReason.FENCED]
    assert rig.host.alive == {}
    assert await rig.kv.get(keys.node(NODE)) is None
    assert slow.uid not in [r.uid for r in rig.leader.reports]


async def test_a_node_id_that_another_living_lease_holds_is_refused(cold: Rig) -> None:
    other = await cold.kv.grant(10)
    record = NodeRecord(node=NODE, address="elsewhere:1", incarnation=4)
    await cold.kv.txn([], [Put(keys.node(NODE), encode(record), other)])
    with pytest.raises(PreconditionError, match="another pool-manager") as refused:
        await cold.launch()
    assert refused.value.reason == "NODE_ID_TAKEN"
    assert cold.host.provisions == []
    assert set(cold.kv._leases) == {other}, "it left a lease behind"
    entry = await cold.kv.get(keys.node(NODE))
    assert entry is not None
    assert entry.lease == other


async def test_a_refused_manager_kills_nothing_of_what_it_finds(rig: Rig) -> None:
    """A directory was moved, or an id reused: what runs there is for its own node to judge."""
    _, sandbox = await rig.running()
    await rig.crash()
    lease = rig.state.lease_id
    assert lease
    await rig.kv.revoke(lease)
    other = await rig.kv.grant(10)
    await rig.kv.txn([], [Put(keys.node(NODE), encode(NodeRecord(node=NODE, address="x:1", incarnation=9)), other)])
    with pytest.raises(PreconditionError):
        await rig.launch()
    assert sandbox.stops == []


async def test_a_drained_node_stays_drained_over_a_restart(rig: Rig) -> None:
    await rig.manager.set_drain(Drain.FINISH)
    await rig.crash()
    await rig.start()
    assert rig.leader.hellos[-1].draining
    assert rig.serving[-1] is False
    await rig.assign()
    await rig.until(lambda: bool(rig.leader.rejects))


async def test_a_leader_of_an_older_term_is_not_believed_after_a_restart_either(rig: Rig) -> None:
    assert rig.state.newest_term == rig.leader.term
    await rig.crash()
    rig.leader.term -= 1
    rig.launch()
    await rig.until(lambda: rig.leader.hellos[-1].incarnation == rig.node.incarnation)
    await rig.pass_time(5)
    assert not rig.leader.heartbeats or rig.leader.heartbeats[-1].sequence <= 20
    beats = len(rig.leader.heartbeats)
    await rig.pass_time(5)
    assert len(rig.leader.heartbeats) == beats, "heartbeats went to a leader of the past"
