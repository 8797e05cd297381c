"""Whose turn it is."""

from __future__ import annotations

import itertools

from cloudclaw_scheduler.domain.fairness import FairQueue, Waiting

_order = itertools.count(1)


def task(tenant: str, name: str, priority: int = 0, runtime: str = "command") -> Waiting:
    return Waiting(tenant, name, runtime, priority, next(_order))


def take(queue: FairQueue, *runtimes: str) -> str | None:
    found = queue.pop(runtimes or ("command",), lambda _: True)
    if found is None:
        return None
    queue.started(found.tenant)
    return found.task


def test_tenants_take_turns_whatever_they_queued() -> None:
    queue = FairQueue()
    for index in range(6):
        queue.add(task("greedy", f"g{index}"))
    for index in range(2):
        queue.add(task("modest", f"m{index}"))
    assert [take(queue) for _ in range(8)] == ["g0", "m0", "g1", "m1", "g2", "g3", "g4", "g5"]
    assert take(queue) is None


def test_the_tenant_with_the_fewest_slots_goes_first() -> None:
    queue = FairQueue()
    for _ in range(3):
        queue.started("busy")
    queue.started("idle")
    for index in range(4):
        queue.add(task("busy", f"b{index}"))
        queue.add(task("idle", f"i{index}"))
    assert [take(queue) for _ in range(4)] == ["i0", "i1", "b0", "i2"]


def test_a_slot_given_back_counts_at_once() -> None:
    queue = FairQueue()
    queue.started("a")
    queue.started("a")
    queue.started("b")
    queue.add(task("a", "a0"))
    queue.add(task("b", "b0"))
    queue.stopped("a")
    queue.stopped("a")
    assert take(queue) == "a0"


def test_priority_then_age_decide_within_a_tenant() -> None:
    queue = FairQueue()
    for name, priority in (("old", 0), ("low", -5), ("high", 9), ("young", 0)):
        queue.add(task("t", name, priority))
    assert [take(queue) for _ in range(4)] == ["high", "old", "young", "low"]


def test_another_tenants_priority_gains_nothing() -> None:
    queue = FairQueue()
    queue.started("loud")
    queue.add(task("loud", "loud", 100))
    queue.add(task("quiet", "quiet", -100))
    assert take(queue) == "quiet"


def test_a_task_taken_out_is_not_given_out() -> None:
    queue = FairQueue()
    queue.add(task("t", "one"))
    queue.add(task("t", "two"))
    assert queue.discard(("t", "one"))
    assert not queue.discard(("t", "one"))
    assert take(queue) == "two"
    assert len(queue) == 0


def test_only_runtimes_with_a_free_node_are_given_out() -> None:
    queue = FairQueue()
    queue.add(task("t", "agent", 10, "claude-code"))
    queue.add(task("t", "plain"))
    assert take(queue) == "plain"
    assert take(queue) is None
    assert take(queue, "command", "claude-code") == "agent"


def test_a_task_that_does_not_fit_is_left_to_its_owner() -> None:
    queue = FairQueue()
    queue.add(task("t", "blocked"))
    queue.add(task("t", "free"))
    found = queue.pop(("command",), lambda waiting: waiting.task != "blocked")
    assert found is not None
    assert found.task == "free"
    assert ("t", "blocked") not in queue


def test_a_task_that_comes_back_is_given_out_once() -> None:
    queue = FairQueue()
    waiting = task("t", "again")
    queue.add(waiting)
    queue.discard(waiting.key)
    queue.add(waiting)
    assert take(queue) == "again"
    assert take(queue) is None


def test_a_hundred_thousand_tasks_leave_no_trace_in_a_step() -> None:
    queue = FairQueue()
    for index in range(100_000):
        queue.add(task(f"t{index % 50}", f"x{index}"))
    steps = 0

    def fits(_: Waiting) -> bool:
        nonlocal steps
        steps += 1
        return True

    for _ in range(1000):
        assert queue.pop(("command",), fits) is not None
    assert steps == 1000
