"""Who prints much waits, and nobody else."""

from __future__ import annotations

import pytest

from cloudclaw.agents.pacing import PIECE, SHARE, Pace, pieces


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
    turns = [pace.turn() for _ in range(8)]
    for turn in turns * 200:
        clock.work(0.01)
        await turn.rest(0.01)
    assert 16.0 / (clock.now - 100.0) == pytest.approx(SHARE, rel=0.1)


async def test_who_prints_little_never_waits_whatever_others_do() -> None:
    clock = Watched()
    pace = Pace(clock)
    loud, quiet = pace.turn(), pace.turn()
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
