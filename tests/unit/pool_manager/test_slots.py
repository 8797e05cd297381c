"""The warm slots of a pool: kept, replaced, resized, recycled, never above the cap."""

from __future__ import annotations

import asyncio

import pytest

from cloudclaw.errors import InvalidArgumentError
from cloudclaw.v1 import task_pb2
from cloudclaw_pool_manager.app.operations import Operations
from cloudclaw_pool_manager.domain.slot import SlotState, quarantine
from cloudclaw_pool_manager.ports.backend import FencedIncarnationError, SlotStatus
from tests.unit.pool_manager.rig import Rig, settle


def states(rig: Rig) -> list[SlotState]:
    return [entry.state for entry in rig.manager.templates["default"].slots.entries]


def test_the_first_failure_costs_nothing_and_repeated_ones_wait_longer() -> None:
    pauses = [quarantine(n) for n in range(12)]
    assert pauses[:2] == [0.0, 0.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 30.0


async def test_an_idle_slot_whose_supervisor_dies_is_replaced(rig: Rig) -> None:
    rig.host.alive[0].die()
    await rig.until(lambda: rig.host.provisions == [0, 1, 0])
    await settle()
    assert states(rig) == [SlotState.IDLE, SlotState.IDLE]
    entry = rig.manager.templates["default"].slots.entries[0]
    assert "gone" in entry.last_failure
    assert rig.host.peak == 2


async def test_a_slot_that_keeps_failing_is_tried_ever_more_slowly(rig: Rig) -> None:
    rig.host.broken[0] = "no more memory"
    rig.host.alive[0].die()
    await rig.pass_time(60)
    tries = rig.host.provisions.count(0) - 1
    assert 4 <= tries <= 10
    assert states(rig) == [SlotState.PROVISIONING, SlotState.IDLE]
    del rig.host.broken[0]
    await rig.until(lambda: states(rig)[0] is SlotState.IDLE)


async def test_what_slots_are_made_with_being_away_is_no_fault_of_theirs(rig: Rig) -> None:
    rig.host.away = "the engine does not answer"
    rig.host.alive[0].die()
    await rig.pass_time(60)
    entry = rig.manager.templates["default"].slots.entries[0]
    assert entry.state is SlotState.PROVISIONING
    assert entry.last_failure == "the engine does not answer"
    assert entry.failures == 1, "that of its supervisor"
    tries = len(rig.host.provisions)
    rig.host.away = ""
    await rig.pass_time(2)
    assert states(rig) == [SlotState.IDLE, SlotState.IDLE]
    assert len(rig.host.provisions) == tries + 1


async def test_a_slot_of_a_single_use_pool_is_replaced_after_its_attempt(rig: Rig) -> None:
    await rig.stop()
    rig.single_use = True
    await rig.start()
    await rig.until(lambda: states(rig) == [SlotState.IDLE, SlotState.IDLE])
    before = len(rig.host.provisions)
    task, sandbox = await rig.running()
    sandbox.finish(0)
    await rig.gone(task)
    await rig.until(lambda: len(rig.host.provisions) == before + 1)
    await rig.until(lambda: states(rig) == [SlotState.IDLE, SlotState.IDLE])
    assert rig.host.peak == 2


async def test_capacity_counts_only_slots_that_can_work(rig: Rig) -> None:
    rig.host.broken[0] = "broken"
    rig.host.alive[0].die()
    await rig.until(lambda: [(p.slots, p.idle) for p in rig.leader.heartbeats[-1].pools] == [(1, 1)])
    await rig.running()
    await rig.until(lambda: [(p.slots, p.idle) for p in rig.leader.heartbeats[-1].pools] == [(1, 0)])


async def test_a_slot_counts_against_the_cap_until_it_is_destroyed(rig: Rig) -> None:
    gate = rig.host.gates["destroy"] = asyncio.Event()
    rig.host.alive[0].die()
    await rig.pass_time(5)
    assert rig.host.provisions == [0, 1]
    assert states(rig)[0] is SlotState.DRAINING
    gate.set()
    await rig.until(lambda: len(rig.host.provisions) == 3)


async def test_resizing_down_takes_idle_slots_at_once_and_busy_ones_when_they_end() -> None:
    rig = Rig(slots=3)
    await rig.start()
    tasks = [await rig.running() for _ in range(2)]
    busy = {sandbox.number: (task, sandbox) for task, sandbox in tasks}
    assert set(busy) == {0, 1}
    rig.manager.resize("default", 1)
    await settle()
    assert rig.host.destroyed == [2]
    assert len(rig.host.running()) == 2
    task, sandbox = busy[1]
    sandbox.finish(0)
    await rig.gone(task)
    assert rig.host.destroyed == [2, 1]
    assert rig.report_of(task).state == task_pb2.ATTEMPT_STATE_SUCCEEDED
    rig.manager.resize("default", 3)
    await rig.until(lambda: states(rig).count(SlotState.IDLE) == 2)
    assert rig.host.peak == 3
    await rig.close()


async def test_resizing_above_the_hard_cap_is_refused(rig: Rig) -> None:
    with pytest.raises(InvalidArgumentError, match="at most 2"):
        rig.manager.resize("default", 3)
    assert states(rig) == [SlotState.IDLE, SlotState.IDLE]


async def test_recycling_replaces_an_idle_slot(rig: Rig) -> None:
    pid = rig.host.alive[1].pid
    Operations(rig.manager).recycle("slot-1", force=False)
    await rig.until(lambda: 1 in rig.host.alive and rig.host.alive[1].pid != pid)
    assert rig.host.destroyed == [1]


async def test_recycling_by_force_fails_the_attempt_inside(rig: Rig) -> None:
    task, sandbox = await rig.running()
    Operations(rig.manager).recycle(f"slot-{sandbox.number}", force=True)
    await rig.gone(task)
    assert rig.report_of(task).reason == task_pb2.END_REASON_SLOT_FAILED
    assert "operator" in rig.report_of(task).message


async def test_slots_of_a_smaller_pool_are_taken_down_after_a_restart(rig: Rig) -> None:
    task, sandbox = await rig.running()
    assert sandbox.number == 0
    await rig.crash()
    rig.slots = 1
    await rig.start()
    await rig.until(lambda: rig.host.destroyed == [1])
    assert rig.host.running() == [task.uid]


async def test_a_slot_that_a_newer_manager_took_ends_this_one(rig: Rig) -> None:
    """Two at once cannot be on one directory; if it ever happens, the older one stops and destroys nothing."""
    rig.host.alive[0].incarnation = 99
    rig.host.alive[0].tell()
    assert rig._task is not None
    await rig.until(rig._task.done)
    with pytest.raises(FencedIncarnationError):
        rig._task.result()
    assert rig.host.destroyed == []


class Waiter:
    """An occupant that does nothing."""

    def on_status(self, status: SlotStatus) -> None: ...

    def on_slot_failed(self, message: str) -> None: ...


async def test_who_waits_longest_gets_the_next_free_slot(rig: Rig) -> None:
    pool = rig.manager.templates["default"].slots
    first = await pool.take(Waiter(), 1)
    second = await pool.take(Waiter(), 1)
    assert first is not None
    assert second is not None
    order: list[int] = []

    async def wait(number: int) -> None:
        if await pool.take(Waiter(), 30):
            order.append(number)

    waiting = [asyncio.ensure_future(wait(number)) for number in (1, 2)]
    await settle()
    pool.give_back(second)
    await settle()
    assert order == [1]
    pool.give_back(first)
    await settle()
    assert order == [1, 2]
    await asyncio.gather(*waiting)
