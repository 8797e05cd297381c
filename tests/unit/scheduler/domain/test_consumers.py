"""Where a consumer stands, by rules alone."""

from __future__ import annotations

import random

import pytest

from cloudclaw.coordination.records import MAX_TASK_BYTES, ConsumerRecord, encode
from cloudclaw.errors import InvalidArgumentError
from cloudclaw_scheduler.domain.consumers import (
    WINDOW,
    Ended,
    Receipt,
    acknowledge,
    deliverable,
    is_acked,
    parse_receipt,
    wish,
)

NEW = ConsumerRecord(created=1.0, updated=1.0, op_id="op")


def ends(*revisions: int) -> list[Ended]:
    return [(revision, f"task-{revision}") for revision in revisions]


def acked(record: ConsumerRecord, revisions: list[int], all_ends: list[int], shown: int) -> ConsumerRecord:
    beyond = ends(*(revision for revision in all_ends if record.cursor < revision <= shown))
    return acknowledge(record, revisions, beyond, shown, 2.0)


def test_the_cursor_moves_over_what_is_acknowledged_without_a_gap() -> None:
    known = [10, 20, 30, 40]
    record = acked(NEW, [20, 40], known, 50)
    assert (record.cursor, record.acked) == (0, (20, 40))
    record = acked(record, [10], known, 50)
    assert (record.cursor, record.acked) == (20, (40,))
    record = acked(record, [30], known, 50)
    assert (record.cursor, record.acked, record.updated) == (40, (), 2.0)


def test_the_cursor_goes_no_further_than_what_is_known() -> None:
    """A replica that lags does not know of the end at 20 yet."""
    record = acked(NEW, [10, 30], [10, 20, 30], 15)
    assert (record.cursor, record.acked) == (10, (30,))
    record = acked(record, [], [10, 20, 30], 30)
    assert (record.cursor, record.acked) == (10, (30,))
    record = acked(record, [20], [10, 20, 30], 30)
    assert (record.cursor, record.acked) == (30, ())


def test_what_was_archived_is_passed_over() -> None:
    record = acked(NEW, [10, 30], [10, 20, 30], 30)
    record = acked(record, [40], [30, 40], 40)
    assert (record.cursor, record.acked) == (40, ())


def test_in_any_order_of_acknowledgements_nothing_is_lost_and_nothing_comes_twice() -> None:
    chance = random.Random(7)
    for _ in range(50):
        known = sorted(chance.sample(range(1, 1000), 60))
        record, done, shown = NEW, set[int](), 0
        while len(done) < len(known):
            shown = min(1000, shown + chance.randrange(60))
            seen = [revision for revision in known if record.cursor < revision <= shown]
            due = [revision for revision, _ in deliverable(record, ends(*seen), ())]
            assert due == [revision for revision in seen if revision not in done]
            now = chance.sample(due, chance.randrange(len(due) + 1))
            record = acked(record, now, known, chance.randrange(shown + 1))
            done.update(now)
            assert {revision for revision in known if is_acked(record, revision)} >= done
            assert all(revision in done for revision in known if is_acked(record, revision))
        assert acked(record, [], known, 1000).acked == ()


def test_the_window_is_what_is_acknowledged_and_what_may_be() -> None:
    known = list(range(1, 3 * WINDOW))
    due = list(deliverable(NEW, ends(*known), ()))
    assert [revision for revision, _ in due] == known[:WINDOW]
    record = acked(NEW, known[1:WINDOW], known, known[-1])
    assert len(record.acked) == WINDOW - 1
    assert list(deliverable(record, ends(*known), ())) == ends(1)
    assert list(deliverable(record, ends(*known), {"task-1"})) == []
    # Also when the oldest left without having been acknowledged.
    assert list(deliverable(record, ends(*known[1:]), ())) == ends(WINDOW + 1)


def test_a_full_record_is_small() -> None:
    record = ConsumerRecord(
        created=1.7e9, updated=1.7e9, op_id="op-0123456789abcdef", acked=tuple(range(10**9, 10**9 + 2 * WINDOW, 2))
    )
    assert len(encode(record)) < 2 * MAX_TASK_BYTES


def test_a_receipt_is_read_as_it_was_written() -> None:
    receipt = Receipt("a.b-c_1", "task-0123456789abcdef", 7, 1 << 62)
    assert parse_receipt(str(receipt), "receipts[0]") == receipt
    for text in (str(receipt)[:-1], str(receipt) + "A", str(receipt).swapcase(), "cjI6YzpiOjE6MQ=="):
        with pytest.raises(InvalidArgumentError) as caught:
            parse_receipt(text, "receipts[3]")
        assert caught.value.field == "receipts[3]"


def test_defaults_and_parts_of_seconds() -> None:
    given = wish("c", None, False, 0, False)
    assert (given.visibility, given.outstanding) == (60, 100)
    assert wish("c", 5.001, False, 1000, True).visibility == 6
    assert wish("c", 43200.0, False, 1, True).visibility == 43200
