"""Who may write next."""

from __future__ import annotations

from cloudclaw_scheduler.domain.parking import Parking

WS = ("t", "ws")


def key(name: str) -> tuple[str, str]:
    return ("t", name)


def test_a_free_workspace_is_kept_for_the_first_that_asks() -> None:
    parking = Parking()
    assert parking.may_go(WS, key("a"), "")
    assert parking.may_go(WS, key("a"), "")
    assert not parking.may_go(WS, key("b"), "")
    assert parking.may_go(("t", "other"), key("b"), "")


def test_the_holder_goes_again_and_nobody_else() -> None:
    parking = Parking()
    assert parking.may_go(WS, key("a"), "a")
    assert not parking.may_go(WS, key("b"), "a")
    assert not parking.may_go(WS, key("b"), "user:upload")


def test_a_release_lets_the_best_go_and_keeps_the_workspace_for_it() -> None:
    parking = Parking()
    parking.park(WS, key("young"), 0, 9)
    parking.park(WS, key("old"), 0, 1)
    parking.park(WS, key("urgent"), 5, 20)
    assert parking.next(WS) == key("urgent")
    assert parking.next(WS) is None
    assert not parking.may_go(WS, key("old"), "")
    parking.taken(WS)
    assert parking.next(WS) == key("old")
    assert key("young") in parking


def test_one_that_goes_away_passes_the_workspace_on() -> None:
    parking = Parking()
    parking.park(WS, key("a"), 0, 1)
    parking.park(WS, key("b"), 0, 2)
    assert parking.next(WS) == key("a")
    assert parking.gone(WS, key("a"))
    assert parking.next(WS) == key("b")


def test_one_that_is_canceled_while_parked_is_not_let_go() -> None:
    parking = Parking()
    parking.park(WS, key("a"), 0, 1)
    assert not parking.gone(WS, key("a"))
    assert parking.next(WS) is None
    assert len(parking) == 0
