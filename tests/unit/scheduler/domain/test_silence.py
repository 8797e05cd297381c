"""On-time ticks, and nothing else, make a node silent."""

from __future__ import annotations

from cloudclaw_scheduler.domain.silence import GRACE, PERIOD, Suspicion, TickClock, ticks

NEEDED = ticks(GRACE)


def test_a_tick_that_comes_late_by_a_second_is_late() -> None:
    watch = TickClock(100.0)
    assert watch.tick(100.25)
    assert watch.tick(101.45)
    assert not watch.tick(102.75)
    assert watch.tick(103.0)


def test_the_grace_is_twelve_ticks() -> None:
    assert NEEDED * PERIOD == GRACE
    suspicion = Suspicion()
    suspicion.seen(7)
    assert [suspicion.tick(True, 7, NEEDED) for _ in range(NEEDED)] == [False] * (NEEDED - 1) + [True]


def test_nothing_is_counted_before_the_nodes_key_was_read() -> None:
    suspicion = Suspicion()
    assert not any(suspicion.tick(True, 7, NEEDED) for _ in range(100))


def test_a_late_tick_starts_the_wait_anew() -> None:
    suspicion = Suspicion()
    suspicion.seen(7)
    for _ in range(NEEDED - 1):
        suspicion.tick(True, 7, NEEDED)
    assert not suspicion.tick(False, 7, NEEDED)
    assert [suspicion.tick(True, 7, NEEDED) for _ in range(NEEDED)][-2:] == [False, True]


def test_a_touched_key_starts_the_wait_anew() -> None:
    suspicion = Suspicion()
    suspicion.seen(7)
    for _ in range(NEEDED - 1):
        suspicion.tick(True, 7, NEEDED)
    assert not suspicion.tick(True, 8, NEEDED)
    assert suspicion.version == 8
    assert [suspicion.tick(True, 8, NEEDED) for _ in range(NEEDED)][-2:] == [False, True]


def test_a_mirror_that_lags_behind_the_read_is_no_sign_of_life() -> None:
    suspicion = Suspicion()
    suspicion.seen(7)
    assert [suspicion.tick(True, 5, NEEDED) for _ in range(NEEDED)][-1]
