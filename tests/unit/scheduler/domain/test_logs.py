"""Frames and segments."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudclaw.errors import DataLossError
from cloudclaw_scheduler.domain import logs
from cloudclaw_scheduler.domain.logs import Frame, Segment


@given(st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.binary(max_size=20)), max_size=20), st.integers(0, 1 << 40))
def test_frames_survive_a_segment(parts: list[tuple[int, bytes]], start: int) -> None:
    frames, offset = [], start
    for stream, data in parts:
        frames.append(Frame(offset, stream, 1_700_000_000_000_000, data))
        offset += len(data)
    assert list(logs.decode(logs.encode(frames), "x")) == frames
    joined = list(logs.coalesce(frames, 16))
    assert b"".join(f.data for f in joined) == b"".join(f.data for f in frames)
    assert all(one.end == two.offset for one, two in itertools.pairwise(joined))


@given(st.integers(1, 60))
def test_a_segment_that_is_cut_off_is_data_loss(cut: int) -> None:
    whole = logs.encode([Frame(0, 1, 5, b"x" * 20), Frame(20, 2, 5, b"y" * 20)])
    part = whole[: len(whole) - min(cut, len(whole) - 1)]
    if len(part) == logs.HEADER.size + 20:
        return  # exactly one frame is left: what is missing shows as a gap instead
    with pytest.raises(DataLossError, match="logs/u"):
        list(logs.decode(part, "logs/u/1-2"))


def test_names_carry_their_range() -> None:
    segment = Segment(3, 1 << 40)
    assert segment.name("acme", "u") == f"logs/acme/u/{3:020d}-{1 << 40:020d}"
    assert logs.parse_name(segment.name("acme", "u")) == segment
    assert logs.parse_name("logs/u/other") is None


def test_the_durable_end_is_that_of_the_first_gap() -> None:
    assert logs.durable_end([]) == 0
    assert logs.durable_end([Segment(5, 9)]) == 0
    assert logs.durable_end([Segment(4, 9), Segment(0, 5), Segment(0, 2), Segment(12, 20)]) == 9


def test_of_overlapping_segments_the_one_that_reaches_furthest_is_read() -> None:
    ranges = [Segment(0, 5), Segment(3, 4), Segment(4, 9)]
    assert logs.covering(ranges, 4) == Segment(4, 9)
    assert logs.covering(ranges, 3) == Segment(0, 5)
    assert logs.covering(ranges, 9) is None


def test_slices_keep_their_offsets() -> None:
    frame = Frame(10, 1, 0, b"abcdef")
    assert frame.after(12) == Frame(12, 1, 0, b"cdef")
    assert frame.until(12) == Frame(10, 1, 0, b"ab")
    assert frame.after(5) is frame
    assert frame.until(99) is frame


@pytest.mark.parametrize(
    ("limit", "ends", "left"),
    [
        (0, [5], 0),
        (1 << 20, [], 1 << 20),
        (1 << 20, [1000, 24], (1 << 20) - 1024),
        (1 << 20, [1 << 20], logs.LAST_WORDS),
    ],
)
def test_attempts_share_the_log_of_their_task(limit: int, ends: list[int], left: int) -> None:
    assert logs.room_left(limit, ends) == left
