"""The format of bundles: what goes in comes out, one task alone too, and damage is never silent."""

from __future__ import annotations

import io
import json
import random

import pytest
import zstandard

from cloudclaw.coordination.records import TaskState
from cloudclaw.errors import DataLossError
from cloudclaw.history import bundles
from cloudclaw.history.bundles import ArchivedTask, Index, Preamble
from tests.unit.scheduler.history_rig import ended_task

NAME = "history/acme/000000000000000-000000000000001-bundle-x"


def opened(data: bytes) -> tuple[Preamble, Index]:
    preamble = Preamble(data[: bundles.PREAMBLE_BYTES], NAME)
    return preamble, Index(data[preamble.index_at :][: preamble.index_length], NAME, preamble)


def rows_of(data: bytes, index: Index, rows: list[int]) -> dict[int, ArchivedTask]:
    found: dict[int, ArchivedTask] = {}
    for span in index.spans(rows):
        found.update(bundles.decode_span(span, data[span.offset : span.offset + span.length], rows, NAME))
    return found


def many(count: int) -> list[ArchivedTask]:
    chance = random.Random(count)
    tasks = [ended_task(n, created=float(chance.randrange(100))) for n in range(1, count + 1)]
    chance.shuffle(tasks)
    return tasks


@pytest.mark.parametrize("count", [1, 2, 137, bundles.MAX_TASKS])
def test_what_goes_in_comes_out_newest_first(count: int) -> None:
    tasks = many(count)
    data = bundles.encode_bundle(tasks)
    preamble, index = opened(data)
    assert len(preamble) == len(index) == count
    expected = sorted(tasks, key=lambda each: bundles.place_of(each.task), reverse=True)
    assert index.tasks() == [each.task.record.task for each in expected]
    assert [index.place(row) for row in range(count)] == [bundles.place_of(each.task) for each in expected]
    assert list(rows_of(data, index, list(range(count))).values()) == expected


def test_one_task_is_read_without_the_others() -> None:
    tasks = many(1000)
    data = bundles.encode_bundle(tasks)
    preamble, index = opened(data)
    wanted = tasks[500]
    assert preamble.may_hold(wanted.task.record.task)
    row = index.row_of(wanted.task.record.task)
    assert row is not None
    [span] = index.spans([row])
    assert span.length < len(data) / 3
    assert rows_of(data, index, [row]) == {row: wanted}
    assert index.state(row) is TaskState.CANCELED
    assert index.mod_revision(row) == wanted.task.mod_revision


def test_frames_side_by_side_are_one_read_and_others_are_not() -> None:
    data = bundles.encode_bundle(many(1000))
    _, index = opened(data)
    assert len(index.spans(list(range(1000)))) == 1
    assert len(index.spans([0, 999])) == 2
    assert set(rows_of(data, index, [0, 999])) == {0, 999}
    assert index.spans([]) == []


def test_a_task_that_is_not_there_is_known_by_the_preamble() -> None:
    preamble, index = opened(bundles.encode_bundle(many(1000)))
    assert not any(preamble.may_hold(f"task-x{n}") for n in range(1000))
    assert index.row_of("task-x") is None


def test_rows_before_a_place_are_found() -> None:
    _, index = opened(bundles.encode_bundle(many(300)))
    places = [index.place(row) for row in range(300)]
    assert index.first_before(None) == 0
    for row, place in enumerate(places):
        assert index.first_before(place) == row + 1
    assert index.first_before((0, 0)) == 300


def test_it_is_lines_of_json_for_any_zstd() -> None:
    tasks = many(200)
    data = bundles.encode_bundle(tasks)
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
        head, *lines = reader.read().splitlines()
    assert json.loads(head)["tasks"] == [json.loads(line)["record"]["task"] for line in lines]
    assert len(lines) == 200


def test_names_say_tenant_and_times() -> None:
    tasks = [ended_task(1, created=5.25), ended_task(2, created=7.0)]
    name = bundles.name_for(tasks, "bundle-1")
    assert str(name) == "history/acme/000000000005250-000000000007000-bundle-1"
    assert bundles.parse_name(str(name)) == name
    assert bundles.parse_name("history/acme/x") is None


def test_a_bundle_holds_one_to_a_thousand() -> None:
    for count in (0, 1001):
        with pytest.raises(ValueError, match="holds 1 to 1000"):
            bundles.encode_bundle(many(count))


def test_every_damaged_byte_is_noticed() -> None:
    """Wherever a byte is turned over or the end cut off: an error that names the bundle, or the same tasks."""
    tasks = many(60)
    whole = bundles.encode_bundle(tasks)
    chance = random.Random(1)
    complaints = []
    for at in [*range(40), *chance.sample(range(len(whole)), 300)]:
        for data in (whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :], whole[:at]):
            try:
                _, index = opened(data)
                found = list(rows_of(data, index, list(range(60))).values())
            except DataLossError as error:
                complaints.append(error.message)
            else:
                assert set(map(repr, found)) == set(map(repr, tasks))
    assert len(complaints) > 600
    assert all(NAME in complaint for complaint in complaints)


def test_another_version_is_refused_by_name() -> None:
    data = bytearray(bundles.encode_bundle(many(1)))
    data[16] = 9
    with pytest.raises(DataLossError, match="version 9"):
        Preamble(bytes(data), NAME)
