"""Who prints much waits, and nobody else."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Sequence
from functools import partial

import pytest

from cloudclaw.agents.pacing import PIECE, SHARE, TENANTS, Pace, pieces


class Watched:
    """A clock that goes on by what is slept or worked."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept = 0.0

    def wall(self) -> float:
        return self.now

    def boottime(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds

    def work(self, seconds: float) -> float:
        self.now += seconds
        return seconds


async def test_who_prints_without_end_gets_a_share_of_the_time() -> None:
    clock = Watched()
    turn = Pace(clock).turn()
    worked = 0.0
    for _ in range(1000):
        worked += clock.work(0.01)
        await turn.rest(0.01)
    assert worked / (clock.now - 100.0) == pytest.approx(SHARE, rel=0.05)


async def test_many_of_them_share_it() -> None:
    clock = Watched()
    pace = Pace(clock)
    turns = [pace.turn("loud") for _ in range(8)]
    for turn in turns * 200:
        clock.work(0.01)
        await turn.rest(0.01)
    assert 16.0 / (clock.now - 100.0) == pytest.approx(SHARE, rel=0.1)


async def test_who_prints_little_never_waits_whatever_others_do() -> None:
    clock = Watched()
    pace = Pace(clock)
    loud, quiet = pace.turn("loud"), pace.turn("quiet")
    for _ in range(100):
        await loud.rest(clock.work(0.02))
        slept = clock.slept
        await quiet.rest(clock.work(0.001))
        assert clock.slept == slept


def test_pieces_are_all_of_it() -> None:
    data = bytes(range(256)) * 200
    assert b"".join(pieces(data)) == data
    assert max(map(len, pieces(data))) == PIECE
    assert list(pieces(b"")) == []


class Simulated(Watched):
    """A clock on which many wait at once: all whose time has come are woken together, as an event loop does."""

    def __init__(self) -> None:
        super().__init__()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = itertools.count()

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._count), woken))
        await woken

    async def settle(self) -> None:
        """Until everybody sleeps."""
        for _ in range(20):
            await asyncio.sleep(0)

    def wake(self) -> bool:
        """Go on to the next that sleeps, and wake all who are due; False when nobody sleeps."""
        if not self._sleepers:
            return False
        self.now = max(self.now, self._sleepers[0][0])
        while self._sleepers and self._sleepers[0][0] <= self.now:
            heapq.heappop(self._sleepers)[2].set_result(None)
        return True


async def read(pace: Pace, clock: Watched, tenant: str, costs: Sequence[float]) -> None:
    """What a reader does, with pieces that cost so many seconds."""
    turn = pace.turn(tenant)
    for cost in costs:
        assert await turn.work(partial(clock.work, cost)) == cost


async def test_many_readers_that_find_something_costly_at_once_do_it_one_by_one() -> None:
    clock = Simulated()
    pace = Pace(clock)
    costs = [*[0.0002] * 5, 0.2, 0.0002]
    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(read(pace, clock, "loud", costs))
        await clock.settle()
        while clock.wake():
            before = clock.now
            await clock.settle()
            assert clock.now - before < 0.3, "an event loop would have stood still for all of it"
    assert clock.now > 100.0 + 50 * 0.2 / SHARE * 0.9


async def test_a_tenant_that_reads_much_takes_nothing_of_another_that_does() -> None:
    clock = Simulated()
    pace = Pace(clock)
    async with asyncio.TaskGroup() as group:
        crowd = [group.create_task(read(pace, clock, "crowd", [0.02] * 50)) for _ in range(40)]
        other = group.create_task(read(pace, clock, "other", [0.02] * 50))
        await clock.settle()
        while not other.done():
            assert clock.wake()
            await clock.settle()
        took = clock.now - 100.0
        for task in crowd:
            task.cancel()
    # A second of work at half of the share; behind everything that the others do it would be three minutes.
    assert took < 1.0 / (SHARE / 2) * 1.5


async def test_a_reader_that_goes_and_comes_again_has_not_begun_anew() -> None:
    clock = Watched()
    pace = Pace(clock)
    for _ in range(100):
        await pace.turn("loud").work(lambda: clock.work(0.04))
    assert 4.0 / (clock.now - 100.0) == pytest.approx(SHARE, rel=0.1)
    assert pace.turn("other") is not pace.turn("loud")


def test_tenants_are_not_remembered_without_end() -> None:
    pace = Pace(Watched())
    first = pace.turn("0")
    for number in range(TENANTS + 1):
        pace.turn(str(number))
    assert pace.turn("0") is not first
