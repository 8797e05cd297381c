"""Which snapshots retention lets go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloudclaw_workspace.domain.retention import DAY, Retention, Version, surplus

NOW = 20_000 * DAY + DAY / 2


@st.composite
def pasts(draw: st.DrawFn) -> tuple[list[Version], str, set[str]]:
    """Snapshots oldest first, by clocks that are not always right; a head; what tasks need."""
    ages = draw(st.lists(st.floats(min_value=-3 * DAY, max_value=40 * DAY), max_size=60))
    if draw(st.booleans()):
        ages.sort(reverse=True)
    versions = [Version(f"snap-{number}", NOW - age) for number, age in enumerate(ages)]
    names = [version.id for version in versions]
    head = draw(st.sampled_from(names)) if names else ""
    pinned = draw(st.sets(st.sampled_from(names))) if names else set()
    return versions, head, pinned


RETENTIONS = st.builds(Retention, last=st.integers(0, 70), daily=st.integers(0, 50))


@given(pasts(), RETENTIONS)
def test_what_must_stay_stays_and_all_else_goes(
    past: tuple[list[Version], str, set[str]], retention: Retention
) -> None:
    versions, head, pinned = past
    going = surplus(versions, head=head, pinned=pinned, retention=retention, now=NOW)
    names = [version.id for version in versions]
    assert head not in going
    assert pinned.isdisjoint(going)
    newest = set(names[len(names) - min(retention.last, len(names)) :])
    assert newest.isdisjoint(going)
    # Said another way than the function does: the last of each day that counts.
    today = int(NOW // DAY)
    daily = set()
    for day in {int(version.created // DAY) for version in versions}:
        if day > today - retention.daily:
            daily.add([version.id for version in versions if int(version.created // DAY) == day][-1])
    assert set(going) == set(names) - newest - daily - pinned - {head}
    assert going == [name for name in names if name in going]


@given(pasts(), RETENTIONS)
def test_a_second_look_finds_nothing_more(past: tuple[list[Version], str, set[str]], retention: Retention) -> None:
    versions, head, pinned = past
    going = set(surplus(versions, head=head, pinned=pinned, retention=retention, now=NOW))
    left = [version for version in versions if version.id not in going]
    assert surplus(left, head=head, pinned=pinned, retention=retention, now=NOW) == []


@given(pasts(), RETENTIONS, RETENTIONS)
def test_keeping_more_never_loses_more(
    past: tuple[list[Version], str, set[str]], one: Retention, two: Retention
) -> None:
    versions, head, pinned = past
    more = Retention(max(one.last, two.last), max(one.daily, two.daily))
    going = set(surplus(versions, head=head, pinned=pinned, retention=more, now=NOW))
    assert going <= set(surplus(versions, head=head, pinned=pinned, retention=one, now=NOW))


def test_days_are_those_of_utc_and_count_today() -> None:
    midnight = 20_000 * DAY
    versions = [
        Version("before yesterday", midnight - DAY - 1),
        Version("yesterday, early", midnight - DAY),
        Version("yesterday, late", midnight - 1),
        Version("today", midnight),
        Version("head", midnight + 1),
    ]
    kept = {"yesterday, late", "head"}
    going = surplus(versions, head="head", pinned=(), retention=Retention(0, 2), now=midnight + 2)
    assert {version.id for version in versions} - set(going) == kept
    assert "today" not in surplus(versions, head="head", pinned=(), retention=Retention(2, 2), now=midnight + 2)


def test_a_workspaces_own_setting_goes_before_the_default() -> None:
    default = Retention(20, 7)
    assert Retention().over(default) == default
    assert Retention(3, 0).over(default) == Retention(3, 7)
    assert Retention(0, 1).over(default) == Retention(20, 1)


def test_what_never_was_the_head_is_thinned_apart_by_the_same_numbers() -> None:
    """However many tasks take checkpoints, and whenever: versions stay, and so do the newest of the others."""
    versions = [Version(f"v{number}", NOW - (9 - number) * DAY) for number in range(9)] + [Version("head", NOW - 1)]
    aside = [Version(f"c{number}", NOW, head=False) for number in range(30)]
    going = surplus([*versions, *aside], head="head", pinned=(), retention=Retention(4, 6), now=NOW)
    assert going == ["v0", "v1", "v2", "v3", *(f"c{number}" for number in range(26))]
    # The newest of a day is a version, whatever came behind it.
    going = surplus([*versions, *aside], head="head", pinned=(), retention=Retention(1, 3), now=NOW)
    assert going[:8] == [f"v{number}" for number in range(7)] + ["c0"]


def test_running_tasks_cost_the_ended_ones_nothing() -> None:
    aside = [Version(f"c{number}", NOW, head=False) for number in range(30)]
    running = {f"c{number}" for number in range(10, 30)}
    going = surplus(aside, head="", pinned=running, retention=Retention(10, 0), now=NOW)
    assert going == []
    going = surplus(aside, head="", pinned=running, retention=Retention(9, 0), now=NOW)
    assert going == ["c0"]


def test_a_head_from_before_heads_were_told_apart_is_one() -> None:
    versions = [Version(name, NOW, head=False) for name in ("old", "head", "newer")]
    assert surplus(versions, head="head", pinned=(), retention=Retention(1, 0), now=NOW) == ["old"]
