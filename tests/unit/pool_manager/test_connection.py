"""Finding the leader, staying with it, and believing only the newest."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from cloudclaw.v1 import scheduler_pb2 as pb
from tests.unit.pool_manager.fake_leader import LEADER
from tests.unit.pool_manager.rig import Rig, settle


@pytest_asyncio.fixture
async def cold() -> AsyncIterator[Rig]:
    """A node that was never started."""
    made = Rig()
    yield made
    await made.close()


async def test_a_hello_names_what_the_node_has(rig: Rig) -> None:
    [hello] = rig.leader.hellos
    assert hello.node == "n1"
    assert hello.incarnation == 1
    assert not hello.draining
    assert [(c.tenant, c.snapshot_id) for c in hello.cached] == [("acme", "snap-cached")]
    [pool] = hello.pools
    assert (pool.pool, list(pool.runtimes), pool.backend) == ("default", ["command"], "bubblewrap")


async def test_a_replica_that_does_not_lead_names_the_one_that_does(cold: Rig) -> None:
    cold.endpoints = ["follower:1", "follower:2"]
    cold.leader.leads = {"follower:1": LEADER, "follower:2": LEADER}
    await cold.start()
    assert cold.leader.opened == ["follower:1", LEADER]


async def test_replicas_that_name_each_other_are_not_asked_in_a_tight_loop(cold: Rig) -> None:
    cold.endpoints = ["a:1"]
    cold.leader.leads = {"a:1": "b:1", "b:1": "a:1"}
    cold.launch()
    await cold.pass_time(10)
    assert 15 <= len(cold.leader.opened) <= 60


async def test_without_any_leader_all_endpoints_are_tried_in_turn(cold: Rig) -> None:
    cold.endpoints = ["a:1", "b:1"]
    cold.leader.up = False
    cold.launch()
    await cold.pass_time(5)
    assert set(cold.leader.opened) == {"a:1", "b:1"}
    assert 8 <= len(cold.leader.opened) <= 20, "the pause grows to half a second and no further"
    cold.leader.up = True
    await cold.until(lambda: cold.leader.connected, within=0.6)


async def test_heartbeats_come_at_their_interval_and_at_once_on_a_change(rig: Rig) -> None:
    await rig.pass_time(1)
    before = len(rig.leader.heartbeats)
    await rig.pass_time(10, step=0.02)
    assert 19 <= len(rig.leader.heartbeats) - before <= 21
    before = len(rig.leader.heartbeats)
    task, _ = await rig.running()
    await rig.pass_time(0.05, step=0.01)
    new = rig.leader.heartbeats[before:]
    assert new
    assert new[-1].attempts[0].uid == task.uid
    assert new[-1].attempts[0].phase == pb.ATTEMPT_PHASE_RUNNING
    assert new[-1].pools[0].idle == 1


async def test_heartbeats_carry_progress_and_resources(rig: Rig) -> None:
    _, sandbox = await rig.running()
    sandbox.write(b"x" * 1000)
    await rig.pass_time(4)
    [attempt] = rig.leader.heartbeats[-1].attempts
    assert attempt.log_end == 1000
    assert attempt.resources.memory_bytes == 1 << 20


async def test_a_stream_that_acks_nothing_is_given_up(rig: Rig) -> None:
    rig.leader.acks = False
    hellos = len(rig.leader.hellos)
    await rig.pass_time(9)
    assert len(rig.leader.hellos) == hellos
    await rig.until(lambda: len(rig.leader.hellos) > hellos, within=6)


async def test_messages_of_an_older_term_are_refused(rig: Rig) -> None:
    task, sandbox = await rig.running()
    kill = pb.KillAttempt(tenant="acme", task_id=task.task_id, token=task.token)
    rig.leader.say(term=rig.leader.term - 1, kill=kill)
    await rig.pass_time(1)
    assert sandbox.stops == []
    rig.leader.say(term=rig.leader.term + 1, kill=kill)
    await rig.gone(task)
    assert rig.state.newest_term == rig.leader.term + 1


async def test_acks_of_an_older_term_are_no_contact(rig: Rig) -> None:
    rig.leader.say(term=rig.leader.term + 1, drain=pb.SetDraining(draining=False))
    await settle()
    rig.kv.outage = True
    before = rig.contact.deadline()
    await rig.pass_time(2)
    assert rig.contact.deadline() == before


async def test_an_operators_or_leaders_drain_rejects_new_work_and_lets_the_old_end(rig: Rig) -> None:
    task, sandbox = await rig.running()
    rig.leader.say(drain=pb.SetDraining(draining=True))
    await rig.until(lambda: rig.leader.heartbeats[-1].draining)
    assert rig.serving == [True, False]
    await rig.assign()
    await rig.until(lambda: bool(rig.leader.rejects))
    sandbox.finish(0)
    await rig.gone(task)
    rig.leader.say(drain=pb.SetDraining(draining=False))
    await rig.until(lambda: not rig.leader.heartbeats[-1].draining)
    assert rig.serving == [True, False, True]
    await rig.running()


@pytest.mark.parametrize(
    "field", [{"uid": "../../etc/passwd"}, {"uid": ""}, {"token": 0}, {"tenant": "A/B"}, {"task_id": "a/b"}]
)
async def test_an_assignment_with_hostile_names_touches_nothing(rig: Rig, field: dict[str, object]) -> None:
    message = await rig.assign(say=False)
    for name, value in field.items():
        setattr(message, name, value)
    rig.leader.say(assignment=message)
    await rig.until(lambda: bool(rig.leader.rejects))
    assert rig.host.running() == []
    assert rig.state.started == {}


async def test_a_message_that_this_version_does_not_know_is_passed_over(rig: Rig) -> None:
    rig.leader.say()
    await settle()
    await rig.running()
