"""Rules of result consumers: what may be delivered, what an acknowledgement changes, and what a receipt says.

A consumer's place in its tenant's results is a cursor and the acknowledged ones beyond it. Results are ordered by the
revision at which their task ended: a task's record never changes afterwards, so that is its `mod_revision`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from cloudclaw.coordination.records import ConsumerRecord
from cloudclaw.errors import InvalidArgumentError
from cloudclaw.ids import check_name

WINDOW: Final = 1000
"""Results beyond the cursor that may be acknowledged, or wait for it, at once: the bound of a consumer's record."""

MIN_VISIBILITY: Final = 5.0
MAX_VISIBILITY: Final = 12 * 3600.0
DEFAULT_VISIBILITY: Final = 60.0
DEFAULT_OUTSTANDING: Final = 100
MAX_RECEIPTS: Final = 1000

_RECEIPT: Final = re.compile(r"r1:([a-z0-9._-]{1,63}):(task-[0-9a-z]{1,40}):([1-9][0-9]{0,18}):([1-9][0-9]{0,18})")

Ended = tuple[int, str]
"""(revision of its end, task)."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Names one delivery.

    Attributes:
        consumer: whose it is.
        task: whose result.
        revision: of the task's end. It only tells whether the result is acknowledged already; what is acknowledged is
            what the delivery's key says.
        token: create revision of the delivery's key. No other delivery of this store has it.
    """

    consumer: str
    task: str
    revision: int
    token: int

    def __str__(self) -> str:
        text = f"r1:{self.consumer}:{self.task}:{self.revision}:{self.token}"
        return base64.urlsafe_b64encode(text.encode()).decode()


def parse_receipt(text: str, field: str) -> Receipt:
    """The receipt that `text` is. `InvalidArgumentError` for `field` when it is none."""
    try:
        found = _RECEIPT.fullmatch(base64.b64decode(text.encode(), altchars=b"-_", validate=True).decode("ascii"))
    except (binascii.Error, UnicodeError):
        found = None
    if found is None:
        raise InvalidArgumentError("is not a receipt of StreamResults", field=field)
    return Receipt(found[1], found[2], int(found[3]), int(found[4]))


@dataclass(frozen=True, slots=True)
class Wish:
    """How a stream wants its deliveries.

    Attributes:
        consumer: its name.
        visibility: seconds that a delivery waits for its acknowledgement, whole ones.
        from_oldest: a new consumer begins with the oldest result at hand instead of the next to come.
        outstanding: deliveries of this stream that may wait at once.
        drain: end when nothing is left to deliver.
    """

    consumer: str
    visibility: int
    from_oldest: bool
    outstanding: int
    drain: bool


def wish(consumer: str, visibility: float | None, from_oldest: bool, outstanding: int, drain: bool) -> Wish:
    """What a request asks for, within its limits: `InvalidArgumentError`. A part of a second counts as a whole one;
    None and 0 stand for the defaults."""
    check_name(consumer, "consumer")
    seconds = DEFAULT_VISIBILITY if visibility is None else visibility
    if not MIN_VISIBILITY <= seconds <= MAX_VISIBILITY:
        raise InvalidArgumentError(f"must be 5 s to 12 h; got {seconds:g} s", field="visibility_timeout")
    if not 0 <= outstanding <= WINDOW:
        raise InvalidArgumentError(f"must be 1 to {WINDOW}; got {outstanding}", field="max_outstanding")
    return Wish(consumer, -int(-seconds // 1), from_oldest, outstanding or DEFAULT_OUTSTANDING, drain)


def is_acked(record: ConsumerRecord, revision: int) -> bool:
    """Whether the consumer has acknowledged the result of that revision, or began after it."""
    return revision <= record.cursor or revision in record.acked


def unacknowledged(record: ConsumerRecord, ended: Iterable[Ended]) -> Iterator[Ended]:
    """Those of `ended` (ascending, beyond the cursor) that the consumer has not acknowledged."""
    acked = frozenset(record.acked)
    return (item for item in ended if item[0] not in acked)


def deliverable(record: ConsumerRecord, ended: Iterable[Ended], out: Container[str]) -> Iterator[Ended]:
    """What may be delivered now, oldest first.

    Acknowledged ones and those that may become it are `WINDOW` together, so that the record stays within its size
    however long its oldest result waits. `out`: tasks whose result is being delivered.
    """
    room = WINDOW - len(record.acked)
    for _, item in zip(range(room), unacknowledged(record, ended), strict=False):
        if item[1] not in out:
            yield item


def acknowledge(
    record: ConsumerRecord, revisions: Sequence[int], ended: Iterable[Ended], shown: int, now: float
) -> ConsumerRecord:
    """`record` after the results of `revisions` were acknowledged.

    The cursor moves over what is acknowledged without a gap. `ended`: the tenant's ended tasks beyond the cursor,
    ascending, as known up to the revision `shown`; past that nothing is known, so the cursor goes no further.
    """
    acked = {*record.acked, *(revision for revision in revisions if revision > record.cursor)}
    limit = next((revision for revision, _ in ended if revision not in acked), shown + 1)
    cursor = max((revision for revision in acked if revision < min(limit, shown + 1)), default=record.cursor)
    left = tuple(sorted(revision for revision in acked if revision > cursor))
    return msgspec.structs.replace(record, cursor=cursor, acked=left, updated=now)
